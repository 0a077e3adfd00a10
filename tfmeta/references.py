"""What simple methods score on the very episodes that a learner is scored on.

A learner that loses to one of them had better be replaced by it, which its own score does not tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.embeddings import embedding_of
from tfmeta.meta_learner import MetaLearner
from tfmeta.paired import Difference
from tfmeta.same_parts import unadapted
from tfmeta.score_table import ci95, in_words, is_worse, table, written
from tfmeta.scoring import Chunk, predictions, score, share_right
from tfmeta.simple_heads import HEADS, NotFiniteError, OnEmbeddings, flat, real, why_not_raw
from tfmeta.simple_regression import Means, ridge_error
from tfmeta.types import Array

CHANCE, BEFORE = "chance", "before adaptation"
EMBEDDING, RAW = "the embedding", "raw inputs"


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a simple method scores on the episodes of an `Evaluation`.

    Attributes:
        per_episode: `[episodes]`, the accuracy or the mean squared error of each.
        difference: The learner's scores less these, as a `tfmeta.Difference`.

    Example:
        >>> result = tfmeta.evaluate(learner, test_sampler, references=True)
        >>> result.references["nearest centroid on raw inputs"].difference.ci95
    """

    per_episode: Array
    difference: Difference

    @property
    def mean(self) -> float:
        """The mean over episodes."""
        return float(self.per_episode.mean())

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % interval of the mean; NaN for a single episode."""
        return ci95(self.per_episode)


class References:
    """Scores simple methods on one episode after another.

    Args:
        learner: The learner that is scored, built.
        inputs: The first episode's.
        targets: The first episode's.
        ignored: The class that the loss leaves out, if there is one.

    Attributes:
        left_out: Why some are not scored, by name.
    """

    def __init__(
        self, learner: MetaLearner, inputs: Any, targets: Array, ignored: int | None
    ) -> None:
        self.left_out: dict[str, str] = {}
        self._scores: dict[str, list[float]] = {}
        self._ignored = ignored
        self._classes = bool(np.issubdtype(targets.dtype, np.integer))
        self._unadapted = unadapted(learner) if isinstance(learner, GradientBased) else None
        self._means = Means()
        self._heads: dict[str, OnEmbeddings] = {}
        inputs, _ = real(inputs, targets)
        raw = why_not_raw(inputs["support_x"])
        if raw is not None:
            self.left_out[RAW] = raw
        if not self._classes:
            return
        labels = np.asarray(inputs["support_y"])
        self._simple = labels.ndim == 2 and not (ignored is not None and (labels == ignored).any())
        if not self._simple:
            self.left_out = {"simple methods": "they take one class for each example"}
            return
        # A model of several inputs may have one embedding, but what is read here is one tensor.
        several = keras.tree.is_nested(inputs["support_x"])
        embed = raw if raw is not None and several else embedding_of(learner)
        if isinstance(embed, str):
            self.left_out = {EMBEDDING: embed, **self.left_out}
        else:
            self._heads[EMBEDDING] = OnEmbeddings(embed, HEADS, learner.variable_dtype)
        if raw is None:
            self._heads[RAW] = OnEmbeddings(flat, HEADS, "float32")

    def see(self, chunk: Chunk, counted: list[Array]) -> None:
        """Score some more episodes.

        Args:
            chunk: The episodes.
            counted: Of each, which targets count, as `tfmeta.scoring.predictions` yields it.
        """
        if self._unadapted is not None:
            for predicted, targets, mask in predictions(self._unadapted, chunk):
                self._add(BEFORE, score(predicted, targets, mask, self._classes, self._ignored))
        episodes = [
            (*real(*episode), mask) for episode, mask in zip(chunk.drawn, counted, strict=True)
        ]
        if not self._classes:
            for episode in episodes:
                self._add("mean of the support set", self._means.of_task(*episode))
                if RAW not in self.left_out:
                    self._add(f"ridge on {RAW}", ridge_error(*episode))
        elif self._simple:
            for inputs, _, _ in episodes:
                self._add(CHANCE, 1 / len(np.unique(inputs["support_y"])))
            self._see_heads(chunk, episodes)

    def compared_with(self, per_episode: Array) -> dict[str, Reference]:
        """Return the references, given the learner's own scores of the episodes."""
        scores = {name: np.array(values) for name, values in self._scores.items()}
        if not self._classes:
            scores["global mean"] = self._means.of_all()
        names = sorted(scores, key=lambda name: (name != CHANCE, name != BEFORE))
        return {
            name: Reference(scores[name], Difference(per_episode - scores[name])) for name in names
        }

    def _see_heads(self, chunk: Chunk, episodes: list[Any]) -> None:
        features: dict[str, Any] = {}
        for kind, heads in list(self._heads.items()):
            try:
                features[kind] = z = heads.features(
                    [inputs for inputs, _, _ in episodes], chunk.size, chunk.first
                )
            except NotFiniteError as error:
                self._leave_out(kind, str(error))
                continue
            if kind == RAW and EMBEDDING in features and _are_same(z, features[EMBEDDING]):
                self._leave_out(kind, "they are what the embedding is")
                continue
            answers = heads.answers(z, chunk.size)
            for (_, targets, mask), answer in zip(episodes, answers, strict=True):
                for name, found in answer.items():
                    right = share_right(found, targets, mask, self._ignored)
                    self._add(f"{name} on {kind}", right)

    def _add(self, name: str, value: float) -> None:
        self._scores.setdefault(name, []).append(value)

    def _leave_out(self, kind: str, reason: str) -> None:
        del self._heads[kind]
        self.left_out[kind] = reason
        for name in [name for name in self._scores if name.endswith(f" on {kind}")]:
            del self._scores[name]


