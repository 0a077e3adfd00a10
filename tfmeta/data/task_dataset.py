"""Tables: rows of features and targets, sorted by the task that they are of."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfmeta.checks import check_count
from tfmeta.data.columns import Rows, as_floats, rows_of, targets_of
from tfmeta.data.maps import packed, unpacked
from tfmeta.data.several_inputs import check_names
from tfmeta.data.shares import positions_of, shares
from tfmeta.types import Array

# Smaller than this part of the mean, what differs is rounding.
_CONSTANT = 1e-12
_NAMED = 10  # tasks, in an error


class Table(NamedTuple):
    """Features and targets of several tasks, or of one.

    Attributes:
        inputs: The features by the names of the inputs, or by `""` where there is one.
        targets: Floats `[rows, outputs]` or classes `[rows]`.
    """

    inputs: dict[str, Rows]
    targets: Rows


class TaskDataset:
    """Rows of features and targets of many tasks: the table of each country, patient or shop.

    Where a `ClassDataset` has classes, from which tasks are made anew, here each task is there
    already, with rows of its own. They stay where they are, in memory or in a file on disk; every
    `TaskDataset` made from another one shares them.

    Args:
        tables: For each task, by its name, a pair of features and targets. Features are an array
            `[rows, ...]`, for one number a row `[rows]`; or a dict of such, by name, for a model of
            several inputs. A data frame will do, whose columns become floats, and a sparse matrix
            of SciPy, which stays sparse: only what is drawn becomes dense. Targets are floats
            `[rows]` or `[rows, outputs]` for regression, or integers `[rows]`, the numbers of
            classes that mean the same in all tasks.
        description: What the data are, in words.

    Attributes:
        task_names: A tuple.
        sizes: int64, how many rows each task has.
        num_classes: The largest class and one, or `None` for regression.
        description: As given.

    Raises:
        TypeError: Features or targets are of a type that cannot be used, or targets are classes in
            one task and floats in another.
        ValueError: There are no tasks or rows, lengths differ, rows differ in shape, or numbers are
            NaN or infinite: task, row and column are named. (A memory-mapped file is not read to
            check its numbers.)

    Example:
        >>> import numpy as np
        >>> years = np.arange(1950.0, 2000.0)
        >>> tables = {name: (years, 0.1 * k * years) for k, name in enumerate(["Chad", "Peru"])}
        >>> TaskDataset(tables)
        TaskDataset(2 tasks, 100 rows, features=(1,), targets=(1,))
    """

    def __init__(self, tables: Mapping[str, tuple[Any, Any]], *, description: str = "") -> None:
        if not isinstance(tables, Mapping):
            raise TypeError(
                "`tables` must be a dict of (features, targets) by the names of tasks; rows with a "
                f"column of tasks go to TaskDataset.from_rows. Received: {type(tables).__name__}"
            )
        if not tables:
            raise ValueError("`tables` must have at least one task. Received: an empty dict")
        made = []
        for name, table in tables.items():
            if not isinstance(table, tuple | list) or len(table) != 2:
                raise TypeError(
                    "`tables` must have pairs (features, targets). Received: "
                    f"{type(table).__name__} for task {name!r}"
                )
            made.append(_table(*table, f" of task {name!r}"))
        _check_alike(list(tables), made)
        self._tables: list[Table] = made
        self._places = [(i, np.arange(len(table.targets))) for i, table in enumerate(made)]
        self.task_names = _names(tables)
        self.description = description
        self._finish()
        for name, table in zip(self.task_names, made, strict=True):
            _check_finite(table, lambda row, name=name: f"row {row} of task {name!r}")

    @classmethod
    def from_rows(
        cls,
        features: Any,
        targets: Any,
        task_ids: npt.ArrayLike,
        *,
        description: str = "",
    ) -> TaskDataset:
        """Returns the data set of rows that say which task they are of.

        Args:
            features: Those of all tasks, as the class takes them of one.
            targets: Those of all tasks.
            task_ids: The task of each row, `[rows]`: integers or texts. Tasks are numbered in the
                sorted order of those that occur.
            description: What the data are, in words.

        Raises:
            TypeError: As above, or `task_ids` are neither integers nor texts.
            ValueError: As above.

        Example:

        ```python
        table = pandas.read_csv("countries.csv")
        countries = TaskDataset.from_rows(table[["year", "gdp"]], table["life"], table["country"])
        train, validation, test = countries.split(0.6, 0.2, 0.2)
        ```
        """
        table = _table(features, targets, "")
        ids = _ids(task_ids, len(table.targets))
        order = np.argsort(ids, kind="stable")
        names, sizes = np.unique(ids[order], return_counts=True)
        dataset = object.__new__(cls)
        dataset._tables = [table]
        dataset._places = [(0, rows) for rows in np.split(order, np.cumsum(sizes)[:-1])]
        dataset.task_names = _names(names.tolist())
        dataset.description = description
        dataset._finish()
        _check_finite(table, lambda row: f"row {row}, of task {str(ids[row])!r}")
        return dataset

    def _finish(self) -> None:
        self.sizes = np.array([len(rows) for _, rows in self._places], np.int64)
        self.num_classes = None
        if self._tables[0].targets.dtype.kind == "i":
            self.num_classes = 1 + max(int(table.targets.values.max()) for table in self._tables)

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return len(self.task_names)

    @property
    def input_names(self) -> tuple[str, ...] | None:
        """What the inputs of a model of several are called; `None` where there is one."""
        names = tuple(self._tables[0].inputs)
        return None if names == ("",) else names

    @property
    def example_shape(self) -> Any:
        """The shape of the features of one row; a dict of shapes for several inputs."""
        return self._nested({name: rows.shape for name, rows in self._tables[0].inputs.items()})

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def __repr__(self) -> str:
        targets: Any = self._tables[0].targets.shape
        targets = targets if self.num_classes is None else f"{self.num_classes} classes"
        text = (
            f"{self.num_tasks} tasks, {len(self)} rows, features={self.example_shape}, "
            f"targets={targets}"
        )
        return f"TaskDataset({text}{', ' + repr(self.description) if self.description else ''})"

    def __getstate__(self) -> dict[str, Any]:
        """In a pickle a memory map is the name of its file."""
        return {**self.__dict__, "_tables": _mapped(packed, self._tables)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_tables": _mapped(unpacked, state["_tables"])})

    def select(self, tasks: Iterable[int | str]) -> TaskDataset:
        """Returns the data set of some tasks only, in the order given.

        Args:
            tasks: Numbers or names of tasks.

        Raises:
            TypeError: `tasks` is a single string, or holds neither integers nor strings.
            ValueError: `tasks` is empty, or names a task twice or one that does not exist.
        """
        return self._derive(positions_of(self.task_names, tasks, "tasks", "task"))

    def split(self, *fractions: float | Sequence[float], seed: int = 0) -> tuple[TaskDataset, ...]:
        """Shares the tasks out at random, so that all rows of a task are in one part.

        Args:
            *fractions: The share of the tasks of each part; together 1. One sequence of them will
                do.
            seed: Another number gives another assignment. It depends on nothing but the number and
                the names of the tasks.

        Returns:
            A `TaskDataset` for each fraction; the tasks of a part stay in order.

        Raises:
            TypeError: The fractions are no numbers.
            ValueError: The fractions are not positive or do not add up to 1, or there are too few
                tasks for each part to have one.
        """
        parts = shares(self.task_names, fractions, seed, one="task", many="tasks")
        return tuple(map(self._derive, parts))

    def with_min_rows(self, rows: int, *, per_class: bool = False) -> TaskDataset:
        """Leaves out the tasks of fewer rows, with a warning that lists them.

        Args:
            rows: How many.
            per_class: Whether they are to be of each class, not in all.

        Returns:
            A `TaskDataset` of the others that shares the rows.

        Raises:
            TypeError: `rows` is no integer.
            ValueError: There is no such task, or targets are no classes.

        Example:

        ```python
        train, test = countries.with_min_rows(15).split(0.8, 0.2)
        ```
        """
        check_count("rows", rows)
        sizes = self.class_sizes().min(axis=1) if per_class else self.sizes
        if sizes.max() < rows:
            raise ValueError(
                f"`rows` must be at most {sizes.max()}, what the largest task has"
                f"{' of each class' if per_class else ''}. Received: rows={rows}"
            )
        small = np.flatnonzero(sizes < rows)
        if small.size:
            names = listed([self.task_names[task] for task in small])
            warnings.warn(
                f"Left out {small.size} of {self.num_tasks} tasks, of fewer than {rows} rows"
                f"{' of some class' if per_class else ''}: {names}",
                stacklevel=2,
            )
        return self._derive(np.flatnonzero(sizes >= rows).tolist())

    def class_sizes(self) -> Array:
        """Returns how many rows of each class each task has, int64 `[tasks, classes]`.

        Raises:
            ValueError: Targets are no classes.
        """
        if self.num_classes is None:
            raise ValueError(
                "`per_class` must be False where targets are no classes. Received: floats"
            )
        every = [
            np.bincount(self._targets(task), minlength=self.num_classes)
            for task in range(self.num_tasks)
        ]
        return np.stack(every)

    def statistics(self) -> dict[str, Any]:
        r"""Returns mean and standard deviation of features and targets, for `TableSampler`.

        Each task counts the same, however many rows it has, as it does in the episodes drawn: with
        \(n_t\) rows \(x_{ti}\) of task \(t\) of \(T\),
        \(\mu = \frac{1}{T} \sum_t \frac{1}{n_t} \sum_i x_{ti}\) and
        \(\sigma^2 = \frac{1}{T} \sum_t \frac{1}{n_t} \sum_i (x_{ti} - \mu)^2\), for each number
        along the last axis. Where all are the same, σ is 1.

        Take them from the tasks that a learner is trained on, and give them to the samplers of
        validation and test tasks as well. Integers, which a sampler leaves as they are, have none.

        Returns:
            `mean` and `std` of the features, dicts of the inputs that are floats where there are
            several; for regression also `target_mean` and `target_std`. All float64.

        Raises:
            TypeError: Features are integers or texts, not floats, and the only input.

        Example:

        ```python
        scales = train.statistics()
        sampler = tfmeta.data.TableSampler(train, shots=5, queries=10, **scales)
        test_sampler = tfmeta.data.TableSampler(test, shots=5, queries=10, seed=1, **scales)
        ```
        """
        means, stds = {}, {}
        for name, rows in self._tables[0].inputs.items():
            some = as_floats(rows.take(np.arange(1)))
            if some.dtype.kind == "f":
                means[name], stds[name] = _moments(lambda name=name: self._floats(name))
            elif self.input_names is None:
                raise TypeError(
                    "`features` must be floats to be normalised, for integers, which may be ids, "
                    f"stay as they are: make them `astype('float32')`. Received: {some.dtype}"
                )
        found = {"mean": self._nested(means), "std": self._nested(stds)}
        if self.num_classes is None:
            moments = _moments(lambda: map(self._targets, range(self.num_tasks)))
            found |= dict(zip(("target_mean", "target_std"), moments, strict=True))
        return found

    def table(self, task: int | str) -> tuple[Any, Array]:
        """Returns features and targets of one task as they were given, sparse ones dense.

        Args:
            task: Its number or name.

        Returns:
            Features `[rows, ...]`, or a dict of such, and targets `[rows, outputs]`, or classes
            `[rows]`.

        Raises:
            TypeError: `task` is neither an integer nor a string.
            ValueError: There is no such task.

        Example:

        ```python
        features, targets = countries.table("Chad")
        ```
        """
        [number] = positions_of(self.task_names, [task], "task", "task")
        inputs, targets = self.take(number)
        return self._nested(inputs), targets

    def take(self, task: int, rows: Array | None = None) -> tuple[dict[str, Array], Array]:
        """Returns features, by input, and targets of some rows of a task, as they were given.

        Args:
            task: Its number.
            rows: Which of its rows, counted from 0; all by default.

        Returns:
            A dict of features `[n, ...]`, with the key `""` where there is one input, and targets.
        """
        number, places = self._places[task]
        inputs, targets = self._tables[number]
        places = places if rows is None else places[rows]
        return {name: part.take(places) for name, part in inputs.items()}, targets.take(places)

    def _targets(self, task: int) -> Array:
        number, places = self._places[task]
        return self._tables[number].targets.take(places)

    def _floats(self, name: str) -> Iterator[Array]:
        for task in range(self.num_tasks):
            table, places = self._places[task]
            yield as_floats(self._tables[table].inputs[name].take(places))

    def _nested(self, by_name: dict[str, Any]) -> Any:
        return by_name[""] if self.input_names is None else by_name

    def _derive(self, tasks: Sequence[int]) -> TaskDataset:
        """The data set of these tasks; nothing is checked again."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._places = [self._places[task] for task in tasks]
        other.task_names = tuple(self.task_names[task] for task in tasks)
        other.sizes = self.sizes[list(tasks)]
        return other


