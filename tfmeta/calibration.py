"""Whether predicted probabilities mean what they say: scores, diagrams and one temperature.

All functions are of plain arrays: `probabilities` `[n, ways]`, whose rows sum to one, and integer
`labels` `[n]`. `tfmeta.uncertainty` collects both for a learner.

References:
    - Brier. *Verification of Forecasts Expressed in Terms of Probability.* 1950.
    - Guo, Pleiss, Sun, Weinberger. *On Calibration of Modern Neural Networks.* ICML 2017.
    - Hendrycks, Gimpel. *A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
      Neural Networks.* ICLR 2017.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from tfmeta.checks import check_count, check_positive
from tfmeta.types import Array

# How far from one a row of probabilities may sum: half precision has three digits.
_TOLERANCE = 2e-3
# The logarithm of a probability that was rounded to zero is taken of this one, and is -708.
_LEAST = np.finfo(np.float64).tiny
# A temperature is looked for between the two.
_COLDEST, _HOTTEST = 1e-3, 1e3


@dataclasses.dataclass(frozen=True)
class Reliability:
    """What was claimed and what came true, in bins of equal width.

    Attributes:
        edges: `[bins + 1]`, from 0 to 1. A confidence on an edge belongs to the bin below it.
        count: `[bins]`, how many predictions have their confidence in each bin.
        confidence: `[bins]`, their mean confidence; NaN in an empty bin.
        accuracy: `[bins]`, the share of them that is right; NaN in an empty bin.
    """

    edges: Array
    count: Array
    confidence: Array
    accuracy: Array

    @property
    def error(self) -> float:
        """The expected calibration error, `Σ_b count_b / n |accuracy_b - confidence_b|`."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gaps, weights=self.count[filled]))


def softmax(logits: npt.ArrayLike, temperature: float = 1.0) -> Array:
    """Return `exp(z / T) / Σ exp(z / T)` over the last axis, in float64.

    Of logarithms of probabilities it gives the probabilities back, so the mean of several
    predictions can stand in the place of logits.

    Args:
        logits: `[n, ways]`.
        temperature: T; above 1 it makes predictions less sure, below 1 surer.

    Raises:
        TypeError: If `temperature` is no number.
        ValueError: If it is not positive and finite, or `logits` are no finite `[n, ways]`.

    Example:
        >>> softmax([[0.0, 0.0]])
        array([[0.5, 0.5]])
    """
    check_positive("temperature", temperature)
    z = _matrix("logits", logits) / temperature
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(z / z.sum(axis=1, keepdims=True))


def logarithms(probabilities: npt.ArrayLike) -> Array:
    """Return `log p`, logits whose softmax is p, `[n, ways]`.

    Args:
        probabilities: `[n, ways]`. One that was rounded to zero counts as 2e-308.

    Raises:
        ValueError: If they are no probabilities.
    """
    return np.asarray(np.log(np.maximum(_probabilities(probabilities), _LEAST)))


