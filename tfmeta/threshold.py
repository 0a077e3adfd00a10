"""From which score on an answer is given, and not "unknown"."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta.types import Tensor

# What stands in the place of a class's name.
UNKNOWN = "unknown"
SCORES = ("probability", "prediction")


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Tells which predictions are no answer: those whose score is below a value.

    With the predictions z of an example there are two scores:

    - `"probability"`: `log p/(1 − p)` of the largest probability `p = max_k softmax(z)_k`. Its
      order is that of p, which itself is rounded to 1 where a learner is sure.
    - `"prediction"`: `max_k z_k`. Of a Prototypical Network and SimpleShot it is minus the squared
      distance to the nearest class mean.

    Called with predictions `[n, ways]`, of an adapted model or an export, it returns `[n]`, true
    where the answer is "unknown": an array for an array, a tensor for a tensor.

    Attributes:
        value: What the score must be at least.
        score: `"probability"` or `"prediction"`.
        false_acceptance: The share of queries of other classes that had an answer where the value
            was fitted, if it was.
        false_rejection: The share of queries of classes that were shown and had none.

    Raises:
        TypeError: If `value` is no number.
        ValueError: If it is NaN or infinite, or there is no such score.

    Example:
        >>> threshold = tfmeta.unknown.fit(
        ...     learner, validation_sampler, support_ways=5, false_acceptance=0.05
        ... )
        >>> threshold(adapted.predict(images))
        array([False, False,  True])
    """

    value: float
    score: str
    false_acceptance: float | None = None
    false_rejection: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float | np.number):
            raise TypeError(f"`value` must be a number. Received: value={self.value!r}")
        if not math.isfinite(self.value):
            raise ValueError(f"`value` must be finite. Received: value={self.value!r}")
        check_score(self.score)

    def __call__(self, predictions: Tensor) -> Any:
        """Return `[n]`, true where predictions `[n, ways]` are no answer."""
        # Of what is not a number, too.
        refused = tf.logical_not(scores(predictions, self.score) >= np.float32(self.value))
        return refused if tf.is_tensor(predictions) else refused.numpy()


def scores(predictions: Tensor, score: str) -> Tensor:
    """Return the scores `[n]`, float32, of predictions `[n, ways]`.

    Args:
        predictions: Logits; for `"prediction"` they may be anything that is larger for what is
            surer.
        score: `"probability"` or `"prediction"`.

    Raises:
        ValueError: If predictions have another number of axes.
    """
    z = tf.cast(predictions, tf.float32)
    if len(z.shape) != 2:
        raise ValueError(f"`predictions` must be [n, ways]. Received: shape={tuple(z.shape)}")
    largest = tf.reduce_max(z, -1)
    if score == "prediction":
        return largest
    best = tf.one_hot(tf.argmax(z, -1), tf.shape(z)[1], on_value=True, off_value=False)
    others = tf.where(best, z.dtype.min, z)
    return largest - tf.reduce_logsumexp(others, -1)


def check_score(score: Any) -> None:
    """Raise a `ValueError` unless there is such a score."""
    if score not in SCORES:
        raise ValueError(
            f"`score` must be {' or '.join(map(repr, SCORES))}. Received: score={score!r}"
        )
