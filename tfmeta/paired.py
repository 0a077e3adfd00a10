"""Two scores of the same episodes: their paired difference, with interval and p-value."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tfmeta.types import Array


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean over episodes of a score less another one, and how sure it is.

    With the n differences d of mean m and standard deviation s, the interval is `m ± t s / √n`, t
    being the 97.5 % quantile of Student's distribution with n − 1 degrees of freedom, and the
    p-value that of the paired t-test, of both sides: how probable a mean as far from zero would be
    if there were no difference.

    Attributes:
        per_episode: `[episodes]`, the score of each less the other score of the same episode.

    Example:
        >>> difference = tfmeta.compare(learners, sampler).difference("maml", "prototypical")
        >>> print(difference.mean, difference.ci95, difference.p_value)

    References:
        - Student. *The Probable Error of a Mean.* Biometrika 6(1), 1908.
    """

    per_episode: Array

    @property
    def mean(self) -> float:
        """The mean difference."""
        return float(np.mean(self.per_episode))

    @property
    def ci95(self) -> float:
        """Half the width of its 95 % interval; NaN for a single episode."""
        n = len(self.per_episode)
        return _quantile(n - 1) * self._error if n > 1 else float("nan")

    @property
    def p_value(self) -> float:
        """That of the paired t-test, of both sides; NaN for a single episode."""
        n = len(self.per_episode)
        if n < 2:
            return float("nan")
        if self._error == 0:
            return float(self.mean == 0)
        return _two_sided(self.mean / self._error, n - 1)

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.ci95  # false for NaN

    @property
    def _error(self) -> float:
        d = np.asarray(self.per_episode, np.float64)
        # Of equal numbers the mean may be rounded.
        if (d == d[0]).all():
            return 0.0
        return float(d.std(ddof=1) / np.sqrt(len(d)))


def _two_sided(t: float, freedom: int) -> float:
    """Return the probability of a Student's t that is farther from zero."""
    # `P(|T| > t) = I_x(f/2, 1/2)` with `x = f / (f + t²)`, f degrees of freedom and I the
    # incomplete beta function.
    half = tf.constant(0.5, tf.float64)
    return float(tf.math.betainc(freedom * half, half, freedom / (freedom + t * t)))


@functools.cache
def _quantile(freedom: int) -> float:
    """Return the t that is exceeded, up or down, with a probability of 5 %."""
    low, high = 1.0, 13.0  # between that of infinitely many and that of one
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _two_sided(middle, freedom) > 0.05 else (low, middle)
    return high
