"""Tables of tasks: what is drawn, how it is normalised, what is refused, that learners take it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import sparse

import tfmeta
from tests import reference
from tfmeta.data import TableSampler, TaskDataset

SIZES = (7, 20, 9, 12)
NAMES = ("Chad", "Fiji", "Iran", "Peru")


def rows(seed: int = 0) -> tuple[Any, Any, Any]:
    """Features that tell which row they are of, targets and ids, in a mixed-up order."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat(NAMES, SIZES))
    x = np.stack([np.arange(len(ids)), rng.normal(5, 3, len(ids))], axis=1)
    return x, 2 * x[:, 0] + 1, ids


X, Y, IDS = rows()
TABLE = TaskDataset.from_rows(X, Y, IDS)
OF = {name: np.flatnonzero(name == IDS) for name in NAMES}
LABELS = np.int64([np.sum(IDS[:i] == IDS[i]) % 2 for i in range(len(IDS))])
CLASSES = TaskDataset.from_rows(X, LABELS, IDS)


class Frame:
    """What is taken of a data frame of pandas: `columns` and `to_numpy`."""

    def __init__(self, **columns: Any) -> None:
        self._columns = columns
        self.columns = list(columns)

    def to_numpy(self) -> Any:
        return np.stack([np.asarray(c, object) for c in self._columns.values()], axis=1)


class Dates(Frame):
    """All of one type, as in a frame of dates."""

    def to_numpy(self) -> Any:
        return np.stack([*self._columns.values()], axis=1)


