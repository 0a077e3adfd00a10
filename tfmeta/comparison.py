"""Several learners, and classifiers of other packages, on the same episodes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from tfmeta.agreement import ignored_class
from tfmeta.checks import check_dict, did_you_mean
from tfmeta.competitors import Classifier, Encoder, Fitted, Scores, baselines
from tfmeta.meta_learner import MetaLearner
from tfmeta.paired import Difference
from tfmeta.score_table import in_words, is_worse, table
from tfmeta.scoring import chunks, predictions, score, source_of
from tfmeta.simple_heads import NotFiniteError, real, why_not_raw
from tfmeta.types import Array, Sampler

Compared: TypeAlias = MetaLearner | Classifier | tuple[Encoder, Classifier]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What several learners score on the same episodes.

    It prints as a table, the best first: each with its mean and 95 % interval, and the paired
    difference from the best one with its own interval and the p-value of a paired t-test. The
    p-values are those of one pair each. Below stands in words who does worse than a baseline.

    Attributes:
        per_episode: By name `[episodes]`, the accuracy or the mean squared error of each.
        metric: `"accuracy"` or `"mean squared error"`.
        baselines: Which of the names are no learner's that was given.
        left_out: Why there are some baselines less, by name.
    """

    per_episode: Mapping[str, Array]
    metric: str
    baselines: tuple[str, ...] = ()
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ranking(self) -> list[str]:
        """All names, the best first."""
        sign = -1 if self.metric == "accuracy" else 1
        return sorted(self.per_episode, key=lambda name: sign * self.per_episode[name].mean())

    def difference(self, name: str, other: str) -> Difference:
        """Return the score of one less that of another, episode by episode.

        Raises:
            ValueError: If a name is unknown.
        """
        for known in (name, other):
            if known not in self.per_episode:
                raise ValueError(
                    f"`name` and `other` must be among {', '.join(map(repr, self.per_episode))}. "
                    f"Received: {known!r}.{did_you_mean(known, self.per_episode)}"
                )
        return Difference(self.per_episode[name] - self.per_episode[other])

    @property
    def warnings(self) -> tuple[str, ...]:
        """In words, which learner does worse than a baseline, by more than chance."""
        said = []
        for name in self.per_episode:
            if name in self.baselines:
                continue
            others = [(baseline, self.difference(name, baseline)) for baseline in self.baselines]
            better = [pair for pair in others if is_worse(pair[1], self.metric)]
            if better:
                said.append(in_words(name, better, self.metric))
        return tuple(said)

    def plot(self, path: str | os.PathLike[str], title: str = "") -> None:
        """Draw the scores with their intervals, and the differences from the best.

        Args:
            path: The image file to write.
            title: A line above the picture.
        """
        from tfmeta import plots

        best = self.ranking[0]
        plots.comparison(
            {name: self.per_episode[name] for name in self.ranking},
            {name: self.difference(name, best).ci95 for name in self.ranking},
            path,
            metric=self.metric,
            baselines=self.baselines,
            title=title,
        )

    def __str__(self) -> str:
        """Return the scores as a table."""
        best, *others = self.ranking
        rows: list[Any] = [(best, self.per_episode[best], None)]
        rows += [(name, self.per_episode[name], self.difference(name, best)) for name in others]
        number = len(self.per_episode[best])
        count = f"{number} episode{'s' * (number > 1)}"
        head = f"{self.metric}, 95 % CI, {count}; differences from the best"
        shown = table(rows, self.metric, p_values=True)
        shown += [f"  left out: {name}, for {reason}" for name, reason in self.left_out.items()]
        return "\n".join([head, *shown, *self.warnings])