def listed(names: Sequence[str]) -> str:
    """Return names in words, the first of many.

    Args:
        names: Of tasks.
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more


def inputs_of(features: Any, of: str = "") -> dict[str, Rows]:
    """Return features by input, checked but for NaN; by `""` where there is one.

    Args:
        features: As `TaskDataset` takes them of one task.
        of: What to say of them in errors.
    """
    if not isinstance(features, Mapping):
        return {"": rows_of(f"features{of}", features)}
    check_names("features", features)
    inputs = {name: rows_of(f"features[{name!r}]{of}", part) for name, part in features.items()}
    sizes = {name: len(rows) for name, rows in inputs.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"`features`{of} must have as many rows of each input. Received: {sizes}")
    return inputs


def _table(features: Any, targets: Any, of: str) -> Table:
    inputs, found = inputs_of(features, of), targets_of(f"targets{of}", targets)
    rows = len(next(iter(inputs.values())))
    if rows != len(found):
        raise ValueError(
            f"`features` and `targets`{of} must have the same length. Received: {rows} rows of "
            f"features, {len(found)} targets"
        )
    return Table(inputs, found)


def _check_alike(names: Sequence[Any], tables: Sequence[Table]) -> None:
    """Raise unless all tables have features and targets like the first one's."""

    kinds = {"f": "floats", "U": "texts", "O": "texts"}

    def told(table: Table) -> Any:
        features = {
            name: (rows.shape, kinds.get(rows.dtype.kind, str(rows.dtype)))
            for name, rows in table.inputs.items()
        }
        kind = "floats" if table.targets.dtype.kind == "f" else "classes"
        return features, table.targets.shape, kind

    first = told(tables[0])
    for name, table in zip(names, tables, strict=True):
        if told(table) != first:
            error = TypeError if told(table)[2] != first[2] else ValueError
            raise error(
                "`tables` must have features and targets of one shape and kind in all tasks. "
                f"Received: {first} for task {names[0]!r}, {told(table)} for task {name!r}"
            )


