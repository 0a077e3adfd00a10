"""Score a learner on many episodes: accuracy with an interval, and how far it can be believed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta import calibration
from tfmeta.agreement import ignored_class
from tfmeta.checks import check_count, check_positive
from tfmeta.foreign.of_keras import MASK
from tfmeta.meta_learner import MetaLearner
from tfmeta.padding import is_padded
from tfmeta.readable import readable
from tfmeta.types import Array, Sampler, Tensor

# How many episodes are predicted in one call at most, and how many bytes they may have.
_MOST_AT_ONCE = 32
_ROOM = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The score of each episode, their mean and its interval.

    The interval is `1.96 s / √n`, with s the standard deviation between the n episodes.

    Attributes:
        per_episode: `[episodes]`, the accuracy in `[0, 1]` or the mean squared error of each.
        metric: `"accuracy"` or `"mean squared error"`.
        transductive: Whether the learner answers the queries of an episode together, so that one
            answer depends on the others; it is printed, for such a score is not one of answers
            that are given one by one.

    Example:
        >>> print(tfmeta.Evaluation(np.array([0.96, 1.0, 0.98]), "accuracy"))
        98.00 % ± 2.26 (95 % CI, 3 episodes)
    """

    per_episode: Array
    metric: str
    transductive: bool = False

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
        """Return the score as papers print it; of one episode there is no interval."""
        return self._score() + (
            "\ntransductive: the queries of an episode are answered together"
            if self.transductive
            else ""
        )

    def _score(self) -> str:
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
    verbose: bool = True,
) -> Evaluation:
    """Adapt to `episodes` tasks and score their queries.

    Integer targets are scored by accuracy, without those that `ignore_class` of the loss leaves
    out; others by the mean squared error. Time steps that Keras masks do not count. Episode e is
    task 0 of the sampler's step e: which episodes they are depends on the sampler's seed only.
    Several are computed at once, where they have one shape.

    Args:
        learner: A learner; those with an inner loop must be compiled with their loss.
        sampler: An `EpisodeSampler`, a `FunctionSampler`, or whatever has their `batch`; or a
            `tf.data.Dataset` of `(inputs, targets)`, whose tasks are taken in turn.
        episodes: How many, at least 1.
        verbose: Whether to show a progress bar.

    Returns:
        An `Evaluation`: `.mean`, `.ci95`, `.per_episode`.

    Raises:
        TypeError: If `learner` is not a `MetaLearner`, or `sampler` has no `batch`.
        ValueError: If `episodes` is less than 1 or more than a data set has, examples, labels or
            the predictions' shape don't fit, or the learner predicts NaN or infinite values.

    Example:
        >>> print(tfmeta.evaluate(learner, test_sampler, episodes=600))
    """
    scores = []
    classes = True
    ignored = ignored_class(learner.loss)
    for predictions, targets, counted in _predictions(learner, sampler, episodes, verbose):
        classes = np.issubdtype(targets.dtype, np.integer)
        scores.append(_score(predictions, targets, counted, classes, ignored))
    metric = "accuracy" if classes else "mean squared error"
    return Evaluation(np.array(scores), metric, bool(learner.transductive))


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
    source = sampler if support_ways is None else _OutOfTask(_source(sampler), support_ways)
    z, y = _collect(learner, source, episodes, from_logits, verbose)
    p = calibration.softmax(z, temperature)
    inside = y < (np.inf if support_ways is None else support_ways)
    return Uncertainty(p[inside], y[inside], p[~inside], episodes, float(temperature))


def _collect(
    learner: MetaLearner, sampler: Any, episodes: int, from_logits: bool, verbose: bool
) -> tuple[Array, Array]:
    """Return the logits `[n, ways]` and labels `[n]` of all queries of all episodes."""
    logits, labels = [], []
    ignored = ignored_class(learner.loss)
    for predictions, targets, counted in _predictions(learner, sampler, episodes, verbose):
        classes = np.issubdtype(targets.dtype, np.integer)
        if not classes:
            raise ValueError(
                f"`sampler` must draw tasks of classes. Received: targets of {targets.dtype}"
            )
        _check_shape(predictions, targets, classes)
        answers = _answers(targets, counted, ignored)
        z = predictions[answers].astype(np.float64)
        logits.append(z if from_logits else calibration.logarithms(z))
        labels.append(targets[answers])
    # The classes that a task does not have are never the answer.
    most = max(z.shape[1] for z in logits)
    never = float(np.finfo(np.float32).min) / 2
    wide = [np.pad(z, ((0, 0), (0, most - z.shape[1])), constant_values=never) for z in logits]
    return np.concatenate(wide), np.concatenate(labels)


class _InTurn:
    """The tasks of a data set of meta-batches, one after another."""

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._tasks = self._of(dataset)

    def batch(self, step: int, meta_batch_size: int = 1) -> Any:
        del meta_batch_size
        task = next(self._tasks, None)
        if task is None:
            raise ValueError(
                "`episodes` must be at most as many as the data set has tasks. Received: a data "
                f"set that ends after {step}"
            )
        return task

    @staticmethod
    def _of(dataset: tf.data.Dataset) -> Iterator[Any]:
        for batch in dataset:
            inputs, targets, _ = keras.utils.unpack_x_y_sample_weight(batch)
            if targets is None:
                raise ValueError(
                    "`sampler` must be a data set of pairs (inputs, targets). Received: inputs "
                    "alone"
                )
            inputs, targets = tf.nest.map_structure(np.asarray, (inputs, targets))
            for i in range(len(tf.nest.flatten(targets)[0])):
                yield tf.nest.map_structure(lambda x, i=i: x[i : i + 1], (inputs, targets))


