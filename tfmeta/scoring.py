"""The predictions of learners for one episode after another, and the score of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmeta.checks import check_count
from tfmeta.foreign.of_keras import MASK
from tfmeta.meta_learner import MetaLearner
from tfmeta.padding import is_padded
from tfmeta.readable import readable
from tfmeta.types import Array, Tensor

# How many episodes are predicted in one call at most, and how many bytes they may have.
_MOST_AT_ONCE = 32
_ROOM = 64 * 2**20


class Chunk(NamedTuple):
    """Some episodes in a row.

    Attributes:
        drawn: Inputs and targets of each, a meta-batch of one task.
        size: How many one call is for; with fewer, it is filled up.
        first: The number of the first of them.
    """

    drawn: list[Any]
    size: int
    first: int


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


def source_of(sampler: Any) -> Any:
    """Return what draws one episode after another.

    Raises:
        TypeError: If there is nothing that does.
    """
    if isinstance(sampler, tf.data.Dataset):
        return _InTurn(sampler)
    if not hasattr(sampler, "batch"):
        raise TypeError(
            "`sampler` must be a sampler, or a tf.data.Dataset of (inputs, targets). "
            f"Received: sampler={sampler!r}"
        )
    return sampler


def check_learner(learner: Any) -> None:
    """Raise a `TypeError` unless this is a learner."""
    if not isinstance(learner, MetaLearner):
        raise TypeError(f"`learner` must be a tfmeta.MetaLearner. Received: {learner!r}")


def chunks(
    learners: Iterable[MetaLearner],
    source: Any,
    episodes: int,
    *,
    verbose: bool,
    check_targets: bool = True,
) -> Iterator[Chunk]:
    """Draw episodes, some at a time, and show how far it is.

    Args:
        learners: Those that will predict them, to be built for the first one, which is checked.
        source: What draws them.
        episodes: How many.
        verbose: Whether to show a progress bar.
        check_targets: Whether targets must be of classes that there are.
    """
    check_count("episodes", episodes)
    progress = keras.utils.Progbar(episodes, verbose=int(verbose), unit_name="episode")
    drawn = [source.batch(0, 1)]
    inputs, targets = drawn[0]
    xla = False
    for learner in learners:
        learner.check_inputs(inputs, targets if check_targets else None)
        xla |= bool(learner.compiled and learner.jit_compile)
    size = _at_once(inputs, episodes, xla=xla)
    for first in range(0, episodes, size):
        number = min(size, episodes - first)
        drawn += [source.batch(first + i, 1) for i in range(len(drawn), number)]
        yield Chunk(drawn, size, first)
        progress.update(first + number)
        drawn = []


def predictions(
    learner: MetaLearner, chunk: Chunk, named: str = "learner"
) -> Iterator[tuple[Array, Array, Array]]:
    """Yield of each episode the predictions, the targets, and which of them count.

    All have an axis of one task in front, and no place for what only fills up an episode.

    Args:
        learner: A learner.
        chunk: The episodes.
        named: What to call the learner.

    Raises:
        ValueError: If it predicts NaN or infinite values, or several outputs.
    """
    every = _predicted(learner, [inputs for inputs, _ in chunk.drawn], chunk.size, chunk.first)
    for i, (predicted, mask) in enumerate(every):
        inputs, targets = chunk.drawn[i]
        if not np.isfinite(predicted).all():
            raise ValueError(
                f"`{named}` must predict finite values. Received: NaN or infinite predictions "
                f"in episode {chunk.first + i}; a smaller inner learning rate may help"
            )
        if is_padded(inputs):
            real = inputs["query_mask"]
            predicted, targets, mask = (x[real][None] for x in (predicted, targets, mask))
        yield predicted, targets, mask


def score(
    predicted: Array, targets: Array, counted: Array, classes: bool, ignored: int | None
) -> float:
    """Return accuracy or mean squared error of one episode.

    Args:
        predicted: `[1, queries, ..., classes]`, or in regression as the targets.
        targets: `[1, queries, ...]`.
        counted: `[1, queries]` or more axes, false where a target does not count.
        classes: Whether targets are class numbers.
        ignored: The class that the loss leaves out, if there is one.
    """
    check_shape(predicted, targets, classes)
    if classes:
        return share_right(predicted.argmax(axis=-1), targets, counted, ignored)
    return float(np.mean((predicted - targets)[counted] ** 2))


def spread(targets: Array, counted: Array) -> float:
    """Return the mean squared distance of one episode's targets to their mean, output by output."""
    real = np.asarray(targets, np.float64)[counted]
    return float(np.mean((real - real.mean(0)) ** 2))


def share_right(classes: Array, targets: Array, counted: Array, ignored: int | None) -> float:
    """Return the share of answers, classes as `targets` are, that are right."""
    return float(np.mean((classes == targets)[answers(targets, counted, ignored)]))


def answers(targets: Array, counted: Array, ignored: int | None) -> Array:
    """Return which labels count: what the loss leaves out is no mistake."""
    counted = np.broadcast_to(
        counted.reshape(*counted.shape, *[1] * (targets.ndim - counted.ndim)), targets.shape
    )
    return counted if ignored is None else counted & (targets != ignored)


def check_shape(predicted: Array, targets: Array, classes: bool) -> None:
    """Raise a `ValueError` unless there is a prediction for each target."""
    expected = (*targets.shape, "classes") if classes else targets.shape
    fits = predicted.shape[: targets.ndim] == targets.shape and (
        predicted.ndim == len(expected) and (not classes or predicted.shape[-1] > 1)
    )
    if not fits:
        raise ValueError(
            f"`learner` must predict {list(expected)} for {targets.dtype} targets of shape "
            f"{targets.shape}, with two classes or more. Received: shape={predicted.shape}"
        )


def shapes_of(inputs: Any) -> tuple[Any, ...]:
    """Return what episodes must have in common to be computed in one call."""
    return tuple((np.shape(x), str(np.asarray(x).dtype)) for x in tf.nest.flatten(inputs))


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
    """Yield predictions `[1, queries, ...]` of each episode, and which time steps count."""
    if size > 1 and len({shapes_of(inputs) for inputs in drawn}) == 1:
        filled = drawn + [drawn[-1]] * (size - len(drawn))
        together = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *filled)
        try:
            found, mask = _masked(*learner.predict_with_notes(together))
        except ValueError as error:
            if not isinstance(error.__cause__, tf.errors.InvalidArgumentError):
                raise
            # One of them is at fault; computed by itself, it can be named.
        else:
            for i in range(len(drawn)):
                yield found[i : i + 1], mask[i : i + 1]
            return
    for episode, inputs in enumerate(drawn, first):
        try:
            yield _masked(*learner.predict_with_notes(inputs))
        except ValueError as error:
            if isinstance(error.__cause__, tf.errors.InvalidArgumentError):
                raise readable(error.__cause__, f" of episode {episode}") from error.__cause__
            raise


def _masked(predicted: Tensor, notes: list[dict[str, Array]]) -> tuple[Array, Array]:
    """Return predictions, and true where they count, as far as Keras notes anything on them."""
    if tf.nest.is_nested(predicted):
        raise ValueError(
            "`learner` must have one output to be scored here; its own `evaluate` scores several. "
            f"Received: {len(notes)} outputs"
        )
    mask = notes[0].get(MASK)
    return predicted, np.ones(predicted.shape[:2], bool) if mask is None else mask
