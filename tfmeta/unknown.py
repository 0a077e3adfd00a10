"""`unknown` as an answer: a threshold that keeps a rate, fitted on classes that are not shown.

References:
    - Hendrycks, Gimpel. *A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
      Neural Networks.* ICLR 2017.
    - Hendrycks et al. *Scaling Out-of-Distribution Detection for Real-World Settings.* ICML 2022.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfmeta import calibration
from tfmeta.evaluation import logits_of_queries
from tfmeta.threshold import SCORES, Threshold, check_score, scores
from tfmeta.types import Array

__all__ = ["Threshold", "fit", "fit_predictions"]


def fit(
    learner: Any,
    sampler: Any,
    episodes: int = 600,
    *,
    support_ways: int,
    false_acceptance: float | None = None,
    false_rejection: float | None = None,
    score: str | None = None,
    verbose: bool = True,
) -> Threshold:
    """Return from which score on answers are given, so that one of two rates is kept.

    Of each episode the support set keeps the classes `0 .. support_ways - 1`; the queries of the
    others have no right answer. False acceptance is the share of them that is answered, false
    rejection the share of all other queries that is not. Where the value lies that keeps one of
    them, and how well the two kinds can be told apart at all, depends on how many classes are
    shown, with how many examples: let episodes have as many as later tasks. Episodes are drawn as
    for `tfmeta.uncertainty`.

    Args:
        learner: A learner of classes; those with an inner loop must be compiled with their loss.
        sampler: Of validation classes, an `EpisodeSampler` or whatever has its `batch`, or a
            `tf.data.Dataset`. Classes that the learner was trained on are known to it better than
            any later ones, and the rate would not be kept.
        episodes: How many, at least 1.
        support_ways: How many classes of each episode are shown; the sampler's ways are more.
        false_acceptance: The rate to keep, between 0 and 1; or
        false_rejection: this one. Exactly one is given.
        score: `"probability"` or `"prediction"`, as `Threshold` has them; by default the one that
            tells the two kinds of queries of these episodes apart better, by the area under the
            receiver operating characteristic.
        verbose: Whether to show a progress bar.

    Returns:
        A `Threshold`, which has both rates on these episodes. With N queries of a kind, the one
        that is kept is at most the asked one, and less by at most 1/N where no scores are equal.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If none or both of the rates are given, an argument is out of range, the targets
            are no classes, or the learner's scores are so much alike that all queries would be
            answered or none, as those of one nearest neighbour.

    Example:
        ```python
        sampler = tfmeta.data.EpisodeSampler(validation, ways=10, shots=1, queries=15, seed=0)
        threshold = tfmeta.unknown.fit(learner, sampler, support_ways=5, false_acceptance=0.05)
        adapted = learner.adapt(support_x, support_y)
        threshold(adapted.predict(images))                     # true where the answer is "unknown"
        ```
    """
    _asked(false_acceptance, false_rejection, score)
    z, y = logits_of_queries(learner, sampler, episodes, support_ways, verbose=verbose)
    return fit_predictions(
        z,
        y < support_ways,
        false_acceptance=false_acceptance,
        false_rejection=false_rejection,
        score=score,
    )


def fit_predictions(
    predictions: Array,
    shown: Array,
    *,
    false_acceptance: float | None = None,
    false_rejection: float | None = None,
    score: str | None = None,
) -> Threshold:
    """Return from which score on answers are given, of predictions that are there already.

    Args:
        predictions: `[n, ways]`.
        shown: Booleans `[n]`, true where the right answer is one of the ways.
        false_acceptance: As for `fit`.
        false_rejection: As for `fit`.
        score: As for `fit`.

    Returns:
        A `Threshold`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: As for `fit`.

    Example:
        >>> z = np.array([[9.0, 0.0], [0.0, 5.0], [1.0, 0.0], [0.5, 0.0]])
        >>> shown = np.array([True, True, False, False])
        >>> tfmeta.unknown.fit_predictions(z, shown, false_rejection=0.1)(z)
        array([False, False,  True,  True])
    """
    rate = _asked(false_acceptance, false_rejection, score)
    z, shown = np.asarray(predictions), np.asarray(shown)
    if z.ndim != 2 or shown.shape != z.shape[:1] or shown.dtype != bool:
        raise ValueError(
            "`predictions` and `shown` must be numbers [n, ways] and booleans [n]. Received: "
            f"shapes {z.shape} and {shown.shape}, and {shown.dtype}"
        )
    if not shown.any() or shown.all():
        raise ValueError(
            "There must be queries of classes that are shown, and of others. Received: "
            f"{shown.sum()} and {(~shown).sum()}"
        )
    found = {name: scores(z, name).numpy() for name in SCORES if score in (None, name)}
    best = max(found, key=lambda name: calibration.auroc(found[name], shown))
    known, others = found[best][shown], found[best][~shown]
    value = _accepting(others, rate) if false_rejection is None else _rejecting(known, rate)
    accepted, rejected = np.mean(others >= value), np.mean(known < value)
    if accepted == 1 - rejected and accepted in (0, 1):
        raise ValueError(
            "`learner` must be surer of some queries than of others, for a rate to be kept. "
            f"Received: one of which {'each' if accepted else 'no'} query would be answered at "
            f"the rate {rate}, by {best!r} as score"
        )
    return Threshold(float(value), best, float(accepted), float(rejected))


def _asked(false_acceptance: Any, false_rejection: Any, score: Any) -> float:
    """Return the one rate that is asked for."""
    rates = {"false_acceptance": false_acceptance, "false_rejection": false_rejection}
    given = [_rate(name, rate) for name, rate in rates.items() if rate is not None]
    if len(given) != 1:
        raise ValueError(
            "Exactly one of `false_acceptance` and `false_rejection` must be given. Received: "
            f"false_acceptance={false_acceptance}, false_rejection={false_rejection}"
        )
    if score is not None:
        check_score(score)
    return given[0]


def _accepting(others: Array, rate: float) -> Any:
    """Return the least value that at most this share of scores reaches."""
    falling = np.sort(others)[::-1]
    return np.nextafter(falling[math.floor(rate * len(others))], np.float32(np.inf))


def _rejecting(known: Array, rate: float) -> Any:
    """Return the greatest value that at most this share of scores is below."""
    return np.sort(known)[math.floor(rate * len(known))]


def _rate(name: str, rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number):
        raise TypeError(f"`{name}` must be a number. Received: {name}={rate!r}")
    if not 0 < rate < 1:
        raise ValueError(f"`{name}` must be between 0 and 1. Received: {name}={rate!r}")
    return float(rate)
