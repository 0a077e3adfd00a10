"""MAML that starts from the head of a Prototypical Network.

Triantafillou et al., *Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples*,
ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.algorithms.maml import MAML
from tfmeta.algorithms.prototype_head import present_classes
from tfmeta.fast_weights import FastWeights
from tfmeta.functional import Called
from tfmeta.labels import ClassNumbers
from tfmeta.ops import prototypes
from tfmeta.task_map import side_by_side
from tfmeta.types import Nest, Params


@keras.saving.register_keras_serializable(package="tfmeta")
class ProtoMAML(MAML):
    """MAML with a head that starts at each task's prototypes, for any number of ways.

    With `c_k` the mean embedding of class k's support examples, the head starts at `W = 2 c_k` and
    `b = −‖c_k‖²`, which gives the logits of a Prototypical Network up to what all classes share.
    Head and encoder are then adapted as in MAML, and the outer gradient flows through that start.
    Of an encoder that is frozen, or has no weights at all, the head alone is adapted, and `fit` has
    nothing to train but rates (`learned_rates`).

    A step changes the head by about α of its own size, however long embeddings are, and a layer of
    the encoder by about `α ‖x‖²` of its own, with what goes into it, x. Where `α ‖x‖²` is near 1 or
    more, as of images that are not scaled, the steps lose what the prototypes knew.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen; there is no head to it.
        inner_learning_rate: α, positive; a sequence has one for each inner step.
        inner_steps: K, in training.
        first_order: Take the inner gradient as a constant. The start is differentiated always.
        **kwargs: Those of `MAML`. `adapt_layers` chooses among the encoder's weights, the head is
            always adapted; `adapt_layers=()` adapts the head only. The rates that are learnt for
            the head are single numbers, as its shape depends on the task.

    Raises:
        TypeError: If `encoder` is not a Keras model, or a number is no number.
        ValueError: If a value is out of range, or the encoder does not return vectors.

    Example:
        ```python
        learner = tfmeta.ProtoMAML(tfmeta.models.conv4((28, 28, 1)), inner_learning_rate=0.01)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.fit(sampler.dataset(meta_batch_size=16), steps_per_epoch=500, epochs=20)
        ```
    """

    gives_logits = True
    labels = ClassNumbers(each=True)

    def __init__(
        self,
        encoder: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, inner_learning_rate, inner_steps, first_order, **kwargs)

    def head_weights(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the weights of the head, whose shapes depend on the task."""
        return [("prototypes/kernel", ()), ("prototypes/bias", ())]

    def chosen(self) -> list[bool]:
        """Return for each weight whether the inner loop adapts it; the head it does always."""
        part, variables = self.adapt_layers, self.model.trainable_variables
        nothing = isinstance(part, list | tuple) and len(part) == 0
        if nothing or (part is None and not variables):
            return [False] * len(variables) + [True, True]
        return super().chosen()

    def start(
        self, support_x: Nest, support_y: Nest, *, training: bool
    ) -> tuple[FastWeights, Params]:
        """Return θ with the head of this task's prototypes, and the encoder's state."""
        weights, state = super().start(support_x, support_y, training=training)
        called = super().forward(
            weights, state, support_x, training=training, statistics=self.mode.inner, step=0
        )
        embedded = tf.cast(called.outputs, self.model.variable_dtype)
        several = side_by_side()
        if len(embedded.shape) != 2 + several:
            raise ValueError(
                "`encoder` must return one vector [n, d] for each example. "
                f"Received: shape={tuple(embedded.shape)}"
            )
        static = bool(self.compiled and self.jit_compile) and not tf.executing_eagerly()
        if not several:
            embedded, support_y = embedded[None], support_y[None]
        ways, present = present_classes(support_y, static)
        means = prototypes(embedded, support_y, ways)
        # A class without support examples, which XLA has room for, cannot be predicted.
        bias = tf.where(present, -tf.reduce_sum(means**2, axis=-1), means.dtype.min / 2)
        head = [2 * tf.linalg.matrix_transpose(means), bias]
        return FastWeights(called.params, head if several else [x[0] for x in head]), called.state

    def forward(self, weights: FastWeights, *args: Any, **kwargs: Any) -> Called:
        """Compute the logits at given weights of encoder and head."""
        kernel, bias = weights.head
        called = super().forward(weights, *args, **kwargs)
        bias = bias[:, None] if side_by_side() else bias
        return called._replace(outputs=tf.cast(called.outputs, kernel.dtype) @ kernel + bias)

    def output_spec(self) -> Nest:
        """Return symbolic predictions `[n, ways]` for any number of ways."""
        return keras.KerasTensor((None, None), self.compute_dtype)

    def ordinary_model(self, state: Nest) -> keras.Model | None:
        """Return encoder and head as one model."""
        kernel, bias = state[0].head
        encoder = super().ordinary_model(state)
        if encoder is None:
            return None
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(x.shape[1:], dtype=x.dtype), self.example
        )
        head = keras.layers.Dense(kernel.shape[1], dtype=kernel.dtype.name, name="prototypes")
        outputs = head(encoder(inputs))
        head.set_weights([np.asarray(kernel), np.asarray(bias)])
        return keras.Model(inputs, outputs, name="adapted")

    @property
    def encoder(self) -> keras.Model:
        """The wrapped model."""
        return self.model
