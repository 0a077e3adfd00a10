"""All that a report says of learners, from one pass over the same episodes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfmeta import calibration
from tfmeta.comparison import Comparison
from tfmeta.evaluation import Answered, Evaluation, Scored, Uncertainty
from tfmeta.meta_learner import MetaLearner
from tfmeta.reporting.classes import ByClass, classes_drawn
from tfmeta.scoring import answers, chunks, source_of
from tfmeta.simple_heads import real
from tfmeta.types import Array

# How many of the first episodes are shown; the hardest one is shown as well.
_FIRST = 2
# References that depend on a learner; the others are the same for all of them.
_OF_LEARNER = ("the embedding", "before adaptation")


@dataclasses.dataclass(frozen=True)
class Example:
    """An episode to be shown.

    Attributes:
        number: Of the episode.
        why: Why this one.
        inputs: Without padding, with an axis of one task.
        labels: `[1, queries, ...]`, or the targets of regression.
        answers: By the learner's name what it predicted, as `labels` are.
        scores: By the learner's name.
        classes: `[ways]`, the class that each label stands for; `None` where it is not known.
    """

    number: int
    why: str
    inputs: Mapping[str, Any]
    labels: Array
    answers: Mapping[str, Array]
    scores: Mapping[str, float]
    classes: Array | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a report tells of some learners.

    Attributes:
        evaluations: By the learner's name what `tfmeta.evaluate` returns of these episodes.
        uncertainties: What `tfmeta.uncertainty` returns of them; empty where an example has not one
            class.
        classes: Counts by class, or in words why there are none.
        examples: Some of the episodes.
        seconds: By the learner's name how long it took, references and compilation included.
        episodes: How many there were.
    """

    evaluations: Mapping[str, Evaluation]
    uncertainties: Mapping[str, Uncertainty]
    classes: ByClass | str
    examples: list[Example]
    seconds: Mapping[str, float]
    episodes: int

    @property
    def metric(self) -> str:
        """`"accuracy"` or `"mean squared error"`."""
        return next(iter(self.evaluations.values())).metric

    @property
    def comparison(self) -> Comparison:
        """The learners and all references as `tfmeta.compare` would have them."""
        per_episode = {name: found.per_episode for name, found in self.evaluations.items()}
        several = len(per_episode) > 1
        left_out: dict[str, str] = {}
        for learner, found in self.evaluations.items():

            def named(what: str, learner: str = learner) -> str:
                name = f"{what} of {learner}" if several and what.endswith(_OF_LEARNER) else what
                return f"{name} (reference)" if name in self.evaluations else name

            for reference, scored in found.references.items():
                per_episode.setdefault(named(reference), scored.per_episode)
            left_out |= {named(what): why for what, why in found.left_out.items()}
        baselines = tuple(name for name in per_episode if name not in self.evaluations)
        return Comparison(per_episode, self.metric, baselines, left_out)


def measure(
    learners: Mapping[str, MetaLearner],
    sampler: Any,
    episodes: int,
    *,
    references: bool,
    from_logits: bool,
    verbose: bool,
) -> Measured:
    """Adapt all learners to the same episodes, once, and gather what a report tells.

    The arguments are those of `tfmeta.report`.
    """
    scored = {
        name: Scored(learner, references, f"learners[{name!r}]")
        for name, learner in learners.items()
    }
    ignored = next(iter(scored.values())).ignored
    uncertain = {name: Answered(of.ignored, from_logits) for name, of in scored.items()}
    draw = classes_drawn(sampler)
    by_class = draw if isinstance(draw, str) else ByClass(sampler.source.class_names, [*learners])
    seconds = dict.fromkeys(learners, 0.0)
    kept = _Kept()
    one_class = False
    for chunk in chunks(learners.values(), source_of(sampler), episodes, verbose=verbose):
        found = {}
        for name, of in scored.items():
            start = time.perf_counter()
            found[name] = of.see(chunk)
            seconds[name] += time.perf_counter() - start
        classes = all(of.classes for of in scored.values())
        for i, drawn in enumerate(chunk.drawn):
            number = chunk.first + i
            answered = {}
            for name, every in found.items():
                predicted, targets, counted = every[i]
                # Of images whose every pixel has a class, there would be too many to be kept.
                one_class = classes and targets.ndim == 2
                if one_class:
                    uncertain[name].see(predicted, targets, counted)
                answered[name] = predicted.argmax(-1) if classes else predicted
            of_task = None
            if isinstance(by_class, ByClass) and one_class:
                of_task = draw(number, 1)[0]
                labels = np.where(answers(targets, counted, ignored), targets, -1)[0]
                by_class.see(number, of_task, labels, {n: x[0] for n, x in answered.items()})
            scores = {name: of.scores[number] for name, of in scored.items()}
            inputs, _ = real(*drawn)
            example = Example(number, "", inputs, targets, answered, scores, of_task)
            kept.offer(example, -1 if classes else 1)
    evaluations = {name: of.evaluation() for name, of in scored.items()}
    uncertainties = {}
    if one_class:
        for name, gathered in uncertain.items():
            z, y = gathered.logits_and_labels()
            none = np.zeros((0, z.shape[1]))
            uncertainties[name] = Uncertainty(calibration.softmax(z), y, none, episodes, 1.0)
    elif isinstance(by_class, ByClass):
        by_class = "an example has not one class"
    return Measured(evaluations, uncertainties, by_class, kept.examples, seconds, episodes)


class _Kept:
    """The first episodes, and the one that is hardest for the learners on average."""

    def __init__(self) -> None:
        self._first: list[Example] = []
        self._hardest: Example | None = None
        self._most = -np.inf

    def offer(self, example: Example, sign: int) -> None:
        """Keep an episode, if it is one to be kept; `sign` is -1 where a high score is good."""
        if example.number < _FIRST:
            why = f"number {example.number + 1} of those drawn, not chosen"
            self._first.append(dataclasses.replace(example, why=why))
        difficulty = sign * float(np.mean(list(example.scores.values())))
        if difficulty > self._most:
            self._most = difficulty
            why = f"number {example.number + 1}, the one with the worst mean score of all"
            self._hardest = dataclasses.replace(example, why=why)

    @property
    def examples(self) -> list[Example]:
        """Those that were kept, the first ones first."""
        hardest = self._hardest
        if hardest is None or hardest.number < len(self._first):
            return self._first
        return [*self._first, hardest]
