"""Layers that few-shot models need and Keras does not have."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="tfmeta")
class BatchAtHandNormalization(keras.layers.BatchNormalization):
    """Batch normalisation by the statistics of the batch at hand, in training and inference.

    `y = γ (x − mean(x)) / sqrt(var(x) + ε) + β`. It stands in an adapted model whose learner was
    evaluated transductively, so that both give the same numbers. What it predicts for an example
    therefore depends on the examples beside it; its moving statistics stay as they are. Arguments
    are those of `keras.layers.BatchNormalization`.

    Example:
        >>> tfmeta.layers.BatchAtHandNormalization()(images)
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalise `inputs`; neither `training` nor `trainable` makes a difference."""
        # As in Keras, half precision would overflow.
        x = keras.ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        mean, variance = self._moments(x, mask)
        outputs = keras.ops.batch_normalization(
            x,
            mean,
            variance,
            self.axis,
            offset=keras.ops.cast(self.beta, x.dtype) if self.center else None,
            scale=keras.ops.cast(self.gamma, x.dtype) if self.scale else None,
            epsilon=self.epsilon,
        )
        return keras.ops.cast(outputs, self.compute_dtype)