def accuracy(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the share of rows whose largest probability is the label's.

    Args:
        probabilities: `[n, ways]`.
        labels: Integers `[n]`.

    Raises:
        ValueError: If the two don't fit.
    """
    p, y = _checked(probabilities, labels)
    return float(np.mean(p.argmax(axis=1) == y))


def negative_log_likelihood(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the mean of `-log p[label]`, in nats; `log(ways)` is what guessing has.

    Args:
        probabilities: `[n, ways]`. One that was rounded to zero counts as 2e-308.
        labels: Integers `[n]`.

    Raises:
        ValueError: If the two don't fit.

    Example:
        >>> negative_log_likelihood([[0.5, 0.5]], [0])
        0.6931471805599453
    """
    p, y = _checked(probabilities, labels)
    return float(-logarithms(p)[np.arange(len(y)), y].mean())


def brier_score(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the mean of `Σ_k (p_k - [k = label])²`, between 0 and 2.

    Args:
        probabilities: `[n, ways]`.
        labels: Integers `[n]`.

    Raises:
        ValueError: If the two don't fit.

    Example:
        >>> brier_score([[0.5, 0.5]], [0])
        0.5
    """
    p, y = _checked(probabilities, labels)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1).mean())


def reliability(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> Reliability:
    """Return mean confidence and accuracy in bins of confidence, `max_k p_k`, of equal width.

    Args:
        probabilities: `[n, ways]`.
        labels: Integers `[n]`.
        bins: How many; 15 are the usual ones.

    Raises:
        TypeError: If `bins` is no integer.
        ValueError: If `bins` is less than 1, or the others don't fit.
    """
    check_count("bins", bins)
    p, y = _checked(probabilities, labels)
    confidence = p.max(axis=1)
    edges = np.linspace(0.0, 1.0, bins + 1)
    # The first edge that is not below; rounding may carry a confidence above 1.
    of = np.minimum(np.searchsorted(edges[1:], confidence), bins - 1)
    count = np.bincount(of, minlength=bins)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(of, confidence, bins) / count
        right = np.bincount(of, p.argmax(axis=1) == y, bins) / count
    return Reliability(edges, count, sure, right)


def expected_calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15
) -> float:
    """Return `Σ_b n_b / n |accuracy_b - confidence_b|` over bins of confidence of equal width.

    Args:
        probabilities: `[n, ways]`.
        labels: Integers `[n]`.
        bins: How many; the number belongs to the score, and 15 are the usual ones.

    Raises:
        TypeError: If `bins` is no integer.
        ValueError: If `bins` is less than 1, or the others don't fit.

    Example:
        >>> expected_calibration_error([[0.75, 0.25], [0.75, 0.25]], [0, 1])
        0.25
    """
    return reliability(probabilities, labels, bins).error


def entropy(probabilities: npt.ArrayLike) -> Array:
    """Return the entropy of each row, `-Σ_k p_k log p_k`, in nats, `[n]`.

    Args:
        probabilities: `[n, ways]`.

    Raises:
        ValueError: If they are no probabilities.
    """
    logs = logarithms(probabilities)
    return np.asarray(-np.sum(probabilities * logs, axis=1))


def rejection_curve(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Array, Array]:
    """Return how right the surest predictions are, for each share of them that is kept.

    Predictions are kept in the order of their entropy, the smallest first. Among those of equal
    entropy none comes first: each counts with their common accuracy.

    Args:
        probabilities: `[n, ways]`.
        labels: Integers `[n]`.

    Returns:
        The share kept, `1/n, 2/n, ..., 1`, and the accuracy of those kept, both `[n]`. The mean of
        the latter is the area under the curve.

    Raises:
        ValueError: If the two don't fit.

    Example:
        >>> kept, accuracy = rejection_curve([[0.6, 0.4], [0.9, 0.1]], [1, 0])
        >>> accuracy
        array([1. , 0.5])
    """
    p, y = _checked(probabilities, labels)
    right = (p.argmax(axis=1) == y).astype(np.float64)
    # The order of the classes changes the last digits of a sum, and not the entropy.
    surest = np.round(entropy(p), 12)
    _, group, size = np.unique(surest, return_inverse=True, return_counts=True)
    by_group = np.bincount(group, right) / size
    kept = np.arange(1, len(y) + 1)
    return kept / len(y), np.cumsum(np.repeat(by_group, size)) / kept


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Return the chance that a positive's score is above a negative's, a tie counting half.

    This is the area under the receiver operating characteristic.

    Args:
        scores: `[n]`, larger where something is more likely a positive.
        positive: Booleans `[n]`; there must be both kinds.

    Raises:
        ValueError: If they differ in length, or there are no positives or no negatives, or a score
            is NaN.

    Example:
        >>> auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
        0.875
    """
    s, of = np.asarray(scores, np.float64), np.asarray(positive)
    if s.ndim != 1 or s.shape != of.shape or of.dtype != bool:
        raise ValueError(
            "`scores` and `positive` must be numbers and booleans of one length. Received: shapes "
            f"{s.shape} and {of.shape}, and {of.dtype}"
        )
    if np.isnan(s).any():
        raise ValueError(f"`scores` must not be NaN. Received: {np.isnan(s).sum()} of {s.size}")
    if of.all() or not of.any():
        raise ValueError(
            f"`positive` must have both kinds. Received: {of.sum()} of {of.size} are positive"
        )
    _, group, size = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(size) - (size - 1) / 2)[group]  # from 1, the mean one among equals
    positives = of.sum()
    above = ranks[of].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (of.size - positives)))


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the temperature T with the least negative log likelihood of `softmax(z / T)`.

    In 1 / T it is convex, with the derivative `mean(Σ_k p_k z_k - z_label)`, whose zero is found by
    halving. Fit it on validation episodes: on those that are scored it would flatter.

    Args:
        logits: `[n, ways]`, or logarithms of probabilities.
        labels: Integers `[n]`.

    Returns:
        T, between 0.001, where all predictions are right, and 1000, where they are no better than
        guessing.

    Raises:
        ValueError: If the two don't fit.

    Example:
        >>> fit_temperature([[2.0, 0.0]] * 4, [0, 0, 0, 1])  # 2 / log(3)
        1.82047845...
    """
    z = _matrix("logits", logits)
    y = _labels(labels, z)
    z = z - z.max(axis=1, keepdims=True)
    of_label = z[np.arange(len(y)), y].mean()
    low, high = np.log(_COLDEST), np.log(_HOTTEST)
    for _ in range(60):  # more would be below the last digit
        middle = (low + high) / 2
        p = np.exp(z / np.exp(middle))
        expected = ((p * z).sum(axis=1) / p.sum(axis=1)).mean()
        # Predictions that are too sure expect better logits than their labels have.
        low, high = (middle, high) if expected > of_label else (low, middle)
    return float(np.exp((low + high) / 2))


def _matrix(name: str, values: npt.ArrayLike) -> Array:
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or len(x) == 0 or x.shape[1] < 2:
        raise ValueError(
            f"`{name}` must be [n, ways], with one row and two ways or more. "
            f"Received: shape={x.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError(
            f"`{name}` must be finite. Received: {np.sum(~np.isfinite(x))} NaN or infinite values"
        )
    return x


def _probabilities(values: npt.ArrayLike) -> Array:
    p = _matrix("probabilities", values)
    sums = p.sum(axis=1)
    wrong = np.flatnonzero((np.abs(sums - 1) > _TOLERANCE) | (p < 0).any(axis=1))
    if wrong.size:
        raise ValueError(
            "`probabilities` must be at least 0 and sum to 1 in each row. Received: row "
            f"{wrong[0]} with the sum {sums[wrong[0]]:.4g} and the least {p[wrong[0]].min():.4g}"
            "; logits become probabilities by tfmeta.calibration.softmax"
        )
    return p


def _labels(values: npt.ArrayLike, rows: Array) -> Array:
    y = np.asarray(values)
    if y.shape != rows.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"`labels` must be {len(rows)} integers, one a row. Received: shape={y.shape}, "
            f"dtype={y.dtype}"
        )
    if y.min() < 0 or y.max() >= rows.shape[1]:
        raise ValueError(
            f"`labels` must be between 0 and {rows.shape[1] - 1}. Received: labels from {y.min()} "
            f"to {y.max()}"
        )
    return y


def _checked(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Array, Array]:
    p = _probabilities(probabilities)
    return p, _labels(labels, p)