def _check_finite(table: Table, where: Any) -> None:
    for name, rows in (*table.inputs.items(), (None, table.targets)):
        bad = rows.not_finite()
        if bad is not None:
            what = "targets" if name is None else f"features[{name!r}]" if name else "features"
            raise ValueError(
                f"`{what}` must be finite. Received: NaN or infinity in {where(bad[0])}, {bad[1]}"
            )


def _moments(tasks: Any) -> tuple[Array, Array]:
    """Return mean and deviation of what a function yields of each task, float64."""

    def mean(of: Any) -> Array:
        every = [of(x.reshape(-1, x.shape[-1]).astype(np.float64)).mean(axis=0) for x in tasks()]
        return np.asarray(np.mean(every, axis=0))

    centre = mean(lambda x: x)
    deviation = np.sqrt(mean(lambda x: (x - centre) ** 2))
    return centre, np.where(deviation > _CONSTANT * np.abs(centre), deviation, 1.0)


def _names(names: Iterable[Any]) -> tuple[str, ...]:
    found = tuple(str(name) for name in names)
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ValueError(f"Tasks must differ in their names. Received: {twice!r} more than once")
    return found


def _ids(task_ids: Any, rows: int) -> Array:
    ids = np.asarray(task_ids.to_numpy() if hasattr(task_ids, "to_numpy") else task_ids)
    if ids.dtype == object and all(isinstance(name, str) for name in ids.ravel()):
        ids = ids.astype(str)
    if ids.dtype.kind not in "biuU":
        raise TypeError(f"`task_ids` must be integers or texts. Received: type {ids.dtype}")
    if ids.shape != (rows,):
        raise ValueError(
            f"`task_ids` must have one for each of the {rows} rows. Received: shape={ids.shape}"
        )
    return ids


def _mapped(function: Any, tables: list[Table]) -> list[Table]:
    def other(rows: Rows) -> Rows:
        return dataclasses.replace(rows, values=function(rows.values))

    return [
        Table(
            {name: other(rows) for name, rows in inputs.items()},
            other(targets),
        )
        for inputs, targets in tables
    ]
