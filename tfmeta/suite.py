"""Learners on several data sets, in one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta.checks import check_dict
from tfmeta.comparison import Compared, Comparison, compare
from tfmeta.meta_learner import MetaLearner
from tfmeta.score_table import ci95, written
from tfmeta.types import Sampler


@dataclasses.dataclass(frozen=True)
class Suite:
    """What learners and baselines score on several data sets.

    It prints as a table, a row for each method and a column for each data set, with 95 % intervals
    and mean ranks, the best first. Below stands in words where a learner does worse than a
    baseline.

    Attributes:
        comparisons: By data set, the scores of all methods on the same episodes.
        transductive: The names of the learners that answer the queries of an episode together.
    """

    comparisons: Mapping[str, Comparison]
    transductive: tuple[str, ...] = ()

    def ranks(self, name: str) -> dict[str, float]:
        """Return the rank of each method on a data set, from 1.

        The best method and all whose paired difference from it has a 95 % interval with 0 in it
        share the mean of their places; then the best of the others likewise, and so on.

        Args:
            name: The data set.
        """
        comparison = self.comparisons[name]
        left = comparison.ranking
        found: dict[str, float] = {}
        while left:
            best = left[0]
            tied = [m for m in left if not comparison.difference(m, best).significant]
            place = len(found) + (1 + len(tied)) / 2
            found |= dict.fromkeys(tied, place)
            left = [method for method in left if method not in tied]
        return found

    @property
    def mean_ranks(self) -> dict[str, float]:
        """The mean over data sets of the rank of each method that all of them have; best first."""
        ranks = [self.ranks(name) for name in self.comparisons]
        methods = [m for m in ranks[0] if all(m in of for of in ranks)]
        means = {m: float(np.mean([of[m] for of in ranks])) for m in methods}
        return dict(sorted(means.items(), key=lambda pair: pair[1]))

    @property
    def warnings(self) -> tuple[str, ...]:
        """In words, on which data set a learner does worse than a baseline."""
        return tuple(
            f"On {name}: {line}"
            for name, comparison in self.comparisons.items()
            for line in comparison.warnings
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all figures of the table as numbers and texts, for JSON."""
        return {
            name: {
                "metric": comparison.metric,
                "episodes": len(next(iter(comparison.per_episode.values()))),
                "methods": {
                    method: {
                        "mean": float(scores.mean()),
                        "ci95": ci95(scores),
                        "rank": self.ranks(name)[method],
                        "baseline": method in comparison.baselines,
                    }
                    for method, scores in comparison.per_episode.items()
                },
                "left_out": dict(comparison.left_out),
            }
            for name, comparison in self.comparisons.items()
        }

    def __str__(self) -> str:
        """Return the table."""
        means = self.mean_ranks
        every = dict.fromkeys(m for of in self.comparisons.values() for m in of.per_episode)
        methods = [*means, *(m for m in every if m not in means)]
        rows = [["", *self.comparisons, "mean rank"]]
        for method in methods:
            cells = [self._cell(of, method) for of in self.comparisons.values()]
            rows.append([method, *cells, f"{means[method]:.2f}" if method in means else "–"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        metrics = " and ".join(dict.fromkeys(of.metric for of in self.comparisons.values()))
        shown = [f"{metrics}, 95 % CI, {self._episodes()}"]
        for name, *cells in rows:
            right = (f"{x:>{width}}" for x, width in zip(cells, widths[1:], strict=True))
            shown.append(f"  {name:{widths[0]}}  {'  '.join(right)}".rstrip())
        left_out = [(name, of.left_out) for name, of in self.comparisons.items()]
        shown += [
            f"  left out on {n}: {m}, for {why}" for n, of in left_out for m, why in of.items()
        ]
        if self.transductive:
            together = "transductive, the queries of an episode being answered together"
            shown.append(f"{together}: {', '.join(self.transductive)}")
        return "\n".join([*shown, *self.warnings])

    def _episodes(self) -> str:
        number = len(next(iter(next(iter(self.comparisons.values())).per_episode.values())))
        return f"{number} episode{'s' * (number > 1)} of each data set"

    @staticmethod
    def _cell(comparison: Comparison, method: str) -> str:
        scores = comparison.per_episode.get(method)
        if scores is None:
            return "–"
        return written(float(scores.mean()), ci95(scores), comparison.metric, "")


def evaluate_suite(
    learners: MetaLearner | Mapping[str, Compared],
    samplers: Mapping[str, Sampler | tf.data.Dataset],
    episodes: int = 600,
    *,
    verbose: bool = True,
) -> Suite:
    """Score one or more learners on several data sets, beside baselines, in one table.

    On each data set the scores and baselines are those of `tfmeta.compare`, without the baselines
    that score as a learner does in every episode, since they are the same method. What a learner is
    worth on classes unlike those that it was trained on shows best beside a centroid on raw inputs,
    and on an encoder that has seen none of the data.

    Args:
        learners: A learner, or several as for `tfmeta.compare`: a pair `(encoder, classifier)` is
            a frozen encoder with a classifier of scikit-learn.
        samplers: By the name of the data set: a sampler, or a `tf.data.Dataset`.
        episodes: How many of each, at least 1.
        verbose: Whether to show progress bars.

    Returns:
        A `Suite`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there are no samplers, or `tfmeta.compare` raises it; the data set is named.

    Example:
        ```python
        _, _, omniglot = tfmeta.data.load("omniglot", "data", size=32)
        _, _, photos = tfmeta.data.load("cifar_fs", "data")
        suite = tfmeta.evaluate_suite(
            {"trained on both": learner, "trained on photos": other},
            {"omniglot": sampler_of(omniglot), "cifar_fs": sampler_of(photos)},
        )
        print(suite)
        suite.mean_ranks
        ```

    Reference:
        Triantafillou et al., *Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few
        Examples*, ICLR 2020, which has such tables and ranks.
    """
    if isinstance(learners, MetaLearner):
        learners = {type(learners).__name__: learners}
    check_dict("samplers", samplers, "data sets and samplers", "sampler")
    found = {}
    for name, sampler in samplers.items():
        try:
            found[name] = compare(learners, sampler, episodes, verbose=verbose)
        except ValueError as error:
            raise ValueError(f"On {name!r}: {error}") from error
    together = [n for n, x in learners.items() if isinstance(x, MetaLearner) and x.transductive]
    return Suite(_without_copies(found), tuple(together))


def _without_copies(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """Leave out baselines that answer as a learner does, as a Prototypical Network's own centroid.

    They would take a place each in the ranking.
    """
    first = next(iter(comparisons.values()))
    own = [name for name in first.per_episode if name not in first.baselines]
    copies = {
        baseline
        for baseline in first.baselines
        if any(
            all(
                baseline in of.per_episode
                and np.array_equal(of.per_episode[baseline], of.per_episode[learner])
                for of in comparisons.values()
            )
            for learner in own
        )
    }
    return {
        name: dataclasses.replace(
            of,
            per_episode={m: x for m, x in of.per_episode.items() if m not in copies},
            baselines=tuple(m for m in of.baselines if m not in copies),
        )
        for name, of in comparisons.items()
    }
