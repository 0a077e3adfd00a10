"""Score a learner on many episodes, with an interval."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.checks import check_count
from tfmeta.meta_learner import MetaLearner, readable
from tfmeta.padding import is_padded
from tfmeta.types import Array, Sampler


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The score of each episode, their mean and its interval.

    The interval is `1.96 s / √n`, with s the standard deviation between the n episodes.

    Attributes:
        per_episode: `[episodes]`, the accuracy in `[0, 1]` or the mean squared error of each.
        metric: `"accuracy"` or `"mean squared error"`.

    Example:
        >>> print(tfmeta.Evaluation(np.array([0.96, 1.0, 0.98]), "accuracy"))
        98.00 % ± 2.26 (95 % CI, 3 episodes)
    """

    per_episode: Array
    metric: str

    @property
    def mean(self) -> float:
        """The mean over episodes."""
        return float(self.per_episode.mean())

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % interval of the mean; NaN for a single episode."""
        n = len(self.per_episode)
        return float(1.96 * self.per_episode.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    def __str__(self) -> str:
        """Return the score as papers print it."""
        n = f"95 % CI, {len(self.per_episode)} episodes"
        if self.metric == "accuracy":
            return f"{100 * self.mean:.2f} % ± {100 * self.ci95:.2f} ({n})"
        return f"{self.mean:.4f} ± {self.ci95:.4f} ({n}, {self.metric})"


def evaluate(
    learner: MetaLearner, sampler: Sampler, episodes: int = 600, *, verbose: bool = True
) -> Evaluation:
    """Adapt to `episodes` tasks and score their queries.

    Integer targets are scored by accuracy, others by the mean squared error. Episode e is task 0
    of the sampler's step e: which episodes they are depends on the sampler's seed only.

    Args:
        learner: A learner; those with an inner loop must be compiled with their loss.
        sampler: An `EpisodeSampler`, a `FunctionSampler`, or whatever has their `batch`.
        episodes: How many, at least 1.
        verbose: Whether to show a progress bar.

    Returns:
        An `Evaluation`: `.mean`, `.ci95`, `.per_episode`.

    Raises:
        TypeError: If `learner` is not a `MetaLearner`, or `sampler` has no `batch`.
        ValueError: If `episodes` is less than 1, the labels or the predictions' shape don't fit,
            or the learner predicts NaN or infinite values.

    Example:
        >>> print(tfmeta.evaluate(learner, test_sampler, episodes=600))
    """
    if not isinstance(learner, MetaLearner):
        raise TypeError(f"`learner` must be a tfmeta.MetaLearner. Received: {learner!r}")
    if not hasattr(sampler, "batch"):
        raise TypeError(
            "`sampler` must be a sampler, not a data set made of one. "
            f"Received: sampler={sampler!r}"
        )
    check_count("episodes", episodes)
    progress = keras.utils.Progbar(episodes, verbose=int(verbose), unit_name="episode")
    scores = np.empty(episodes)
    classes = True
    for episode in range(episodes):
        inputs, targets = sampler.batch(episode, 1)
        if episode == 0:
            learner.check_inputs(inputs)
            classes = np.issubdtype(targets.dtype, np.integer)
        try:
            predictions = np.asarray(learner.predict_on_batch(inputs))
        except tf.errors.InvalidArgumentError as error:
            raise readable(error, f" of episode {episode}") from error
        if not np.isfinite(predictions).all():
            raise ValueError(
                f"`learner` must predict finite values. Received: NaN or infinite predictions in "
                f"episode {episode}; a smaller inner learning rate may help"
            )
        if is_padded(inputs):
            mask = inputs["query_mask"]
            predictions, targets = predictions[mask], targets[mask]
        scores[episode] = _score(predictions, targets, classes)
        progress.update(episode + 1)
    return Evaluation(scores, "accuracy" if classes else "mean squared error")


def _score(predictions: Array, targets: Array, classes: bool) -> Any:
    expected = (*targets.shape, "classes") if classes else targets.shape
    fits = predictions.shape[: targets.ndim] == targets.shape and (
        predictions.ndim == len(expected) and (not classes or predictions.shape[-1] > 1)
    )
    if not fits:
        raise ValueError(
            f"`learner` must predict {list(expected)} for {targets.dtype} targets of shape "
            f"{targets.shape}, with two classes or more. Received: shape={predictions.shape}"
        )
    if classes:
        return np.mean(predictions.argmax(axis=-1) == targets)
    return np.mean((predictions - targets) ** 2)
