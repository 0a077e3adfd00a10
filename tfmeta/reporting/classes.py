"""Which classes of a data set are told apart, over many episodes of some of them each."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfmeta.types import Array

# How many mistakes of a class are remembered, to be shown.
_MISTAKES = 4


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A query that some learner got wrong.

    Attributes:
        episode: The number of the episode.
        query: Which of its queries.
        answers: By the learner's name the class that it took it for; those that were right, too.
    """

    episode: int
    query: int
    answers: Mapping[str, int]


class ByClass:
    """Counts of each class over episodes.

    Args:
        class_names: Of the data set.
        learners: The names of the learners.

    Attributes:
        class_names: Of the data set.
        queries: `[classes]`, how many queries each class had.
        right: By the learner's name `[classes]`, how many of them it got right.
        mistakes: By class the first few.
    """

    def __init__(self, class_names: Sequence[str], learners: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self.queries = np.zeros(len(class_names), np.int64)
        self.right = {name: np.zeros(len(class_names), np.int64) for name in learners}
        self.mistakes: dict[int, list[Mistake]] = defaultdict(list)
        # Of pairs (class, other): in sparse form, for there may be thousands of classes.
        self._met: dict[tuple[int, int], int] = defaultdict(int)
        self._taken: dict[str, dict[tuple[int, int], int]] = {
            name: defaultdict(int) for name in learners
        }

    def see(
        self, episode: int, classes: Array, labels: Array, answers: Mapping[str, Array]
    ) -> None:
        """Count an episode.

        Args:
            episode: Its number.
            classes: `[ways]`, which class of the data set each label stands for, or -1.
            labels: `[queries]`, negative where a query does not count.
            answers: By the learner's name `[queries]`, the label that it answered with.
        """
        outputs = 1 + max(len(classes), *(int(found.max()) for found in answers.values()))
        # A network may have more outputs than the task has classes.
        of = np.full(outputs, -1)
        of[: len(classes)] = classes
        counted = np.flatnonzero(labels >= 0)
        true = of[labels[counted]]
        np.add.at(self.queries, true, 1)
        there = classes[classes >= 0]
        for c, number in zip(*np.unique(true, return_counts=True), strict=True):
            for other in there:
                self._met[int(c), int(other)] += int(number)
        taken = {name: of[found[counted]] for name, found in answers.items()}
        for name, found in taken.items():
            np.add.at(self.right[name], true[found == true], 1)
            wrong = found != true
            for pair in zip(true[wrong].tolist(), found[wrong].tolist(), strict=True):
                self._taken[name][pair] += 1
        for i in np.flatnonzero(np.any([found != true for found in taken.values()], axis=0)):
            kept = self.mistakes[int(true[i])]
            if len(kept) < _MISTAKES:
                by_name = {name: int(found[i]) for name, found in taken.items()}
                kept.append(Mistake(episode, int(counted[i]), by_name))

    def accuracy(self, name: str) -> Array:
        """Return the share of each class's queries that a learner got right; NaN of none."""
        with np.errstate(invalid="ignore"):
            share: Array = self.right[name] / self.queries
        return share

    @property
    def mean_accuracy(self) -> Array:
        """The mean of the learners' accuracies, `[classes]`; NaN where there were no queries."""
        return np.asarray(np.mean([self.accuracy(name) for name in self.right], axis=0))

    @property
    def hardest(self) -> list[int]:
        """All classes that had queries, those with the lowest mean accuracy first."""
        seen = np.flatnonzero(self.queries)
        return [int(c) for c in seen[np.argsort(self.mean_accuracy[seen], kind="stable")]]

    def rates(self, name: str, classes: Sequence[int]) -> Array:
        """Return how often a learner takes one class for another, `[classes, classes]`.

        Cell (c, d) is the share of the queries of c, of episodes that had d as well, whose answer
        was d; NaN where the two never met.

        Args:
            name: The learner's.
            classes: Which rows and columns.
        """
        found = np.full((len(classes), len(classes)), np.nan)
        for row, c in enumerate(classes):
            for column, d in enumerate(classes):
                if met := self._met.get((c, d), 0):
                    times = self.right[name][c] if c == d else self._taken[name].get((c, d), 0)
                    found[row, column] = times / met
        return found

    def confused(self, name: str, most: int = 15) -> list[tuple[int, int, int, int]]:
        """Return the pairs that a learner confuses most often.

        Args:
            name: The learner's.
            most: How many pairs at most.

        Returns:
            The class, what it was taken for (-1 for no class of the task), how often, and of how
            many queries of the class where both were in the episode; most often first.
        """
        pairs = sorted(self._taken[name].items(), key=lambda pair: (-pair[1], pair[0]))[:most]
        return [
            (c, d, times, self._met.get((c, d), int(self.queries[c]))) for (c, d), times in pairs
        ]

    def most_often(self, name: str) -> dict[int, tuple[int, int]]:
        """Return by class what it was taken for most often, and how often that was."""
        found: dict[int, tuple[int, int]] = {}
        for (c, d), times in self._taken[name].items():
            if times > found.get(c, (0, 0))[1]:
                found[c] = (d, times)
        return found


def classes_drawn(sampler: Any) -> Any:
    """Return what tells the classes of a sampler's episodes, or in words why they are not known."""
    draw = getattr(sampler, "draw_classes", None)
    names = getattr(getattr(sampler, "source", None), "class_names", None)
    if draw is None or names is None:
        return "the sampler does not say which classes its episodes have"
    return draw