class Column:
    """And of one column."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    def to_numpy(self) -> Any:
        return self._values


def assert_same(some: Any, other: Any) -> None:
    for a, b in zip(tf.nest.flatten(some), tf.nest.flatten(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def twin(
    table: TaskDataset, shots: tuple[int, int], queries: int, step: int, tasks: int
) -> tuple[Any, Any]:
    """Tasks and rows `[tasks, shots + queries]` of each: each task is a pool of a single class."""
    offsets = np.concatenate([[0], np.cumsum(table.sizes)])
    within = np.concatenate([np.arange(n) for n in table.sizes])
    pools = [[task] for task in range(table.num_tasks)]
    turns = np.zeros(table.num_tasks, np.uint8)
    drawn, indices, _ = reference.sample(
        offsets, within, turns, pools, (1, 1), shots, queries, 3, step, tasks
    )
    return drawn[:, 0], indices[:, 0]


@pytest.mark.parametrize("shots", [3, (1, 12)])
def test_a_meta_batch_is_the_twins(shots: Any) -> None:
    least, most = shots if isinstance(shots, tuple) else (shots, shots)
    for step in (0, 1, 2**63 - 1):
        inputs, targets = TableSampler(TABLE, shots, 4, seed=3).batch(step, 6)
        tasks, drawn = twin(TABLE, (least, most), 4, step, 6)
        for place, (task, some) in enumerate(zip(tasks, drawn, strict=True)):
            support, query = OF[NAMES[task]][some[:most]], OF[NAMES[task]][some[most:]]
            real = some[:most] >= 0
            x, y = np.float32(X[support]), np.float32(Y[support])
            x[~real], y[~real] = 0, 0
            np.testing.assert_array_equal(inputs["support_x"][place], x)
            np.testing.assert_array_equal(inputs["support_y"][place][:, 0], y)
            np.testing.assert_array_equal(inputs["query_x"][place], np.float32(X[query]))
            np.testing.assert_array_equal(targets[place][:, 0], np.float32(Y[query]))
            if most > least:
                np.testing.assert_array_equal(inputs["support_mask"][place], real)
                assert inputs["query_mask"][place].all()
    assert ("support_mask" in inputs) == (most > least)


def test_what_is_drawn_never_changes() -> None:
    tasks, support, query = TableSampler(TABLE, 3, 4, seed=7).draw(5, 3)
    assert tasks.tolist() == [1, 1, 3]
    assert support.tolist() == [[8, 2, 13], [2, 7, 16], [11, 2, 3]]
    assert query.tolist() == [[12, 19, 10, 6], [4, 0, 14, 8], [10, 5, 4, 6]]
    tasks, support, query = TableSampler(CLASSES, 2, 1, seed=7, per_class=True).draw(5, 2)
    assert tasks.tolist() == [1, 1]
    assert support.tolist() == [[18, 8, 1, 13], [6, 16, 15, 13]]
    assert query.tolist() == [[4, 3], [4, 7]]


def test_a_task_has_its_own_rows_each_once() -> None:
    inputs, targets = TableSampler(TABLE, 3, 4).batch(0, 200)
    number = np.concatenate([inputs["support_x"], inputs["query_x"]], axis=1)[..., 0].astype(int)
    owners = IDS[number]
    assert (owners == owners[:, :1]).all()
    assert all(len(set(task)) == 7 for task in number.tolist())
    np.testing.assert_array_equal(targets[..., 0], 2 * inputs["query_x"][..., 0] + 1)
    # Each task is as likely as another, and each row of Chad as the others: 4 standard errors.
    counts = np.unique(owners[:, 0], return_counts=True)[1]
    assert (abs(counts - 50) < 4 * np.sqrt(200 * 3 / 16)).all()


def test_nothing_but_seed_step_and_number_matters() -> None:
    sampler = TableSampler(TABLE, 2, 3, seed=1)
    whole = sampler.batch(4, 6)
    sampler.batch(9)
    first = TableSampler(TABLE, 2, 3, seed=1).batch(4, 2)
    assert_same(first, tf.nest.map_structure(lambda x: x[:2], whole))
    parts = [sampler.shard(worker, 3).batch(4, 2) for worker in range(3)]
    assert_same(tf.nest.map_structure(lambda *x: np.concatenate(x), *parts), whole)
    halves = sampler.shard(1, 3).shard(1, 2).batch(4, 1)
    assert_same(halves, tf.nest.map_structure(lambda x: x[3:4], whole))
    others = [TableSampler(TABLE, 2, 3, seed=s).batch(i, 6)[1] for s, i in ((1, 5), (2, 4))]
    assert not any(np.array_equal(other, whole[1]) for other in others)


def test_the_data_set_goes_on_from_a_step() -> None:
    sampler = TableSampler(TABLE, (1, 3), 2)
    for step, element in zip((4, 5), sampler.dataset(3, start=4), strict=False):
        assert_same(tf.nest.map_structure(lambda x: x.numpy(), element), sampler.batch(step, 3))


def test_rows_of_each_class() -> None:
    sampler = TableSampler(CLASSES, 2, 1, per_class=True)
    inputs, targets = sampler.batch(0, 50)
    assert inputs["support_y"].tolist() == [[0, 0, 1, 1]] * 50
    assert targets.tolist() == [[0, 1]] * 50
    assert targets.dtype == np.int32
    tasks, support, query = sampler.draw(0, 50)
    for place, task in enumerate(tasks):
        own = OF[NAMES[task]]
        assert len({*support[place], *query[place]}) == 6
        np.testing.assert_array_equal(LABELS[own[support[place]]], [0, 0, 1, 1])
        np.testing.assert_array_equal(
            inputs["support_x"][place], np.float32(X[own[support[place]]])
        )
        np.testing.assert_array_equal(LABELS[own[query[place]]], [0, 1])
    varied = TableSampler(CLASSES, (1, 9), 1, per_class=True)
    inputs, _ = varied.batch(0, 20)
    mask = inputs["support_mask"]
    assert (inputs["support_y"][~mask] == -1).all()
    assert not inputs["support_x"][~mask].any()
    half = mask.shape[1] // 2
    assert (mask[:, :half].sum(1) == mask[:, half:].sum(1)).all()
    assert len(set(mask.sum(1))) > 1


def test_rows_of_all_classes_together() -> None:
    assert TableSampler(CLASSES, 2, 1).per_class
    assert not TableSampler(TABLE, 2, 1).per_class
    sampler = TableSampler(CLASSES, 3, 2, per_class=False)
    inputs, targets = sampler.batch(0, 40)
    assert inputs["support_y"].shape == (40, 3)
    tasks, support, query = sampler.draw(0, 40)
    for place, task in enumerate(tasks):
        own = LABELS[OF[NAMES[task]]]
        np.testing.assert_array_equal(inputs["support_y"][place], own[support[place]])
        np.testing.assert_array_equal(targets[place], own[query[place]])
    assert inputs["support_y"].min(1).max() == 1  # some lack a class
    assert "per_class=False" in repr(sampler)


def test_statistics_are_those_of_numpy_with_each_task_counting_the_same() -> None:
    found = TABLE.statistics()
    mean = np.mean([X[OF[name]].mean(0) for name in NAMES], axis=0)
    variance = np.mean([((X[OF[name]] - mean) ** 2).mean(0) for name in NAMES], axis=0)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(found["std"], np.sqrt(variance), rtol=1e-12)
    assert not np.allclose(mean, X.mean(0), rtol=1e-3)
    np.testing.assert_allclose(found["target_mean"], [2 * mean[0] + 1])
    np.testing.assert_allclose(found["target_std"], [2 * found["std"][0]])
    assert set(CLASSES.statistics()) == {"mean", "std"}
    constant = TaskDataset({"a": (np.full((4, 2), 0.1), np.arange(4.0))})
    np.testing.assert_array_equal(constant.statistics()["std"], [1, 1])
    # What is drawn has mean 0 and deviation 1: of 12,000 rows, of which few differ.
    inputs, _ = TableSampler(TABLE, 3, 4, **found).batch(0, 3000)
    drawn = inputs["query_x"].reshape(-1, 2)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(drawn.std(0), 1, atol=0.06)


def test_normalisation_and_the_way_back() -> None:
    scales = TABLE.statistics()
    sampler = TableSampler(TABLE, 3, 4, **scales)
    inputs, targets = sampler.batch(2, 3)
    plain, numbers = TableSampler(TABLE, 3, 4).batch(2, 3)
    expected = (plain["query_x"].astype(np.float64) - scales["mean"]) / scales["std"]
    np.testing.assert_allclose(inputs["query_x"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sampler.denormalize(targets), numbers, rtol=1e-5)
    own = OF["Fiji"]
    x, y = sampler.normalize(X[own], Y[own])
    _, support, _ = next(d for d in map(sampler.draw, range(99)) if d[0] == [1])
    step = next(s for s in range(99) if sampler.draw(s)[0] == [1])
    np.testing.assert_array_equal(sampler.batch(step)[0]["support_x"][0], x[support[0]])
    np.testing.assert_array_equal(sampler.batch(step)[0]["support_y"][0], y[support[0]])
    np.testing.assert_array_equal(sampler.normalize(X[own]), x)
    np.testing.assert_allclose(sampler.denormalize(y)[:, 0], Y[own], rtol=1e-5)


def test_a_small_deviation_beside_a_large_mean_is_not_rounded_away() -> None:
    years = 1e6 + np.arange(8.0)[:, None]
    table = TaskDataset({"a": (years, years)})
    x = TableSampler(table, 4, 4, **table.statistics()).normalize(years)
    np.testing.assert_allclose(x[:, 0], (np.arange(8) - 3.5) / np.arange(8).std(), rtol=1e-6)


def test_all_forms_of_a_table_give_the_same() -> None:
    tables = {name: (X[OF[name]], Y[OF[name]]) for name in NAMES}
    frame = Frame(row=X[:, 0], number=X[:, 1])
    given = [
        TaskDataset(tables),
        TaskDataset.from_rows(X.tolist(), Y.tolist(), IDS.tolist()),
        TaskDataset.from_rows(frame, Column(Y), Column(IDS.astype(object))),
        TaskDataset.from_rows(sparse.coo_matrix(X), Y[:, None], IDS),
        pickle.loads(pickle.dumps(TABLE)),
    ]
    scales = TABLE.statistics()
    expected = TableSampler(TABLE, (1, 4), 3, **scales).batch(1, 8)
    for table in given:
        assert table.task_names == NAMES
        assert_same(list(table.statistics().values()), list(scales.values()))
        assert_same(TableSampler(table, (1, 4), 3, **scales).batch(1, 8), expected)


def test_sparse_rows_stay_sparse() -> None:
    rng = np.random.default_rng(0)
    x = sparse.random_array((100, 10_000), density=1e-3, format="csr", rng=rng)
    table = TaskDataset.from_rows(x, np.arange(100.0), np.arange(100) // 20)
    [(held, _)] = table._tables
    assert held[""].values is x
    inputs, _ = TableSampler(table, 2, 3).batch(0, 2)
    tasks, support, _ = TableSampler(table, 2, 3).draw(0, 2)
    dense = x.toarray()[20 * tasks[:, None] + support]
    np.testing.assert_array_equal(inputs["support_x"], dense.astype(np.float32))


def test_several_inputs_images_integers_and_texts() -> None:
    rng = np.random.default_rng(0)
    x = {
        "image": rng.integers(0, 256, (48, 5, 4, 1), np.uint8),
        "ids": rng.integers(0, 9, (48, 3)),
        "age": rng.normal(50, 9, 48),
        "text": np.array([f"text {i}" for i in range(48)]),
    }
    table = TaskDataset.from_rows(x, Y, IDS)
    assert table.input_names == ("image", "ids", "age", "text")
    scales = table.statistics()
    assert set(scales["mean"]) == {"image", "age"}
    scales = {name: scales[name] for name in ("mean", "std")}
    del scales["mean"]["image"], scales["std"]["image"]
    sampler = TableSampler(table, (1, 4), 3, **scales)
    inputs, _ = sampler.batch(1, 4)
    tasks, support, query = sampler.draw(1, 4)
    for part, drawn in (("support_x", support), ("query_x", query)):
        found = inputs[part]
        for place, task in enumerate(tasks):
            real = drawn[place] >= 0
            own = OF[NAMES[task]][drawn[place][real]]
            image, age = found["image"][place], found["age"][place]
            np.testing.assert_array_equal(image[real], x["image"][own] * np.float32(1 / 255))
            assert not image[~real].any()
            np.testing.assert_array_equal(found["ids"][place, real], x["ids"][own])
            assert found["ids"].dtype == np.int64
            expected = (x["age"][own] - scales["mean"]["age"]) / scales["std"]["age"]
            np.testing.assert_array_equal(age[real][:, 0], expected.astype(np.float32))
            np.testing.assert_array_equal(found["text"][place, real], x["text"][own])
    element = next(iter(sampler.dataset(4)))
    tf.nest.assert_same_structure(element[0], sampler.batch(0, 4)[0])
    normalised = sampler.normalize({name: part[:2] for name, part in x.items()})
    assert normalised["age"].shape == (2, 1)


def test_memory_maps_are_pickled_by_name_and_read_when_drawn(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    table = TaskDataset.from_rows(mapped, Y, IDS)
    sampler = pickle.loads(pickle.dumps(TableSampler(table, 3, 4)))
    assert len(pickle.dumps(table)) < len(pickle.dumps(TABLE))
    assert_same(sampler.batch(0, 5), TableSampler(TABLE, 3, 4).batch(0, 5))
    mapped[OF["Peru"]] = np.nan
    broken = TableSampler(TaskDataset.from_rows(mapped, Y, IDS), 3, 4)
    with pytest.raises(ValueError, match=r"must be finite as float32.*in task 'Peru'"):
        broken.batch(0, 20)


def test_parts() -> None:
    tables = {f"shop {i}": (np.full(5, float(i)), np.arange(5.0)) for i in range(20)}
    shops = TaskDataset(tables)
    parts = shops.split(0.5, 0.25, 0.25, seed=3)
    names = [part.task_names for part in parts]
    assert [len(part) for part in names] == [10, 5, 5]
    assert sorted(sum(names, ())) == sorted(shops.task_names)
    again = TaskDataset(dict(reversed(tables.items()))).split((0.5, 0.25, 0.25), seed=3)
    assert [set(part.task_names) for part in again] == [set(part) for part in names]
    assert parts[1].task_names != shops.split(0.5, 0.25, 0.25)[1].task_names
    inputs, _ = TableSampler(parts[1], 1, 1).batch(0, 30)
    drawn = {f"shop {int(x)}" for x in inputs["query_x"].ravel()}
    assert drawn == set(parts[1].task_names)
    chosen = shops.select(["shop 7", 2])
    assert chosen.task_names == ("shop 7", "shop 2")
    assert chosen.table("shop 7")[0][0, 0] == 7
    np.testing.assert_array_equal(chosen.table(1)[1][:, 0], np.arange(5))
    assert repr(chosen) == "TaskDataset(2 tasks, 10 rows, features=(1,), targets=(1,))"
    assert "TaskDataset(4 tasks, 48 rows, features=(2,), targets=2 classes)" in repr(CLASSES)


def test_tasks_that_are_too_small_are_named_or_left_out() -> None:
    with pytest.raises(ValueError, match=r"3 \+ 8 = 11 rows. Received: 7 in task 'Chad'; too few"):
        TableSampler(TABLE, 3, 8)
    with pytest.raises(ValueError, match=r"also in 'Iran'. `dataset.with_min_rows\(11\)`"):
        TableSampler(TABLE, 3, 8)
    with pytest.warns(UserWarning, match="Left out 2 of 4 tasks.* than 11 rows: 'Chad', 'Iran'"):
        large = TABLE.with_min_rows(11)
    assert large.task_names == ("Fiji", "Peru")
    assert TableSampler(large, 3, 8).batch(0)[1].shape == (1, 8, 1)
    sizes = [[int((LABELS[OF[name]] == c).sum()) for c in (0, 1)] for name in NAMES]
    np.testing.assert_array_equal(CLASSES.class_sizes(), sizes)
    needed = min(map(min, sizes)) + 1
    with pytest.raises(ValueError, match=r"of each class.*with_min_rows\(\d+, per_class=True\)"):
        TableSampler(CLASSES, needed - 1, 1, per_class=True)
    with pytest.warns(UserWarning, match=rf"fewer than {needed} rows of some class: "):
        kept = CLASSES.with_min_rows(needed, per_class=True)
    assert TABLE.with_min_rows(7).task_names == NAMES  # without a warning
    assert kept.task_names == tuple(
        n for n, s in zip(NAMES, sizes, strict=True) if min(s) >= needed
    )


def nan_at(row: int, column: int) -> Any:
    x = X.copy()
    x[row, column] = np.nan
    return x


FIRST = int(OF["Iran"][0])
FRAME = {"year": X[:, 0], "income": X[:, 1]}


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "nan": (
        lambda: TaskDataset.from_rows(nan_at(FIRST, 1), Y, IDS),
        ValueError,
        f"`features` must be finite. Received: NaN or infinity in row {FIRST}, of task 'Iran', "
        "column 1",
    ),
    "nan of a frame": (
        lambda: TaskDataset.from_rows(Frame(year=X[:, 0], income=nan_at(FIRST, 1)[:, 1]), Y, IDS),
        ValueError,
        f"row {FIRST}, of task 'Iran', column 'income'",
    ),
    "nan of a sparse matrix": (
        lambda: TaskDataset.from_rows(sparse.csr_matrix(nan_at(FIRST, 1)), Y, IDS),
        ValueError,
        f"row {FIRST}, of task 'Iran', column 1",
    ),
    "nan of targets": (
        lambda: TaskDataset({"a": (X, Y), "b": (X, np.where(np.arange(48) == 5, np.nan, Y))}),
        ValueError,
        "`targets` must be finite. Received: NaN or infinity in row 5 of task 'b', column 0",
    ),
    "nan of an input": (
        lambda: TaskDataset({"a": ({"x": X, "z": nan_at(2, 0)}, Y)}),
        ValueError,
        r"`features\['z'\]` must be finite.*row 2 of task 'a', column 0",
    ),
    "texts in a frame": (
        lambda: TaskDataset.from_rows(Frame(**FRAME, name=IDS), Y, IDS),
        TypeError,
        "must be a data frame of numbers. Received: column 'name'",
    ),
    "dates in a frame": (
        lambda: TaskDataset.from_rows(Dates(day=np.full(48, "2020-01-01", "M8[D]")), Y, IDS),
        TypeError,
        "must be numbers, or texts. Received: type datetime64",
    ),
    "lengths": (
        lambda: TaskDataset({"a": (X, Y[:-1])}),
        ValueError,
        "of task 'a' must have the same length. Received: 48 rows of features, 47 targets",
    ),
    "inputs of several lengths": (
        lambda: TaskDataset({"a": ({"x": X, "z": X[1:]}, Y)}),
        ValueError,
        "as many rows of each input. Received: {'x': 48, 'z': 47}",
    ),
    "no inputs": (lambda: TaskDataset({"a": ({}, Y)}), ValueError, "at least one input"),
    "shapes": (
        lambda: TaskDataset({"a": (X, Y), "b": (X[:, :1], Y)}),
        ValueError,
        "of one shape and kind in all tasks.*for task 'a'.*for task 'b'",
    ),
    "kinds": (
        lambda: TaskDataset({"a": (X, Y), "b": (X, LABELS)}),
        TypeError,
        "'floats'.*for task 'a'.*'classes'.*for task 'b'",
    ),
    "no dict": (lambda: TaskDataset([(X, Y)]), TypeError, "TaskDataset.from_rows. Received: list"),
    "no tasks": (lambda: TaskDataset({}), ValueError, "at least one task"),
    "no pair": (
        lambda: TaskDataset({"a": X}),
        TypeError,
        "pairs .* Received: ndarray for",
    ),
    "no rows": (lambda: TaskDataset({"a": (X[:0], Y[:0])}), ValueError, "with one row at least"),
    "names": (lambda: TaskDataset({"1": (X, Y), 1: (X, Y)}), ValueError, "'1' more than once"),
    "features of another type": (
        lambda: TaskDataset({"a": (X.astype("datetime64[D]"), Y)}),
        TypeError,
        r"must be numbers, or texts. Received: type datetime64\[D\]",
    ),
    "a number": (lambda: TaskDataset({"a": (3.0, Y)}), TypeError, "must be an array of rows"),
    "uneven rows": (lambda: TaskDataset({"a": ([[1], [2, 3]], Y[:2])}), TypeError, "rows of one"),
    "targets of another type": (
        lambda: TaskDataset({"a": (X, IDS)}),
        TypeError,
        "must be floats, or integers for classes",
    ),
    "negative classes": (
        lambda: TaskDataset({"a": (X, LABELS - 1)}),
        ValueError,
        "Received: integers from -1 to 0",
    ),
    "several classes": (
        lambda: TaskDataset({"a": (X, np.stack([LABELS, LABELS], 1))}),
        ValueError,
        "one class for",
    ),
    "ids": (lambda: TaskDataset.from_rows(X, Y, Y), TypeError, "`task_ids` must be integers or"),
    "too few ids": (
        lambda: TaskDataset.from_rows(X, Y, IDS[1:]),
        ValueError,
        "one for each of the 48 rows",
    ),
    "fractions": (lambda: TABLE.split(0.9, 0.1), ValueError, "at least one task in each part"),
    "unknown task": (
        lambda: TABLE.select(["Pru"]),
        ValueError,
        "Received the unknown 'Pru'. Did you mean 'Peru'",
    ),
    "no such table": (
        lambda: TABLE.table(4),
        ValueError,
        "`task` must be from 0 to 3. Received: 4",
    ),
    "twice": (lambda: TABLE.select([1, "Fiji"]), ValueError, "`tasks` must all differ"),
    "min rows": (lambda: TABLE.with_min_rows(21), ValueError, "`rows` must be at most 20"),
    "classes of a regression": (
        lambda: TABLE.with_min_rows(2, per_class=True),
        ValueError,
        "`per_class` must be False",
    ),
    "per class of a regression": (
        lambda: TableSampler(TABLE, 1, 1, per_class=True),
        ValueError,
        "`per_class` must be False",
    ),
    "per class": (
        lambda: TableSampler(TABLE, 1, 1, per_class=1),  # type: ignore[arg-type]
        TypeError,
        "`per_class` must be True, False or None",
    ),
    "data set": (lambda: TableSampler(X, 1, 1), TypeError, "a tfmeta.data.TaskDataset. Received"),  # type: ignore[arg-type]
    "shots": (lambda: TableSampler(TABLE, 0, 1), ValueError, "`shots` must be at least 1"),
    "queries": (lambda: TableSampler(TABLE, 1, 1.5), TypeError, "`queries` must be an integer"),  # type: ignore[arg-type]
    "mean": (lambda: TableSampler(TABLE, 1, 1, mean=[1, 2, 3]), ValueError, "`mean` must be a num"),
    "std": (lambda: TableSampler(TABLE, 1, 1, std=0.0), ValueError, "`std` must be positive"),
    "target std": (
        lambda: TableSampler(TABLE, 1, 1, target_std=0.0),
        ValueError,
        "`target_std` must be pos",
    ),
    "mean of classes": (
        lambda: TableSampler(CLASSES, 1, 1, target_mean=1.0),
        ValueError,
        "`target_mean` must be No",
    ),
    "dict of mean": (
        lambda: TableSampler(TABLE, 1, 1, mean={"x": 1.0}),
        TypeError,
        "`mean` must not be a dict",
    ),
    "mean of integers": (
        lambda: TableSampler(TaskDataset({"a": (LABELS, Y)}), 1, 1, mean=1.0),
        ValueError,
        "need features that are floats",
    ),
    "statistics of integers": (
        lambda: TaskDataset({"a": (LABELS, Y)}).statistics(),
        TypeError,
        "`features` must be floats to be normalised",
    ),
    "step": (lambda: TableSampler(TABLE, 1, 1).batch(-1), ValueError, "`step` must be at least 0"),
    "tasks": (lambda: TableSampler(TABLE, 1, 1).batch(0, 0), ValueError, "must be at least 1"),
    "way back of classes": (
        lambda: TableSampler(CLASSES, 1, 1).denormalize([0.0]),
        ValueError,
        "Received: classes",
    ),
    "another shape": (
        lambda: TableSampler(TABLE, 1, 1).normalize(X[:, :1]),
        ValueError,
        r"rows of the shapes",
    ),
    "not finite": (
        lambda: TableSampler(TABLE, 1, 1).normalize(nan_at(0, 0)),
        ValueError,
        "as float32",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    attempt, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        attempt()


def network(outputs: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.Input((2,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(outputs)]
    return keras.Sequential(layers)


def test_regression_is_trained_scored_with_references_and_adapted() -> None:
    scales = TABLE.statistics()
    sampler = TableSampler(TABLE, 3, 4, **scales)
    learner = tfmeta.MAML(network(1), 0.05)
    learner.compile(keras.optimizers.Adam(0.01), "mean_squared_error")
    learner.fit(sampler.dataset(4), steps_per_epoch=3, verbose=0)
    result = tfmeta.evaluate(learner, sampler, 3, references=True, verbose=False)
    assert {"ridge on raw inputs", "mean of the support set"} <= set(result.references)
    assert "R²" in str(result)
    adapted = learner.adapt(*sampler.normalize(X[OF["Chad"]], Y[OF["Chad"]]))
    predicted = sampler.denormalize(adapted.predict(sampler.normalize(X[OF["Peru"]]), verbose=0))
    assert predicted.shape == (12, 1)


@pytest.mark.slow
def test_classes_of_rows_are_trained_scored_and_adapted() -> None:
    scales = CLASSES.statistics()
    sampler = TableSampler(CLASSES, (1, 3), 1, per_class=True, **scales)
    learner = tfmeta.PrototypicalNetwork(network(3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("adam", loss, metrics=["accuracy"])
    learner.fit(sampler.dataset(4), steps_per_epoch=3, verbose=0)
    result = tfmeta.evaluate(learner, sampler, 5, references=True, verbose=False)
    assert result.references["chance"].mean == 0.5
    learner.adapt(*sampler.normalize(X[OF["Chad"]], LABELS[OF["Chad"]]))
