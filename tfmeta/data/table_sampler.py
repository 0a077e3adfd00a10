"""Few-shot tasks that are there already: rows drawn from the tables of a `TaskDataset`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmeta import _core
from tfmeta.data.columns import as_floats, targets_of
from tfmeta.data.gather import integer, number_or_range, sharded
from tfmeta.data.nested_stream import nested_stream
from tfmeta.data.normalization import Numbers, per_channel, positive_per_channel
from tfmeta.data.several_inputs import by_input
from tfmeta.data.stream import stream
from tfmeta.data.task_dataset import TaskDataset, inputs_of, listed
from tfmeta.types import Array, Episodes

if TYPE_CHECKING:
    import tensorflow as tf


class TableSampler:
    r"""Draws tasks of a `TaskDataset`; meta-batch `step` is a function of `(seed, step)`.

    Each task is drawn as likely as another, and of its rows `shots + queries` without replacement:
    the first `shots` are its support set, the others its query set. A meta-batch may show the same
    task twice, with other rows.

    Task `t` of meta-batch `s` depends on `(seed, s, t)` and nothing else: not on the process, the
    order of calls or the size of the meta-batch.

    Features become \((x - \mu) / \sigma\) with `mean` and `std`, and targets likewise with
    `target_mean` and `target_std`. `TaskDataset.statistics()` of the training tasks gives all four,
    for the samplers of validation and test tasks as well. `denormalize` leads back: predictions
    times `target_std` plus `target_mean`. A mean squared error is then in units of `target_std`
    squared.

    Where `shots` is a range, meta-batches have room for the largest task: `inputs` have masks as
    well, `support_mask` `[tasks, rows]` and `query_mask`, false where there is no row; there the
    features are zeros, and the target is 0 or the class -1. Learners leave such places out.

    Args:
        dataset: Where tasks and rows are drawn from.
        shots: Rows of a support set; or `(least, most)`, each number between as likely as far as
            the task has enough rows.
        queries: Rows of a query set.
        seed: Another seed gives other rows; in `[0, 2**64)`.
        per_class: Whether `shots` and `queries` are rows of each class, which are ordered by class,
            or rows in all. By default of each class where targets are classes. Rows in all have the
            classes in their own proportions, but a support set may lack one, and learners that
            compare with each class (`PrototypicalNetwork`) have no number for it then.
        mean: What is subtracted from features before they are divided by `std`: one number, or one
            for each along the last axis; for several inputs a dict of those that are normalised. 0
            when `None`.
        std: What they are divided by, likewise; 1 when `None`.
        target_mean: What is subtracted from the targets of a regression, likewise.
        target_std: What they are divided by.

    Raises:
        TypeError: An argument is of another type.
        ValueError: An argument is out of range; a task has fewer rows than `shots + queries`, those
            are named; there are no classes, or no floats to be normalised.

    Example:
        >>> import numpy as np
        >>> import tfmeta
        >>> rng = np.random.default_rng(0)
        >>> day = np.tile(np.arange(20.0), 30)
        >>> patient = np.repeat(np.arange(30), 20)
        >>> weight = 70 + 0.1 * rng.normal(size=30)[patient] * day
        >>> patients = tfmeta.data.TaskDataset.from_rows(day, weight, patient)
        >>> train, test = patients.split(0.8, 0.2)
        >>> sampler = tfmeta.data.TableSampler(train, shots=5, queries=10, **train.statistics())
        >>> inputs, targets = sampler.batch(step=0, meta_batch_size=4)
        >>> inputs["support_x"].shape, inputs["support_y"].shape, targets.shape
        ((4, 5, 1), (4, 5, 1), (4, 10, 1))
    """

    def __init__(
        self,
        dataset: TaskDataset,
        shots: int | tuple[int, int],
        queries: int,
        seed: int = 0,
        *,
        per_class: bool | None = None,
        mean: Numbers | Mapping[str, Numbers] | None = None,
        std: Numbers | Mapping[str, Numbers] | None = None,
        target_mean: Numbers | None = None,
        target_std: Numbers | None = None,
    ) -> None:
        if not isinstance(dataset, TaskDataset):
            raise TypeError(
                f"`dataset` must be a tfmeta.data.TaskDataset. Received: {type(dataset).__name__}"
            )
        self.source = dataset
        self.shots, self._shots = number_or_range("shots", shots)
        self.queries = integer("queries", queries, 1)
        self.seed = integer("seed", seed, 0, 2**64)
        if not isinstance(per_class, bool | None):
            raise TypeError(
                f"`per_class` must be True, False or None. Received: per_class={per_class!r}"
            )
        self.per_class = dataset.num_classes is not None if per_class is None else per_class
        self.mean, self.std = mean, std
        self.target_mean, self.target_std = target_mean, target_std
        self._scales = self._feature_scales()
        self._target_scales = self._scales_of_targets()
        self._shard = (0, 1)
        sizes = dataset.class_sizes() if self.per_class else dataset.sizes[:, None]
        self._check_sizes(sizes)
        # No larger than any task can be.
        most = int(sizes.min(axis=1).max()) - self.queries
        self._shots = (self._shots[0], min(self._shots[1], most))
        self._padded = self._shots[0] < self._shots[1]
        self._groups = _groups(dataset, sizes)

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        """Returns meta-batch number `step` as NumPy arrays.

        Args:
            step: Number of the meta-batch, in `[0, 2**63)`.
            meta_batch_size: Number of tasks.

        Returns:
            `(inputs, targets)`. `inputs["support_x"]` is `[tasks, shots, ...]`,
            `inputs["query_x"]` `[tasks, queries, ...]`, dicts of such for several inputs; with
            `per_class` as many rows of each class. `inputs["support_y"]` and `targets`
            are float32 `[tasks, rows, outputs]`, or int32 `[tasks, rows]` for classes. Floats come
            as float32, normalised; uint8 images, of two axes or more, multiplied by
            `float32(1 / 255)`; other integers and texts as they are.

        Raises:
            ValueError: `step` or `meta_batch_size` is out of range, or a row that was drawn holds a
                number that is NaN or infinite as float32.
        """
        tasks, support, query = self.draw(step, meta_batch_size)
        support_x, support_y = self._rows(tasks, support)
        query_x, targets = self._rows(tasks, query)
        inputs = {"support_x": support_x, "support_y": support_y, "query_x": query_x}
        if self._padded:
            inputs |= {"support_mask": support >= 0, "query_mask": query >= 0}
        return inputs, targets

    def draw(self, step: int, tasks: int = 1) -> tuple[Array, Array, Array]:
        """Returns which rows make up meta-batch `step`.

        Returns:
            The numbers of the tasks in the data set, `[tasks]`, and which of its own rows each has,
            counted from 0, of support `[tasks, shots]` and query `[tasks, queries]`; -1 where a
            task has fewer. With `per_class` those of class 0 first, and so on.

        Example:

        ```python
        [task], _, _ = sampler.draw(step=7)
        sampler.source.task_names[task]
        ```
        """
        step = integer("step", step, 0, 2**63)
        tasks = integer("tasks", tasks, 1)
        offsets, rows, classes = self._groups
        # To the core, a task is a pool of as many classes as it has, which are drawn all.
        drawn, indices, _ = _core.sample(
            offsets,
            rows,
            np.zeros(len(offsets) - 1, np.uint8),
            np.arange(0, len(offsets), classes),
            np.arange(len(offsets) - 1),
            (classes, classes),
            self._shots,
            self.queries,
            self.seed,
            step,
            tasks,
            self._shard[0] * tasks,
        )
        order = np.argsort(drawn, axis=1)
        indices = np.take_along_axis(indices, order[..., None], axis=1)
        support, query = np.split(indices, [self._shots[1]], axis=2)
        return drawn[:, 0] // classes, support.reshape(tasks, -1), query.reshape(tasks, -1)

    def shard(self, index: int, count: int) -> TableSampler:
        """Returns the sampler of one of several workers, as `EpisodeSampler.shard` does.

        Args:
            index: Which worker, from 0.
            count: How many there are.
        """
        mine: TableSampler = sharded(self, index, count)
        return mine

    def dataset(self, meta_batch_size: int = 1, start: int = 0) -> tf.data.Dataset:
        """Returns the endless `tf.data.Dataset` of meta-batches `start`, `start + 1`, ...

        Args:
            meta_batch_size: Number of tasks in a meta-batch.
            start: Number of the first meta-batch; a run that is resumed goes on where it was.

        Returns:
            A prefetched dataset of `(inputs, targets)` as in `batch`, all shapes static.
        """
        several = self.source.input_names is not None
        return (nested_stream if several else stream)(self, meta_batch_size, start)

    def normalize(self, features: Any, targets: Any = None) -> Any:
        """Returns rows as they are in an episode, for a task that is not in the data set.

        Args:
            features: Its features `[rows, ...]`, as `TaskDataset` takes them.
            targets: Its targets, or `None`.

        Returns:
            The features, or a pair of features and targets.

        Raises:
            TypeError: They are of another type.
            ValueError: They are not like those of the data set, or not finite.

        Example:

        ```python
        adapted = learner.adapt(*sampler.normalize(years, heights))
        print(sampler.denormalize(adapted.predict(sampler.normalize(later_years))))
        ```
        """
        given = inputs_of(features)
        shapes = {name: rows.shape for name, rows in given.items()}
        known = self.source.example_shape
        known = {"": known} if self.source.input_names is None else known
        if shapes != known:
            raise ValueError(f"`features` must have rows of the shapes {known}. Received: {shapes}")
        every = {
            name: self._example(name, rows.take(np.arange(len(rows))), "features")
            for name, rows in given.items()
        }
        found = self._nested(every)
        if targets is None:
            return found
        return found, self._target(targets_of("targets", targets).values, "targets")

    def denormalize(self, targets: Any) -> Array:
        """Returns predictions or targets of a regression in the units that they were given in.

        Args:
            targets: `[..., outputs]`, normalised.

        Returns:
            `targets * target_std + target_mean`.

        Raises:
            ValueError: Targets are classes.
        """
        if self._target_scales is None:
            raise ValueError("`targets` must be those of a regression. Received: classes")
        mean, std = self._target_scales
        return np.asarray(np.asarray(targets) * std + mean)

    def __repr__(self) -> str:
        text = (
            f"TableSampler({self.source!r}, shots={self.shots}, queries={self.queries}, "
            f"seed={self.seed}"
        )
        text += f", per_class={self.per_class}" if self.source.num_classes is not None else ""
        for name in ("mean", "std", "target_mean", "target_std"):
            text += "" if getattr(self, name) is None else f", {name}=..."
        index, count = self._shard
        return text + ")" + (f".shard({index}, {count})" if count > 1 else "")

    def _rows(self, tasks: Array, rows: Array) -> tuple[Any, Array]:
        """Return features `[tasks, rows, ...]` and targets, with nothing where a row is -1."""
        x: dict[str, Array] = {}
        y: Array | None = None
        for place, (task, some) in enumerate(zip(tasks.tolist(), rows, strict=True)):
            real, what = some >= 0, f"task {self.source.task_names[task]!r}"
            inputs, targets = self.source.take(task, some[real])
            for name, taken in inputs.items():
                values = self._example(name, taken, what)
                if name not in x:
                    x[name] = _filled(rows.shape, values, 0)
                x[name][place, real] = values
            values = self._target(targets, what)
            if y is None:
                y = _filled(rows.shape, values, 0 if values.dtype.kind == "f" else -1)
            y[place, real] = values
        assert y is not None
        return self._nested(x), y

    def _example(self, name: str, taken: Array, what: str) -> Array:
        """Return features of an input as a learner gets them."""
        return _scaled(as_floats(taken), self._scales.get(name), what)

    def _target(self, taken: Array, what: str) -> Array:
        return _scaled(taken, self._target_scales, what)

    def _nested(self, by_name: dict[str, Any]) -> Any:
        return by_name[""] if self.source.input_names is None else by_name

    def _feature_scales(self) -> dict[str, tuple[Array, Array]]:
        """Return μ and σ of each input that is normalised."""
        names = self.source.input_names
        means, stds = by_input("mean", self.mean, names), by_input("std", self.std, names)
        some, _ = self.source.take(0, np.arange(1))
        scales = {}
        for name in {**means, **stds}:
            values = as_floats(some[name])
            if values.dtype.kind != "f":
                raise ValueError(
                    "`mean` and `std` need features that are floats: make them "
                    f"`astype('float32')`. Received: features of {values.dtype}"
                )
            channels = values.shape[-1]
            scales[name] = (
                per_channel("mean", means.get(name), channels, 0.0),
                positive_per_channel("std", stds.get(name), channels),
            )
        return scales

    def _scales_of_targets(self) -> tuple[Array, Array] | None:
        """Return μ and σ of the targets, or `None` for classes."""
        given = {"target_mean": self.target_mean, "target_std": self.target_std}
        if self.source.num_classes is not None:
            for name, value in given.items():
                if value is not None:
                    raise ValueError(
                        f"`{name}` must be None where targets are classes. Received: {name}="
                        f"{value!r}"
                    )
            return None
        outputs = self.source.take(0, np.arange(1))[1].shape[-1]
        return (
            per_channel("target_mean", self.target_mean, outputs, 0.0),
            positive_per_channel("target_std", self.target_std, outputs),
        )

    def _check_sizes(self, sizes: Array) -> None:
        needed = self._shots[0] + self.queries
        small = np.flatnonzero(sizes.min(axis=1) < needed)
        if not small.size:
            return
        names = self.source.task_names
        first = small[np.argmin(sizes[small].min(axis=1))]
        of = " of each class" if self.per_class else ""
        option = ", per_class=True" if self.per_class else ""
        others = [names[task] for task in small if task != first]
        more = f"; too few also in {listed(others)}" if others else ""
        raise ValueError(
            f"Every task must have at least `shots` + `queries` = {self._shots[0]} + "
            f"{self.queries} = {needed} rows{of}. Received: {sizes[first].min()} in task "
            f"{names[first]!r}{more}. `dataset.with_min_rows({needed}{option})` leaves them out"
        )


def _groups(dataset: TaskDataset, sizes: Array) -> tuple[Array, Array, int]:
    """Return what rows are drawn from: offsets, the rows of one group after another, and how many.

    Args:
        dataset: The tasks.
        sizes: How many rows each group of each task has, `[tasks, groups]`: those of a class, or
            all of them as one.
    """
    groups = sizes.shape[1]
    rows = [
        np.arange(size) if groups == 1 else np.argsort(dataset.take(task)[1], kind="stable")
        for task, size in enumerate(dataset.sizes)
    ]
    offsets = np.concatenate([[0], np.cumsum(sizes.ravel())]).astype(np.int64)
    return offsets, np.concatenate(rows).astype(np.int64), groups


def _scaled(values: Array, scales: tuple[Array, Array] | None, what: str) -> Array:
    """Return floats normalised, as float32; others as they are."""
    if values.dtype.kind != "f":
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        if scales is not None:
            values = (values.astype(np.float64) - scales[0]) / scales[1]
        made = values.astype(np.float32)
    if not np.isfinite(made).all():
        raise ValueError(
            f"Numbers must be finite as float32. Received: a NaN or an infinity in {what}"
        )
    return made


def _filled(shape: tuple[int, ...], values: Array, number: int) -> Array:
    """Return `[*shape, ...]` for values `[n, ...]`, full of a number or of empty texts."""
    texts = values.dtype.kind in "OU"
    dtype = object if texts else values.dtype
    return np.full(shape + values.shape[1:], "" if texts else number, dtype)
