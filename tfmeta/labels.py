"""What the labels of a learner's tasks are: class numbers, or numbers of any other kind."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.agreement import ignored_class
from tfmeta.losses import of_class_numbers
from tfmeta.types import Array, Tensor


def _of_each_example() -> Any:
    return tf.TensorSpec([None], tf.int64)


@dataclasses.dataclass(frozen=True)
class ClassNumbers:
    """The classes of a task by their numbers, the integers `0..ways-1`.

    Attributes:
        ways: The most classes that a task may have, for a learner with so many outputs; `None`
            where any number will do.
        each: Whether each class of `0..ways-1` must have an example, as where a learner computes
            something of each class.
        ignored: A number that is no class, whose examples the loss leaves out; or `None`.
        spec: Shape and type of an export's `support_y`.

    Example:
        >>> tfmeta.labels.ClassNumbers(ways=5).check(np.array([0, 4, 2]))
    """

    ways: int | None = None
    each: bool = False
    ignored: int | None = None
    spec: Any = dataclasses.field(default_factory=_of_each_example)

    def check(self, labels: Array) -> None:
        """Raise a `ValueError` unless labels, an array of any shape, are such numbers."""
        labels = np.asarray(labels)
        if self.each:
            self._check_each(labels)
            return
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be integers. Received: dtype={labels.dtype}")
        labels = labels if self.ignored is None else labels[labels != self.ignored]
        most = np.inf if self.ways is None else self.ways
        if labels.size and (labels.min() < 0 or labels.max() >= most):
            must = (
                "the class numbers 0..ways-1"
                if self.ways is None
                else f"in 0..{self.ways - 1}: the model has {self.ways} outputs, and `ways` must "
                "not be more"
            )
            raise ValueError(
                f"labels must be {must}. Received: labels from {labels.min()} to {labels.max()}"
            )

    def fit(self, labels: Tensor) -> tuple[Any, str]:
        """Return whether labels fit, a scalar within a graph, and in words which do.

        Args:
            labels: Integers `[n, ...]`, n at least 1.
        """
        if self.each:
            there = tf.sort(tf.unique(labels).y)
            fit = tf.reduce_all(there == tf.range(tf.size(there, labels.dtype)))
            return fit, "the class numbers 0..ways-1, with at least one example of each class"
        labels = self._counted(labels)
        if self.ways is None:
            return tf.reduce_min(labels) >= 0, "the class numbers 0..ways-1"
        fit = tf.reduce_all((labels >= 0) & (labels < self.ways))
        outputs = f"as the model has {self.ways} outputs"
        return fit, f"the class numbers 0..{self.ways - 1}, {outputs}"

    def held(self, inputs: Any) -> Any:
        """Return a meta-batch, in a graph, in which no label is beyond `ways`.

        Args:
            inputs: As for `MetaLearner.call`.
        """
        if self.ways is None or self.each:
            return inputs
        labels = self._counted(inputs["support_y"])
        fit = tf.debugging.assert_less(
            labels,
            tf.cast(self.ways, labels.dtype),
            message="`ways` must be at most the number of outputs of the model, which is "
            f"{self.ways}",
        )
        with tf.control_dependencies([] if fit is None else [fit]):
            return tf.nest.map_structure(tf.identity, inputs)

    def count(self, labels: Array) -> int | None:
        """Return how many classes the tasks with these labels can have."""
        return int(labels.max()) + 1 if self.each else self.ways

    def _check_each(self, labels: Array) -> None:
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() != 0:
            missing = True
        else:
            missing = len(np.unique(labels)) != labels.max() + 1
        if missing:
            raise ValueError(
                "labels must be the integers 0..ways-1, with at least one example of each class. "
                f"Received: {np.unique(labels).tolist()}"
            )

    def _counted(self, labels: Tensor) -> Any:
        """Return labels in a graph, 0 in the place of the one that the loss leaves out."""
        # Of a type that has no such number, no label is it.
        if self.ignored is None or not labels.dtype.min <= self.ignored <= labels.dtype.max:
            return labels
        ignored = tf.cast(self.ignored, labels.dtype)
        return tf.where(labels == ignored, tf.zeros_like(labels), labels)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Labels that are not the numbers of classes, as targets of a regression: all of them fit.

    Attributes:
        spec: Shape and type of an export's `support_y`.
    """

    spec: Any

    def check(self, labels: Array) -> None:
        """Accept any labels."""

    def fit(self, labels: Tensor) -> tuple[Any, str]:
        """Return whether integers fit, as those of a sequence do, and in words which do."""
        return tf.reduce_min(labels) >= 0, "the class numbers 0..ways-1"

    def held(self, inputs: Any) -> Any:
        """Return a meta-batch as it is."""
        return inputs

    def count(self, labels: Array) -> None:
        """Return that nobody counts classes."""


Labels = ClassNumbers | Numbers


def labels_of_loss(
    loss: Any, outputs: Any, *, dtype: str, given: Any = None, ways: int | None = None
) -> Labels:
    """Return what labels a loss takes.

    Class numbers have the shape of the outputs without the axis of classes, `[n]` mostly and
    `[n, t]` for each of t steps; other labels have that of the outputs. Where a learner was built
    for labels of another shape, as the targets `[n, d]` of a loss whose outputs are `[n, 2d]`, it
    is theirs. Labels of several outputs have no single shape, and no `spec`.

    Args:
        loss: As given to `compile`.
        outputs: Symbolic predictions `[n, ...]`.
        dtype: Of labels that are not class numbers.
        given: The shape `[tasks, n, ...]` of the labels that the learner was built for, or `None`.
        ways: The most classes that a task may have, or `None`.
    """
    numbered = of_class_numbers(loss)
    spec = None
    if isinstance(loss, keras.losses.CTC) or loss in ("ctc", keras.losses.ctc):
        spec = tf.TensorSpec([None, None], tf.int64)
    elif not keras.tree.is_nested(outputs):
        sizes = list(outputs.shape)[: -1 if numbered else None]
        if given is not None:
            shape = tf.TensorShape([None, *given[2:]])
            sizes = sizes if shape.is_compatible_with([None, *sizes[1:]]) else list(shape)
        spec = tf.TensorSpec([None, *sizes[1:]], tf.int64 if numbered else dtype)
    if numbered:
        return ClassNumbers(ways, ignored=ignored_class(loss), spec=spec)
    return Numbers(spec)
