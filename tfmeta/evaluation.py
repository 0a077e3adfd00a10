"""Score a learner on many episodes: accuracy with an interval, and how far it can be believed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta import calibration
from tfmeta.agreement import ignored_class
from tfmeta.checks import check_count, check_positive
from tfmeta.meta_learner import MetaLearner
from tfmeta.padding import is_padded
from tfmeta.references import Reference, References, lines, warnings_of
from tfmeta.score_table import ci95
from tfmeta.scoring import (
    Chunk,
    answers,
    check_learner,
    check_shape,
    chunks,
    predictions,
    score,
    source_of,
    spread,
)
from tfmeta.types import Array, Sampler


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The score of each episode, their mean and its interval.

    The interval is `1.96 s / √n`, with s the standard deviation between the n episodes. It prints
    as papers have it; with references, as a table, with a line for each that does better.

    Attributes:
        per_episode: `[episodes]`, the accuracy in `[0, 1]` or the mean squared error of each.
        metric: `"accuracy"` or `"mean squared error"`.
        transductive: Whether the learner answers the queries of an episode together, so that one
            answer depends on the others; it is printed, for such a score is not one of answers
            that are given one by one.
        r2: In regression R², `1 − Σ_e MSE_e / Σ_e Var_e`, with the variance of the targets of each
            episode's queries; NaN where they don't vary. `None` of classes.
        references: What simple methods score on the same episodes, by name; see `evaluate`.
        left_out: Why there are some references less, by name.
        warnings: In words, where a reference does better, by more than chance.

    Example:
        >>> print(tfmeta.Evaluation(np.array([0.96, 1.0, 0.98]), "accuracy"))
        98.00 % ± 2.26 (95 % CI, 3 episodes)
    """

    per_episode: Array
    metric: str
    transductive: bool = False
    r2: float | None = None
    references: Mapping[str, Reference] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """The mean over episodes."""
        return float(self.per_episode.mean())

    @property
    def ci95(self) -> float:
        """Half the width of the 95 % interval of the mean; NaN for a single episode."""
        return ci95(self.per_episode)

    def __str__(self) -> str:
        """Return the score as papers print it, and below the references, if there are any."""
        shown = [self._score()]
        if self.transductive:
            shown.append("transductive: the queries of an episode are answered together")
        if self.references:
            shown[0] += "" if self.r2 is None else f", R² {self.r2:.4f}"
            shown += [lines(self.references, self.left_out, self.metric), *self.warnings]
        return "\n".join(shown)

    def _score(self) -> str:
        """Return the score in a line; of one episode there is no interval."""
        n = f"95 % CI, {len(self.per_episode)} episodes"
        if len(self.per_episode) == 1:
            score = f"{100 * self.mean:.2f} %" if self.metric == "accuracy" else f"{self.mean:.4f}"
            other = "" if self.metric == "accuracy" else f", {self.metric}"
            return f"{score} (1 episode, no interval{other})"
        if self.metric == "accuracy":
            return f"{100 * self.mean:.2f} % ± {100 * self.ci95:.2f} ({n})"
        return f"{self.mean:.4f} ± {self.ci95:.4f} ({n}, {self.metric})"


def evaluate(
    learner: MetaLearner,
    sampler: Sampler | tf.data.Dataset,
    episodes: int = 600,
    *,
    references: bool = False,
    verbose: bool = True,
) -> Evaluation:
    """Adapt to `episodes` tasks and score their queries.

    Integer targets are scored by accuracy, without those that `ignore_class` of the loss leaves
    out; others by the mean squared error. Time steps that Keras masks do not count. Episode e is
    task 0 of the sampler's step e: which episodes they are depends on the sampler's seed only.
    Several are computed at once, where they have one shape.

    With `references` the same episodes are given to methods that need no training, each with the
    paired difference of the learner's scores to its own:

    - `"chance"`, and of a learner with an inner loop `"before adaptation"`, no inner step taken;
    - `"nearest centroid on the embedding"`, `"nearest neighbour …"` and `"logistic regression …"`
      (λ = 1), the embedding being that of the learner's encoder, or what the last dense layer of a
      classifier reads at the initial weights;
    - `"nearest centroid on raw inputs"` and so on, with the examples themselves, flattened;
    - in regression the mean of each support set, the mean of all of them, and ridge regression
      (λ = 1) on the raw inputs of each.

    Where one of them does better, by a 95 % interval of the paired difference that excludes zero,
    the result says so in words. By chance alone one equal to the learner does so one time in forty.

    Args:
        learner: A learner; those with an inner loop must be compiled with their loss.
        sampler: An `EpisodeSampler`, a `FunctionSampler`, or whatever has their `batch`; or a
            `tf.data.Dataset` of `(inputs, targets)`, whose tasks are taken in turn.
        episodes: How many, at least 1.
        references: Whether to score simple methods on the same episodes.
        verbose: Whether to show a progress bar.

    Returns:
        An `Evaluation`: `.mean`, `.ci95`, `.per_episode`, `.references`.

    Raises:
        TypeError: If `learner` is not a `MetaLearner`, `sampler` has no `batch`, or `references`
            is neither true nor false.
        ValueError: If `episodes` is less than 1 or more than a data set has, examples, labels or
            the predictions' shape don't fit, or the learner predicts NaN or infinite values.

    Example:
        >>> print(tfmeta.evaluate(learner, test_sampler, episodes=600))
    """
    check_learner(learner)
    if not isinstance(references, bool):
        raise TypeError(f"`references` must be True or False. Received: references={references!r}")
    scored = Scored(learner, references)
    for chunk in chunks([learner], source_of(sampler), episodes, verbose=verbose):
        scored.see(chunk)
    return scored.evaluation()


