"""The C++ core: equal to its NumPy twin bit for bit, and safe whatever it is given."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import reference
from tfmeta import _core

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=30)
WORD = st.integers(0, 2**64 - 1)


def class_table(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class offsets, shuffled class indices and quarter turns for classes of these sizes."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    indices = random.permutation(offsets[-1])
    return offsets, indices, random.integers(0, 4, len(sizes), np.uint8)


def assert_same(actual: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        assert a.tobytes() == e.tobytes()


@st.composite
def drawings(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `reference.sample`, any that can be fulfilled."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=30))
    pool = st.lists(st.integers(0, len(sizes) - 1), min_size=1, unique=True)
    pools = draw(st.one_of(st.lists(pool, min_size=1, max_size=4), st.just([[*range(len(sizes))]])))
    least = draw(st.integers(1, min(map(len, pools))))
    needed = draw(st.integers(0, min(sizes)))
    shots = draw(st.integers(0, needed))
    wide = draw(st.booleans())
    offsets, indices, turns = class_table(sizes, draw(st.integers(0, 96)))
    return {
        "class_offsets": offsets,
        "class_indices": indices,
        "quarter_turns": turns,
        "pools": pools,
        "ways": (least, draw(st.integers(least, max(map(len, pools)))) if wide else least),
        "shots": (shots, shots + draw(st.integers(0, 10)) if wide else shots),
        "queries": needed - shots,
        "seed": draw(WORD),
        "step": draw(WORD),
        "tasks": draw(st.integers(0, 5)),
        "first_task": draw(st.integers(0, 1000)),
        "random_rotation": draw(st.booleans()),
        "balanced": draw(st.booleans()),
        "weighted": draw(st.booleans()),
    }


def sample(pools: list[list[int]], **arguments: Any) -> Any:
    """`_core.sample` with the arguments of its twin."""
    sizes = [len(pool) for pool in pools]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return _core.sample(pool_offsets=offsets, pool_classes=np.concatenate(pools), **arguments)


def plain(table: Any, ways: int, shots: int, queries: int, **more: Any) -> dict[str, Any]:
    """Arguments of `sample` for tasks of one shape from all classes."""
    return {
        **dict(zip(("class_offsets", "class_indices", "quarter_turns"), table, strict=True)),
        "pools": [[*range(len(table[2]))]],
        "ways": (ways, ways),
        "shots": (shots, shots),
        "queries": queries,
        **more,
    }


@given(arguments=drawings())
@settings(deadline=None)
def test_sample_equals_twin(arguments: dict[str, Any]) -> None:
    assume(sum(arguments["shots"]) + arguments["queries"] <= len(arguments["class_indices"]))
    assert_same(sample(**arguments), reference.sample(**arguments))


@pytest.mark.parametrize(
    ("classes", "ways", "examples"), [(5000, 300, 3), (3, 2, 999), (1, 1, 999)]
)
def test_sample_equals_twin_where_many_are_drawn(classes: int, ways: int, examples: int) -> None:
    table = class_table([1000 if examples > 3 else 4] * classes)
    arguments = plain(table, ways, 1, examples - 1, seed=7, step=11, tasks=2, random_rotation=True)
    assert_same(sample(**arguments), reference.sample(**arguments))


def test_sample_skips_words_that_would_favour_some_integers(tmp_path: pathlib.Path) -> None:
    # Of 3 * 2**30 examples a class a quarter of all words is skipped. Their positions come from a
    # file of nothing but holes; the turns drawn after them tell how many words went before.
    size = 3 * 2**30
    path = tmp_path / "positions"
    try:
        with path.open("wb") as file:
            file.truncate(3 * size * 8)
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    positions = np.memmap(path, np.int64, "r")
    offsets = size * np.arange(4)
    table = (offsets, positions, np.zeros(3, np.uint8))
    classes, _, turns = sample(
        **plain(table, 3, 8, 8, seed=5, step=6, tasks=1, random_rotation=True)
    )

    random = reference.words(5, 6, 0)
    assert classes[0].tolist() == reference.shuffled(3, 3, random)
    expected = []
    for _ in range(3):
        expected.append(reference.below(4, random))
        for i in range(16):
            reference.below(size - i, random)
    assert turns[0].tolist() == expected


@given(
    data=st.data(),
    count=st.integers(1, 20),
    side=st.integers(1, 37),
    channels=st.sampled_from([None, 1, 2, 3, 5]),
    dtype=st.sampled_from([np.uint8, np.float32]),
    threads=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_gather_equals_twin(
    data: st.DataObject,
    count: int,
    side: int,
    channels: int | None,
    dtype: Any,
    threads: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    shape = [count, side, side] + ([] if channels is None else [channels])
    examples = random.integers(0, 256, shape).astype(dtype)
    if dtype == np.float32:
        examples -= random.random(shape, np.float32)
    tasks, ways = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 5))
    per_class = data.draw(st.integers(1, 6))
    shots = data.draw(st.integers(0, per_class))
    indices = random.integers(0, count, [tasks, ways, per_class])
    turns = random.integers(0, 256, [tasks, ways], np.uint8)
    actual = _core.gather(examples, indices, turns, shots, threads)
    assert_same(actual, reference.gather(examples, indices, turns, shots))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)])
def test_gather_takes_examples_of_any_shape(shape: tuple[int, ...], dtype: Any) -> None:
    random = np.random.default_rng(0)
    examples = random.integers(0, 256, [10, *shape]).astype(dtype)
    indices = random.integers(0, 10, [2, 3, 4])
    turns = np.zeros([2, 3], np.uint8)
    assert_same(
        _core.gather(examples, indices, turns, 1), reference.gather(examples, indices, turns, 1)
    )


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_gather_splits_large_work_between_threads(threads: int) -> None:
    random = np.random.default_rng(0)
    examples = random.integers(0, 256, [50, 64, 64, 3], np.uint8)
    indices = random.integers(0, 50, [16, 5, 6])  # 23 MB: enough for eight threads
    turns = random.integers(0, 4, [16, 5], np.uint8)
    assert_same(
        _core.gather(examples, indices, turns, 2, threads),
        reference.gather(examples, indices, turns, 2),
    )


def test_gather_reads_every_second_example_and_unaligned_floats() -> None:
    random = np.random.default_rng(0)
    examples = random.random([20, 6, 6], np.float32)
    shifted = np.frombuffer(b"?" + examples.tobytes(), np.float32, offset=1).reshape(20, 6, 6)
    assert not shifted.flags.aligned
    indices = random.integers(0, 10, [2, 3, 4])
    turns = random.integers(0, 4, [2, 3], np.uint8)
    expected = reference.gather(examples[::2], indices, turns, 1)
    assert_same(_core.gather(examples[::2], indices, turns, 1), expected)
    assert_same(_core.gather(shifted[::2], indices, turns, 1), expected)


def test_results_are_aligned_and_their_memory_is_not_shared() -> None:
    examples = np.arange(200, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    turns = np.zeros([8, 5], np.uint8)
    kept = []
    for number in range(12):
        indices = np.full([8, 5, 4], number)
        kept.append(_core.gather(examples, indices, turns, 2))
        if number % 3 == 2:
            del kept[0]  # gives its memory back, to be used again by the next
    for number, (support, query) in zip([4, 5, 6, 7, 8, 9, 10, 11], kept, strict=True):
        for array in (support, query):
            assert array.ctypes.data % 64 == 0
            assert array.flags.writeable
            np.testing.assert_array_equal(array, np.float32(number) * np.float32(1 / 255))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [1, 4])
def test_gather_names_the_first_example_that_is_not_finite(bad: float, threads: int) -> None:
    examples = np.ones([300, 32, 32, 3], np.float32)
    examples[[7, 123, 250], 31, 31, 2] = bad
    indices = np.arange(300).reshape(10, 5, 6)[::-1].copy()  # 250 is met first
    turns = np.tile(np.arange(5, dtype=np.uint8), (10, 1))
    with pytest.raises(ValueError, match=r"finite.*NaN or an infinity in example 250$"):
        _core.gather(examples, indices, turns, 3, threads)


def test_extreme_but_finite_floats_pass() -> None:
    limits = np.finfo(np.float32)
    examples = np.array([[limits.max, limits.min, limits.tiny, 1e-45, -0.0]], np.float32)
    support, _ = _core.gather(
        examples, np.zeros([1, 1, 1], np.int64), np.zeros([1, 1], np.uint8), 1
    )
    assert support[0].tobytes() == examples.tobytes()


GOOD_SAMPLE = {
    "class_offsets": np.array([0, 4, 8, 12]),
    "class_indices": np.arange(12),
    "quarter_turns": np.zeros(3, np.uint8),
    "pool_offsets": np.array([0, 2, 5]),
    "pool_classes": np.array([2, 1, 0, 1, 2]),
    "ways": (2, 2),
    "shots": (1, 1),
    "queries": 2,
    "seed": 0,
    "step": 0,
    "tasks": 3,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"class_offsets": np.array([0, 4, 8])}, ValueError, "`class_offsets` .* lengths 3 and 3"),
        ({"class_offsets": np.zeros(4, np.int32)}, ValueError, "`class_offsets` .*int64.*int32"),
        ({"class_offsets": np.zeros([4, 1], np.int64)}, ValueError, "`class_offsets` .* rank 1"),
        ({"class_offsets": np.arange(8)[::2]}, ValueError, "`class_offsets` .*contiguous"),
        ({"class_offsets": np.array([0, 4, 3, 12])}, ValueError, "class . from"),
        ({"class_offsets": np.array([-9, -5, -1, 3])}, ValueError, "class . from -"),
        ({"class_offsets": np.array([5, 10, 15, 20])}, ValueError, "class . from"),
        ({"class_offsets": np.array([0, 2, 4, 6])}, ValueError, "= 3 .*Received: class"),
        ({"class_indices": np.arange(12.0)}, ValueError, "`class_indices` .*float64"),
        ({"class_indices": np.arange(5)}, ValueError, "`class_indices` of length 5"),
        ({"class_indices": None}, TypeError, "class_indices"),
        ({"quarter_turns": np.zeros(3)}, ValueError, "`quarter_turns` .*uint8.*float64"),
        ({"pool_offsets": np.zeros(0, np.int64)}, ValueError, "`pool_offsets` .* 0 offsets"),
        ({"pool_offsets": np.array([0, 9, 5])}, ValueError, "`pool_offsets` must ascend"),
        ({"pool_offsets": np.array([0, 4])}, ValueError, "`pool_offsets` .* 5 classes"),
        ({"pool_offsets": np.array([1, 5])}, ValueError, "`pool_offsets` must ascend"),
        ({"pool_offsets": np.array([0, 0, 5])}, ValueError, "pool 0 with 0"),
        (
            {"pool_classes": np.array([2, 1, 0, 1, 3])},
            ValueError,
            "`pool_classes` .*less than 3.*3",
        ),
        ({"pool_classes": np.array([2, 1, -1, 1, 2])}, ValueError, "`pool_classes` .*-1"),
        ({"ways": (6, 6)}, ValueError, "`ways` .*ways=6, 5 classes"),
        ({"ways": (0, 2)}, ValueError, "`ways` .*ways=0"),
        ({"ways": (2, 1)}, ValueError, "`ways` .*least, most.*2, 1"),
        ({"ways": (-(2**63), 1)}, ValueError, "`ways` .*ways=-"),
        ({"ways": (1.5, 2)}, TypeError, "ways"),
        ({"shots": (-1, 1)}, ValueError, "`shots` .*shots=-1"),
        ({"shots": (2, 1)}, ValueError, "`shots` .*least, most"),
        ({"shots": (2**62, 2**62), "queries": 2**62}, ValueError, "at most .* 12"),
        ({"shots": (1, 2**31)}, ValueError, "at most .* 12.*shots=2147483648"),
        ({"shots": (1, 4), "class_offsets": np.array([0, 4, 7, 9])}, ValueError, "class 2 from"),
        (
            {"weighted": True, "class_offsets": np.array([0, 4, 3, 12])},
            ValueError,
            "`class_offsets` must ascend",
        ),
        (
            {"weighted": True, "class_offsets": np.array([0, 0, 0, 12])},
            ValueError,
            "`ways` must be at most the number of classes with examples",
        ),
        ({"first_task": -1}, ValueError, "`first_task` .*first_task=-1"),
        ({"queries": -1}, ValueError, "`queries` .*queries=-1"),
        ({"seed": -1}, TypeError, "seed"),
        ({"seed": 2**64}, TypeError, "seed"),
        ({"step": -1}, TypeError, "step"),
        ({"tasks": -1}, ValueError, "`tasks` .*tasks=-1"),
        ({"tasks": 2**60}, MemoryError, None),
    ],
)
def test_sample_refuses(
    change: dict[str, Any], error: type[Exception], message: str | None
) -> None:
    _core.sample(**GOOD_SAMPLE)
    with pytest.raises(error, match=message):
        _core.sample(**{**GOOD_SAMPLE, **change})


GOOD_GATHER = {
    "examples": np.zeros([9, 4, 4, 1], np.uint8),
    "indices": np.zeros([2, 3, 4], np.int64),
    "turns": np.ones([2, 3], np.uint8),
    "shots": 1,
    "threads": 1,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"examples": np.zeros([9, 4, 4])}, ValueError, "`examples` .*float64"),
        ({"examples": np.zeros([9, 4, 4], ">f4")}, ValueError, "`examples` .*>f4"),
        ({"examples": np.zeros([0, 4, 4], np.uint8)}, ValueError, "at least one example"),
        ({"examples": np.zeros([9, 0, 0], np.uint8)}, ValueError, "at least one element"),
        ({"examples": np.zeros([], np.uint8)}, ValueError, "at least one example"),
        ({"examples": np.zeros([9, 4, 8], np.uint8)[..., ::2]}, ValueError, "contiguous"),
        ({"examples": np.zeros([9, 4, 4], np.uint8)[::-1]}, ValueError, "ascending"),
        ({"examples": np.zeros([9, 4, 5], np.uint8)}, ValueError, "square"),
        ({"examples": np.zeros([9, 16], np.uint8)}, ValueError, "square"),
        ({"examples": [[1]]}, TypeError, "examples"),
        ({"indices": np.full([2, 3, 4], 9)}, ValueError, "`indices` .* 9"),
        ({"indices": np.full([2, 3, 4], -1)}, ValueError, "`indices` .* -1"),
        ({"indices": np.zeros([2, 3, 4], np.int32)}, ValueError, "`indices` .*int32"),
        ({"indices": np.zeros([2, 3], np.int64)}, ValueError, "`indices` .*rank 3"),
        ({"indices": np.zeros([2, 3, 0], np.int64), "shots": 0}, ValueError, "at least 1"),
        ({"turns": np.zeros([3, 2], np.uint8)}, ValueError, "`turns` "),
        ({"turns": np.zeros([2, 3], np.int64)}, ValueError, "`turns` .*uint8.*int64"),
        ({"shots": 5}, ValueError, "`shots` .*shots=5"),
        ({"shots": -1}, ValueError, "`shots` .*shots=-1"),
        ({"threads": 0}, ValueError, "`threads` .*threads=0"),
    ],
)
def test_gather_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    _core.gather(**GOOD_GATHER)
    with pytest.raises(error, match=message):
        _core.gather(**{**GOOD_GATHER, **change})