def _source(sampler: Any) -> Any:
    """Return what draws one episode after another."""
    if isinstance(sampler, tf.data.Dataset):
        return _InTurn(sampler)
    if not hasattr(sampler, "batch"):
        raise TypeError(
            "`sampler` must be a sampler, or a tf.data.Dataset of (inputs, targets). "
            f"Received: sampler={sampler!r}"
        )
    return sampler


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


def _predictions(
    learner: MetaLearner, sampler: Any, episodes: int, verbose: bool
) -> Iterator[tuple[Array, Array, Array]]:
    """Yield of each episode the predictions, the targets, and which of them count."""
    if not isinstance(learner, MetaLearner):
        raise TypeError(f"`learner` must be a tfmeta.MetaLearner. Received: {learner!r}")
    source = _source(sampler)
    check_count("episodes", episodes)
    progress = keras.utils.Progbar(episodes, verbose=int(verbose), unit_name="episode")
    drawn = [source.batch(0, 1)]
    inputs, targets = drawn[0]
    # Queries may be out of task.
    learner.check_inputs(inputs, None if isinstance(source, _OutOfTask) else targets)
    size = _at_once(inputs, episodes, xla=bool(learner.compiled and learner.jit_compile))
    for first in range(0, episodes, size):
        number = min(size, episodes - first)
        drawn += [source.batch(first + i, 1) for i in range(len(drawn), number)]
        every = _predicted(learner, [inputs for inputs, _ in drawn], size, first)
        for i, (predictions, mask) in enumerate(every):
            inputs, targets = drawn[i]
            if not np.isfinite(predictions).all():
                raise ValueError(
                    "`learner` must predict finite values. Received: NaN or infinite predictions "
                    f"in episode {first + i}; a smaller inner learning rate may help"
                )
            if is_padded(inputs):
                real = inputs["query_mask"]
                predictions, targets, mask = predictions[real], targets[real], mask[real]
            yield predictions, targets, mask
        progress.update(first + number)
        drawn = []


def _at_once(inputs: Any, episodes: int, *, xla: bool) -> int:
    """Return how many episodes are worth predicting in one call, all calls with as many.

    XLA, which compiles for each number, has always the same, however few episodes there are.
    """
    bytes_each = sum(np.asarray(part).nbytes for part in tf.nest.flatten(inputs))
    most = max(1, min(_MOST_AT_ONCE, _ROOM // max(1, bytes_each)))
    return most if xla else -(-episodes // -(-episodes // most))


def _predicted(
    learner: MetaLearner, drawn: list[Any], size: int, first: int
) -> Iterator[tuple[Array, Array]]:
    """Yield predictions `[1, queries, ...]` of each episode, and which time steps count.

    Args:
        learner: A learner.
        drawn: Inputs, a meta-batch of one task for each episode.
        size: How many episodes one call is for; with fewer, the last is there several times.
        first: The number of the first episode.
    """
    if size > 1 and len({_shapes(inputs) for inputs in drawn}) == 1:
        filled = drawn + [drawn[-1]] * (size - len(drawn))
        together = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *filled)
        try:
            predictions, mask = _masked(*learner.predict_with_notes(together))
        except ValueError as error:
            if not isinstance(error.__cause__, tf.errors.InvalidArgumentError):
                raise
            # One of them is at fault; computed by itself, it can be named.
        else:
            for i in range(len(drawn)):
                yield predictions[i : i + 1], mask[i : i + 1]
            return
    for episode, inputs in enumerate(drawn, first):
        try:
            yield _masked(*learner.predict_with_notes(inputs))
        except ValueError as error:
            if isinstance(error.__cause__, tf.errors.InvalidArgumentError):
                raise readable(error.__cause__, f" of episode {episode}") from error.__cause__
            raise


def _masked(predictions: Tensor, notes: list[dict[str, Array]]) -> tuple[Array, Array]:
    """Return predictions, and true where they count, as far as Keras notes anything on them."""
    if tf.nest.is_nested(predictions):
        raise ValueError(
            "`learner` must have one output to be scored here; its own `evaluate` scores several. "
            f"Received: {len(notes)} outputs"
        )
    mask = notes[0].get(MASK)
    return predictions, np.ones(predictions.shape[:2], bool) if mask is None else mask


def _shapes(inputs: Any) -> tuple[Any, ...]:
    return tuple((np.shape(x), str(np.asarray(x).dtype)) for x in tf.nest.flatten(inputs))


def _score(
    predictions: Array, targets: Array, counted: Array, classes: bool, ignored: int | None
) -> Any:
    _check_shape(predictions, targets, classes)
    if classes:
        right = predictions.argmax(axis=-1) == targets
        return np.mean(right[_answers(targets, counted, ignored)])
    return np.mean((predictions - targets)[counted] ** 2)


def _answers(targets: Array, counted: Array, ignored: int | None) -> Array:
    """Return which labels count: what the loss leaves out is no mistake."""
    counted = np.broadcast_to(
        counted.reshape(*counted.shape, *[1] * (targets.ndim - counted.ndim)), targets.shape
    )
    return counted if ignored is None else counted & (targets != ignored)


def _check_shape(predictions: Array, targets: Array, classes: bool) -> None:
    expected = (*targets.shape, "classes") if classes else targets.shape
    fits = predictions.shape[: targets.ndim] == targets.shape and (
        predictions.ndim == len(expected) and (not classes or predictions.shape[-1] > 1)
    )
    if not fits:
        raise ValueError(
            f"`learner` must predict {list(expected)} for {targets.dtype} targets of shape "
            f"{targets.shape}, with two classes or more. Received: shape={predictions.shape}"
        )