class Scored:
    """Scores a learner on one chunk of episodes after another, which others may see as well.

    Args:
        learner: The learner.
        references: Whether to score simple methods, too.
        named: What to call the learner in errors.

    Attributes:
        scores: Of each episode so far.
        classes: Whether they are accuracies.
        ignored: The class that the loss leaves out, if there is one.
    """

    def __init__(self, learner: MetaLearner, references: bool, named: str = "learner") -> None:
        self.learner, self.ignored = learner, ignored_class(learner.loss)
        self.classes = True
        self._references, self._named = references, named
        self._others: References | None = None
        self.scores: list[float] = []
        self._spreads: list[float] = []

    def see(self, chunk: Chunk) -> list[tuple[Array, Array, Array]]:
        """Score some more episodes; return of each what `tfmeta.scoring.predictions` yields."""
        found = list(predictions(self.learner, chunk, self._named))
        for predicted, targets, counted in found:
            self.classes = bool(np.issubdtype(targets.dtype, np.integer))
            scored = score(predicted, targets, counted, self.classes, self.ignored)
            self.scores.append(scored)
            if not self.classes:
                self._spreads.append(spread(targets, counted))
        if self._references:
            if self._others is None:
                inputs, targets = chunk.drawn[0]
                self._others = References(self.learner, inputs, targets, self.ignored)
            self._others.see(chunk, [counted for _, _, counted in found])
        return found

    def evaluation(self) -> Evaluation:
        """Return the scores of all episodes so far."""
        metric = "accuracy" if self.classes else "mean squared error"
        scores = np.array(self.scores)
        found = {} if self._others is None else self._others.compared_with(scores)
        return Evaluation(
            scores,
            metric,
            bool(self.learner.transductive),
            None if self.classes else _r2(self.scores, self._spreads),
            found,
            {} if self._others is None else self._others.left_out,
            warnings_of(self.learner, found, metric),
        )