def compare(
    learners: Mapping[str, Compared],
    sampler: Sampler | tf.data.Dataset,
    episodes: int = 600,
    *,
    verbose: bool = True,
) -> Comparison:
    """Score several learners on the same episodes, which are those of `tfmeta.evaluate`.

    Beside them there are always baselines: nearest centroid on the embedding of each learner that
    has one and on the raw inputs, flattened; in regression the mean of each support set, and
    ridge regression on its raw inputs.

    Args:
        learners: By name: learners of this package; objects with `fit` and `predict`, as
            scikit-learn's, which are fitted to each support set, its examples flattened; or pairs
            `(encoder, classifier)`, for which `encoder(x)` makes features `[n, d]` of examples
            `[n, ...]`. What has `fit` and `predict` stays as it is: a copy is fitted.
        sampler: An `EpisodeSampler`, a `FunctionSampler`, or whatever has their `batch`; or a
            `tf.data.Dataset` of `(inputs, targets)`.
        episodes: How many, at least 1.
        verbose: Whether to show a progress bar.

    Returns:
        A `Comparison`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there are no learners, one has the name of a baseline, examples cannot be
            flattened for a classifier, an encoder returns no vectors, or an answer is not finite or
            of another shape than the targets; the learner is named, and the episode.

    Example:
        ```python
        from sklearn.linear_model import LogisticRegression

        comparison = tfmeta.compare(
            {
                "prototypical": learner,
                "logistic": (learner.encoder, LogisticRegression()),
                "logistic, raw": LogisticRegression(),
            },
            test_sampler,
        )
        print(comparison)
        comparison.plot("comparison.png")
        ```
    """
    own = _checked(learners)
    ignored = _ignored(own)
    others: dict[str, Scores] = {}
    left_out: dict[str, str] = {}
    scores: dict[str, list[float]] = {name: [] for name in learners}
    classes = True
    for chunk in chunks(own.values(), source_of(sampler), episodes, verbose=verbose):
        drawn = [real(*episode) for episode in chunk.drawn]
        if chunk.first == 0:
            inputs, targets = drawn[0]
            classes = bool(np.issubdtype(targets.dtype, np.integer))
            others, left_out = _others(learners, inputs, classes, ignored)
        counted = [np.ones(targets.shape[:2], bool) for _, targets in drawn]
        for name, learner in own.items():
            found = predictions(learner, chunk, f"learners[{name!r}]")
            for i, (predicted, targets, mask) in enumerate(found):
                counted[i] = mask
                scores[name].append(score(predicted, targets, mask, classes, ignored))
        seen = [(*episode, mask) for episode, mask in zip(drawn, counted, strict=True)]
        for name, scored in list(others.items()):
            try:
                scores.setdefault(name, []).extend(scored(chunk, seen))
            except NotFiniteError as error:  # of a baseline, which nobody asked for
                left_out[name] = f"its features are {error}"
                del others[name], scores[name]
    return Comparison(
        {name: np.array(values) for name, values in scores.items()},
        "accuracy" if classes else "mean squared error",
        tuple(name for name in scores if name not in learners),
        left_out,
    )


def _checked(learners: Any) -> dict[str, MetaLearner]:
    """Return those of the package; raise unless all of them can be compared."""
    check_dict("learners", learners, "names and learners", "learner")
    for name, learner in learners.items():
        if not isinstance(name, str):
            raise TypeError(f"`learners` must have names for keys. Received: {name!r}")
        pair = isinstance(learner, tuple) and len(learner) == 2 and callable(learner[0])
        classifier = learner[1] if pair else learner
        fits = not isinstance(classifier, type | keras.Model) and all(
            callable(getattr(classifier, method, None)) for method in ("fit", "predict")
        )
        if not fits and not isinstance(learner, MetaLearner):
            raise TypeError(
                "`learners` must be learners of tfmeta, objects with `fit` and `predict`, or pairs "
                f"(encoder, object with `fit` and `predict`). Received: {name!r}: {learner!r}"
            )
    return {name: x for name, x in learners.items() if isinstance(x, MetaLearner)}


def _ignored(own: Mapping[str, MetaLearner]) -> int | None:
    """Return the class that no loss counts, if there is one."""
    found = {name: ignored_class(learner.loss) for name, learner in own.items()}
    if len(set(found.values())) > 1:
        raise ValueError(
            "`learners` must have losses that leave out the same class, to be scored by the same "
            f"queries. Received: ignore_class={found}"
        )
    return next(iter(found.values()), None)


def _others(
    learners: Mapping[str, Any], inputs: dict[str, Any], classes: bool, ignored: int | None
) -> tuple[dict[str, Scores], dict[str, str]]:
    """Return what is no learner of the package, and why some baselines are left out."""
    found: dict[str, Scores] = {}
    flattened = why_not_raw(inputs["support_x"])
    for name, learner in learners.items():
        if isinstance(learner, MetaLearner):
            continue
        encoder, classifier = learner if isinstance(learner, tuple) else (None, learner)
        if encoder is None and flattened is not None:
            raise ValueError(
                f"`learners[{name!r}]` must be a pair (encoder, classifier) for examples that "
                f"cannot be flattened to numbers. Received: a classifier, and {flattened}"
            )
        found[name] = Fitted(name, classifier, encoder, classes, ignored)
    others, left_out = baselines(learners, inputs, classes, ignored)
    taken = [name for name in others if name in learners]
    if taken:
        raise ValueError(f"`learners` must have names that no baseline has. Received: {taken[0]!r}")
    return {**found, **others}, left_out
