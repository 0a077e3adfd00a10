"""Layers that few-shot models need and Keras does not have."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="tfmeta")
class BatchAtHandNormalization(keras.layers.BatchNormalization):
    """Batch normalisation by the statistics of the batch at hand, in training and inference.

    `y = γ (x − mean(x)) / sqrt(var(x) + ε) + β`. It stands in an adapted model whose learner was
    evaluated transductively, so that both give the same numbers. What it predicts for an example
    therefore depends on the examples beside it. Arguments are those of
    `keras.layers.BatchNormalization`.

    Example:
        >>> tfmeta.layers.BatchAtHandNormalization()(images)
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise `inputs`; `training` makes no difference."""
        return super().call(inputs, training=True, mask=mask)