def _r2(errors: list[float], spreads: list[float]) -> float:
    return 1 - sum(errors) / sum(spreads) if sum(spreads) > 0 else float("nan")


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """What a learner predicted for the queries of many episodes, and the scores of it.

    It prints as a table of the scores.

    Attributes:
        probabilities: `[n, ways]`, for the queries of the classes that were in the support set.
        labels: `[n]`, their classes.
        out_of_task: `[m, ways]`, the probabilities for queries of other classes; m may be 0.
        episodes: How many episodes they come from.
        temperature: By which the logits were divided.

    Example:
        >>> result = tfmeta.uncertainty(learner, test_sampler, temperature=validation_sampler)
        >>> print(result)
        >>> result.expected_calibration_error(bins=10)
        >>> from tfmeta import plots
        >>> plots.reliability_diagram(result.probabilities, result.labels, "diagram.png")
    """

    probabilities: Array
    labels: Array
    out_of_task: Array
    episodes: int
    temperature: float

    @property
    def accuracy(self) -> float:
        """The share of queries that are right."""
        return calibration.accuracy(self.probabilities, self.labels)

    @property
    def negative_log_likelihood(self) -> float:
        """The mean of `-log p[label]`, in nats."""
        return calibration.negative_log_likelihood(self.probabilities, self.labels)

    @property
    def brier_score(self) -> float:
        """The mean squared distance to the label's corner of the simplex, between 0 and 2."""
        return calibration.brier_score(self.probabilities, self.labels)

    def expected_calibration_error(self, bins: int = 15) -> float:
        """The mean gap between confidence and accuracy in bins of confidence."""
        return calibration.expected_calibration_error(self.probabilities, self.labels, bins)

    @property
    def rejection_area(self) -> float:
        """The area under `tfmeta.calibration.rejection_curve`: the mean accuracy of those kept."""
        return float(calibration.rejection_curve(self.probabilities, self.labels)[1].mean())

    @property
    def auroc_entropy(self) -> float:
        """How well entropy tells out-of-task queries from the others; NaN where there are none."""
        return self._auroc(calibration.entropy)

    @property
    def auroc_max_probability(self) -> float:
        """The same of the largest probability, which should be lower for out-of-task queries."""
        return self._auroc(lambda p: -p.max(axis=1))

    def _auroc(self, score: Any) -> float:
        if not len(self.out_of_task):
            return float("nan")
        inside, outside = score(self.probabilities), score(self.out_of_task)
        outer = np.repeat([False, True], [len(inside), len(outside)])
        return calibration.auroc(np.concatenate([inside, outside]), outer)

    def __str__(self) -> str:
        """Return the scores as a table."""
        rows = [
            ("accuracy", f"{100 * self.accuracy:.2f} %"),
            ("negative log likelihood", f"{self.negative_log_likelihood:.4f}"),
            ("Brier score", f"{self.brier_score:.4f}"),
            ("expected calibration error", f"{100 * self.expected_calibration_error():.2f} %"),
            ("area under the rejection curve", f"{100 * self.rejection_area:.2f} %"),
        ]
        queries = f"{len(self.labels)} queries"
        if len(self.out_of_task):
            queries += f", {len(self.out_of_task)} out of task"
            rows += [
                ("out-of-task AUROC, entropy", f"{self.auroc_entropy:.4f}"),
                ("out-of-task AUROC, max probability", f"{self.auroc_max_probability:.4f}"),
            ]
        head = f"{self.episodes} episodes, {queries}, temperature {self.temperature:.3f}"
        return "\n".join([head, *(f"  {name:36}{value:>9}" for name, value in rows)])


def uncertainty(
    learner: MetaLearner,
    sampler: Sampler | tf.data.Dataset,
    episodes: int = 600,
    temperature: float | Sampler | tf.data.Dataset = 1.0,
    from_logits: bool = True,
    *,
    support_ways: int | None = None,
    verbose: bool = True,
) -> Uncertainty:
    """Adapt to `episodes` tasks and score how far the predicted probabilities can be believed.

    The probabilities are `softmax(z / T)` of the predictions z. A learner that averages over
    several models predicts the logarithm of the mean probability, for which that is right too.
    The episodes are those of `tfmeta.evaluate`.

    Args:
        learner: A learner of classes; those with an inner loop must be compiled with their loss.
        sampler: An `EpisodeSampler`, or whatever has its `batch`, or a `tf.data.Dataset`.
        episodes: How many, at least 1.
        temperature: T, or a sampler of validation episodes, on as many of which the T with the
            least negative log likelihood is looked for first.
        from_logits: Whether the learner predicts logits, or else probabilities.
        support_ways: With a number, the support set keeps the classes `0 .. support_ways - 1`
            alone, and the queries of the others are out of task: no answer to them is right. A
            sampler of ten ways with `support_ways=5` has five classes of each. Where batch
            normalisation is transductive, they change the other queries' predictions too.
        verbose: Whether to show a progress bar.

    Returns:
        An `Uncertainty`: the probabilities, the labels, and the scores of them.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the targets are no classes, an argument is out of range, the learner's
            predictions are not finite or (without `from_logits`) no probabilities, or the
            temperature is to be fitted to the very classes that are scored.

    References:
        - Guo et al. *On Calibration of Modern Neural Networks.* ICML 2017.

    Example:
        >>> print(tfmeta.uncertainty(learner, test_sampler, temperature=validation_sampler))
    """
    if hasattr(temperature, "batch"):
        if temperature is sampler or _same_classes(temperature, sampler):
            raise ValueError(
                "`temperature` must be a sampler of validation classes: fitted to the classes that "
                f"are scored it would flatter them. Received: temperature={temperature!r}"
            )
        z, y = _collect(learner, temperature, episodes, from_logits, verbose)
        temperature = calibration.fit_temperature(z, y)
    check_positive("temperature", temperature)
    z, y = logits_of_queries(
        learner, sampler, episodes, support_ways, from_logits=from_logits, verbose=verbose
    )
    p = calibration.softmax(z, temperature)
    inside = y < (np.inf if support_ways is None else support_ways)
    return Uncertainty(p[inside], y[inside], p[~inside], episodes, float(temperature))


