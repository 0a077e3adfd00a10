"""Low-rank weights, of Keras's `layer.enable_lora`, in the files of learners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfmeta.foreign.of_keras import layers_of


class LowRankWeights(keras.layers.Layer):
    """What Keras leaves out of a file: the weights of a model's low-rank layers, each by itself.

    Keras saves such a layer with the product of its two low-rank weights added to its kernel, and
    loads it with zeros for both. That predicts the same, but where both are zero so are the
    derivatives of their product, and no step would ever change them again. This is saved, and
    loaded, after the layers themselves, and puts back what they had.

    Args:
        model: A learner, or another model.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name="low_rank")
        # Within a function, where Keras does not count the variables as this layer's.
        self._theirs: Callable[[], list[keras.Variable]] = lambda: _variables(model)

    def save_own_variables(self, store: Any) -> None:
        """Put the weights into a file."""
        for i, variable in enumerate(self._theirs()):
            store[str(i)] = variable

    def load_own_variables(self, store: Any) -> None:
        """Take the weights out of a file, if it has them."""
        for i, variable in enumerate(self._theirs() if len(store.keys()) else []):
            variable.assign(store[str(i)])


def low_rank_weights(model: keras.Model) -> LowRankWeights | None:
    """Return what is to be saved beside a model; `None` if no layer of it has low-rank weights."""
    return LowRankWeights(model) if _variables(model) else None


def _variables(model: keras.Model) -> list[keras.Variable]:
    layers = [layer for layer in layers_of(model) if getattr(layer, "lora_enabled", False)]
    return [variable for layer in layers for variable in layer.variables]
