"""Meta-Curvature: MAML whose inner gradients are turned by learnt matrices.

Park and Oliva, *Meta-Curvature*, NeurIPS 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.maml import MAML
from tfmeta.fast_weights import FastWeights
from tfmeta.inner_loop import InnerStep
from tfmeta.types import Nest, Params, Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class MetaCurvature(MAML):
    """MAML that learns in which directions a step goes: `φ_{k+1} = φ_k − α MC(∇L_S(φ_k))`.

    For the gradient G of each tensor, `MC(G) = G ×_1 M_1 ×_2 M_2 …`: along each of its axes it is
    multiplied by a square matrix of that axis's size, of all axes of space of a convolution by one
    for their product. The matrices start as identities, so that training starts as MAML, and the
    outer loop trains them. Biases and other vectors have one matrix, scalars none.

    Args:
        model: Any `keras.Model`.
        inner_learning_rate: α, positive; a sequence has one for each inner step.
        inner_steps: K, in training.
        first_order: Take the inner gradient, turned, as a constant: then nothing trains the
            matrices.
        **kwargs: Those of `MAML`.

    Raises:
        TypeError: If `model` is not a Keras model, or a number is no number.
        ValueError: If a value is out of range.

    Example:
        >>> learner = tfmeta.MetaCurvature(tfmeta.models.conv4((28, 28, 1), 5), 0.1, inner_steps=5)
    """

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and make the matrices."""
        super().build(input_shape)
        self.matrices = [
            [
                self.add_weight(shape=(n, n), initializer="identity", name=f"curvature_{i}_{axis}")
                for axis, n in enumerate(_sizes(shape))
            ]
            for i, (_, shape) in enumerate(self.adapted_weights())
        ]

    def inner_step(
        self, support_x: Nest, support_y: Nest, weights: FastWeights, *, training: bool
    ) -> InnerStep:
        """Return a step along the gradients as the matrices turn them."""
        step = super().inner_step(support_x, support_y, weights, training=training)
        axes: Sequence[int | None] = step.task_axes or [None] * len(self.matrices)

        def turned(gradients: Params, params: Params) -> Params:
            del params
            every = zip(gradients, self.matrices, axes, strict=True)
            return [_turned(g, matrices, axis) for g, matrices, axis in every]

        return step._replace(direction=turned)


def _sizes(shape: tuple[int, ...]) -> list[int]:
    """Return the sizes of a tensor with its axes of space as one: `[space, in, out]`."""
    return [math.prod(shape[:-2]), *shape[-2:]] if len(shape) > 2 else list(shape)


def _turned(gradient: Tensor, matrices: list[Any], task_axis: int | None) -> Any:
    """Return a gradient, of one task or of several, multiplied along each of its axes."""
    shape = gradient.shape
    rest = [i for i in range(len(shape)) if i != task_axis]
    order = rest if task_axis is None else [task_axis, *rest]
    sizes = _sizes(tuple(shape[i] for i in rest))
    turned = tf.reshape(tf.transpose(gradient, order), [-1, *sizes])
    for axis, matrix in enumerate(matrices, 1):
        product = tf.tensordot(turned, tf.cast(matrix, turned.dtype), [[axis], [1]])
        # The new axis is the last one.
        back = [*range(axis), len(sizes), *range(axis, len(sizes))]
        turned = tf.transpose(product, back)
    moved = tf.reshape(turned, [shape[i] for i in order])
    return tf.transpose(moved, [order.index(i) for i in range(len(shape))])