def lines(references: Mapping[str, Reference], left_out: Mapping[str, str], metric: str) -> str:
    """Return references as a table, with what is left out and why."""
    rows = [(name, found.per_episode, found.difference) for name, found in references.items()]
    shown = table(rows, metric, p_values=False)
    shown += [f"  left out: {name}, for {reason}" for name, reason in left_out.items()]
    return "\n".join(["On the same episodes, and the learner's score less theirs:", *shown])


def warnings_of(
    learner: MetaLearner, references: Mapping[str, Reference], metric: str
) -> tuple[str, ...]:
    """Return in words where a learner does worse than a reference, by more than chance.

    Args:
        learner: The learner.
        references: Those that it is compared with.
        metric: What they are scored by.
    """
    better = {
        name: found for name, found in references.items() if is_worse(found.difference, metric)
    }
    before = better.pop(BEFORE, None)
    said = [] if before is None else [_of_adaptation(learner, before, metric)]
    if better:
        others = [(name, found.difference) for name, found in better.items()]
        said.append(in_words(type(learner).__name__, others, metric))
    return tuple(said)


def _of_adaptation(learner: Any, before: Reference, metric: str) -> str:
    steps = learner.steps(False)
    given = learner.rule.learning_rate
    rates = ", ".join(f"{rate:g}" for rate in (given if isinstance(given, tuple) else (given,)))
    learnt = "learnt from " if getattr(learner, "learned_rates", None) is not None else ""
    start, end = (
        written(value, 0.0, metric) for value in (before.mean, before.mean + before.difference.mean)
    )
    changes = "lowers the accuracy" if metric == "accuracy" else "raises the error"
    return (
        f"Adaptation {changes} from {start} to {end}: {steps} inner step{'s' * (steps > 1)} at the "
        f"rate {learnt}{rates}. Fewer steps or a lower rate may help; "
        "tfmeta.suggest_inner_rate looks for one."
    )


def _are_same(some: list[Any], others: list[Any]) -> bool:
    return all(
        a[name].shape == b[name].shape and np.array_equal(a[name], b[name])
        for a, b in zip(some, others, strict=True)
        for name in ("support_x", "query_x")
    )
