"""CAVIA: an inner loop that changes a few context parameters, and none of the network's weights.

Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson, *Fast Context Adaptation via Meta-Learning*,
ICML 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.maml import MAML
from tfmeta.fast_weights import FastWeights
from tfmeta.layers import Context
from tfmeta.types import Nest, Params


@keras.saving.register_keras_serializable(package="tfmeta")
class CAVIA(MAML):
    """Learn a network whose context parameters φ, a few numbers, tell it which task it is at.

    φ starts at 0 in every task; `φ_{k+1} = φ_k − α ∇_φ L_S(φ_k, θ)`. The outer loop trains the
    network, `θ ← θ − β ∇_θ mean L_Q(φ_K, θ)`, through the inner steps, and never φ. The context
    parameters are the weights of the model's `tfmeta.layers.Context` layers.

    Args:
        model: A `keras.Model` with one `tfmeta.layers.Context` layer or more.
        inner_learning_rate: α; the method is little sensitive to it, and 1 is usual.
        inner_steps: K, in training.
        first_order: Take the inner gradient as a constant.
        **kwargs: Those of `MAML` but `adapt_layers`.

    Raises:
        TypeError: If `model` is not a Keras model, or a number is no number.
        ValueError: If a value is out of range, or the model has no `Context` layer.

    Example:
        ```python
        model = keras.Sequential([keras.Input((1,)), tfmeta.layers.Context(5),
                                  keras.layers.Dense(40, "relu"), keras.layers.Dense(1)])
        learner = tfmeta.CAVIA(model, inner_learning_rate=1.0, inner_steps=2)
        learner.compile("adam", "mean_squared_error")
        ```
    """

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 1.0,
        inner_steps: int = 2,
        first_order: bool = False,
        **kwargs: Any,
    ) -> None:
        if "adapt_layers" in kwargs and kwargs.pop("adapt_layers") is not None:
            raise TypeError("CAVIA has no argument `adapt_layers`: it adapts `Context` layers only")
        super().__init__(model, inner_learning_rate, inner_steps, first_order, **kwargs)
        if not any(isinstance(layer, Context) for layer in model.layers):
            raise ValueError(
                "`model` must have a tfmeta.layers.Context layer, whose weights are adapted. "
                f"Received: layers {', '.join(layer.name for layer in model.layers)}"
            )

    def chosen(self) -> list[bool]:
        """Return for each weight whether it is a context parameter."""
        contexts = [layer for layer in self.model.layers if isinstance(layer, Context)]
        ids = {id(layer.context) for layer in contexts}
        return [id(v) in ids for v in self.model.trainable_variables]

    def start(
        self, support_x: Nest, support_y: Nest, *, training: bool
    ) -> tuple[FastWeights, Params]:
        """Return θ and context parameters of 0, which no outer gradient reaches."""
        weights, state = super().start(support_x, support_y, training=training)
        model = [
            tf.zeros_like(w) if context else w
            for w, context in zip(weights.model, self.chosen(), strict=True)
        ]
        return weights._replace(model=model), state