def logits_of_queries(
    learner: MetaLearner,
    sampler: Sampler | tf.data.Dataset,
    episodes: int,
    support_ways: int | None,
    *,
    from_logits: bool = True,
    verbose: bool = True,
) -> tuple[Array, Array]:
    """Return the logits `[n, ways]` and the labels `[n]` of all queries of all episodes.

    The arguments are those of `uncertainty`; labels from `support_ways` on are out of task.
    """
    source = sampler if support_ways is None else _OutOfTask(source_of(sampler), support_ways)
    return _collect(learner, source, episodes, from_logits, verbose)


def _collect(
    learner: MetaLearner, sampler: Any, episodes: int, from_logits: bool, verbose: bool
) -> tuple[Array, Array]:
    """Return the logits `[n, ways]` and labels `[n]` of all queries of all episodes."""
    check_learner(learner)
    answered = Answered(ignored_class(learner.loss), from_logits)
    source = source_of(sampler)
    # Queries may be out of task.
    drawn = chunks(
        [learner],
        source,
        episodes,
        verbose=verbose,
        check_targets=not isinstance(source, _OutOfTask),
    )
    for part in drawn:
        for found in predictions(learner, part):
            answered.see(*found)
    return answered.logits_and_labels()


class Answered:
    """Gathers the logits and the labels of queries, one episode after another.

    Args:
        ignored: The class that the loss leaves out, if there is one.
        from_logits: Whether logits are predicted, or else probabilities.
    """

    def __init__(self, ignored: int | None, from_logits: bool) -> None:
        self._ignored, self._from_logits = ignored, from_logits
        self._logits: list[Array] = []
        self._labels: list[Array] = []

    def see(self, predicted: Array, targets: Array, counted: Array) -> None:
        """Take what `tfmeta.scoring.predictions` yields of an episode.

        Raises:
            ValueError: If the targets are no classes, or the predictions don't fit.
        """
        classes = np.issubdtype(targets.dtype, np.integer)
        if not classes:
            raise ValueError(
                f"`sampler` must draw tasks of classes. Received: targets of {targets.dtype}"
            )
        check_shape(predicted, targets, classes)
        counted = answers(targets, counted, self._ignored)
        z = predicted[counted].astype(np.float64)
        self._logits.append(z if self._from_logits else calibration.logarithms(z))
        self._labels.append(targets[counted])

    def logits_and_labels(self) -> tuple[Array, Array]:
        """Return the logits `[n, ways]` and labels `[n]` so far."""
        # The classes that a task does not have are never the answer.
        most = max(z.shape[1] for z in self._logits)
        never = float(np.finfo(np.float32).min) / 2
        wide = [
            np.pad(z, ((0, 0), (0, most - z.shape[1])), constant_values=never) for z in self._logits
        ]
        return np.concatenate(wide), np.concatenate(self._labels)


class _OutOfTask:
    """The episodes of a sampler, the first ways of which alone are in the support set."""

    def __init__(self, sampler: Any, support_ways: int) -> None:
        check_count("support_ways", support_ways, 2)
        self.sampler, self.ways = sampler, support_ways

    def batch(self, step: int, meta_batch_size: int = 1) -> Any:
        inputs, targets = self.sampler.batch(step, meta_batch_size)
        if is_padded(inputs):
            raise ValueError(
                "`sampler` must draw tasks of one size where there are `support_ways`. Received: "
                f"sampler={self.sampler!r}"
            )
        kept = inputs["support_y"] < self.ways
        if kept.all() or not (targets < self.ways).any():
            raise ValueError(
                "`support_ways` must be less than the sampler's ways. Received: "
                f"support_ways={self.ways}, and labels up to {inputs['support_y'].max()}"
            )
        tasks = len(kept)
        support = {
            name: tf.nest.map_structure(
                lambda x: x[kept].reshape(tasks, -1, *x.shape[2:]), inputs[name]
            )
            for name in ("support_x", "support_y")
        }
        return {**inputs, **support}, targets


def _same_classes(one: Any, other: Any) -> bool:
    source = getattr(one, "source", None)
    return source is not None and source is getattr(other, "source", None)
