"""The C++ core: equal to its NumPy twin bit for bit, and safe whatever it is given."""

from __future__ import annotations

import concurrent.futures
import os
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


def test_the_build_is_the_one_to_be_tested() -> None:
    # `make sanitize` would pass with any other.
    assert os.environ.get("TFMETA_SANITIZED", "") in _core.__file__


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
    random_seed=st.integers(0, 2**32 - 1),
    places=st.integers(0, 6),
    image=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    words=st.tuples(WORD, WORD, st.integers(0, 4), st.integers(0, 2**62)),
    flip=st.booleans(),
    crop=st.integers(0, 100),
    factors=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
)
@settings(deadline=None)
def test_augmentations_equal_twin(
    random_seed: int,
    places: int,
    image: tuple[int, int],
    words: tuple[int, int, int, int],
    flip: bool,
    crop: int,
    factors: tuple[float, float],
) -> None:
    changes = {"flip": flip, "crop": crop, "brightness": factors[0], "contrast": factors[1]}
    changes["cutout"] = random_seed % (min(image) + 1)
    arguments = (places, *image, *words)
    actual = _core.augmentations(*arguments, **changes)
    expected = reference.augmentations(*arguments, **changes)
    assert_same([actual[name] for name in actual.dtype.names], [expected[n] for n in CHANGES])


CHANGES = reference.AUGMENTATION.names


def test_augmentations_are_uniform_and_independent_of_each_other() -> None:
    everything = {"flip": True, "crop": 3, "brightness": 0.5, "contrast": 0.25, "cutout": 8}
    drawn = _core.augmentations(100, 20, 15, 1, 2, 200, **everything)
    for name, least, most in [
        ("flip", 0, 1), ("top", -3, 3), ("left", -3, 3), ("cut_top", 0, 12), ("cut_left", 0, 7)
    ]:  # fmt: skip
        counts = np.bincount(drawn[name].ravel() - least, minlength=most - least + 1)
        assert len(counts) == most - least + 1
        expected = drawn.size / len(counts)
        # 12 degrees of freedom at most, at 1 in 10,000.
        assert ((counts - expected) ** 2).sum() / expected < 39.2
    for name, half in [("brightness", 0.5), ("contrast", 0.25)]:
        assert 1 - half <= drawn[name].min() < 1 - 0.99 * half
        assert 1 + half > drawn[name].max() > 1 + 0.99 * half
        assert abs(drawn[name].mean() - 1) < 4 * half / np.sqrt(3 * drawn.size)
    numbers = np.stack([drawn[name].ravel() for name in CHANGES[:7]]).astype(float)
    together = np.corrcoef(numbers) - np.eye(7)
    assert np.abs(together).max() < 5 / np.sqrt(drawn.size)
    # Each word has one use: what else is asked for changes nothing, nor which tasks are drawn.
    for name in ("flip", "crop", "brightness", "contrast", "cutout"):
        alone = _core.augmentations(100, 20, 15, 1, 2, 5, 20, **{name: everything[name]})
        for field in {"crop": ["top", "left"], "cutout": reference.CUT}.get(name, [name]):
            np.testing.assert_array_equal(alone[field], drawn[field][20:25])


def some_augmentations(
    random: np.random.Generator, shape: tuple[int, ...], image: tuple[int, int]
) -> np.ndarray:
    """Records of which any part may be missing, some of which reaches beyond the image."""
    drawn = np.zeros(shape, reference.AUGMENTATION)
    drawn["flip"] = random.integers(0, 2, shape)
    for name, n in zip(("top", "left"), image, strict=True):
        drawn[name] = random.integers(-n - 1, n + 2, shape) * random.integers(0, 2, shape)
    for name in ("brightness", "contrast"):
        drawn[name] = np.where(random.integers(0, 2, shape), random.uniform(0, 2, shape), 1)
    for name, n in zip(reference.CUT, (*image, *image), strict=True):
        drawn[name] = random.integers(-2, n + 2, shape)
    return drawn


@given(
    data=st.data(),
    count=st.integers(1, 20),
    rows=st.integers(1, 29),
    columns=st.one_of(st.none(), st.integers(1, 29)),
    channels=st.sampled_from([None, 1, 2, 3, 5]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float16, np.float32]),
    threads=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_gather_equals_twin(
    data: st.DataObject,
    count: int,
    rows: int,
    columns: int | None,
    channels: int | None,
    dtype: Any,
    threads: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    image = (rows, rows if columns is None else columns)
    shape = [2 * count, *image] + ([] if channels is None else [channels])
    if np.dtype(dtype).kind == "u":
        examples = random.integers(0, np.iinfo(dtype).max + 1, shape, dtype)
    else:
        examples = random.uniform(-0.5, 1.5, shape).astype(dtype)
    examples = examples[:: data.draw(st.sampled_from([1, 2]))]
    drawn = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    indices = random.integers(-1, len(examples), drawn)
    turns = random.integers(0, 256, drawn, np.uint8)
    if image[0] != image[1]:
        turns[...] = 0
    arguments: list[Any] = [examples, indices, turns, None, None, None]
    if data.draw(st.booleans()):
        arguments[3] = some_augmentations(random, drawn, image)
    if data.draw(st.booleans()):
        arguments[4] = random.uniform(0.1, 5, channels or 1).astype(np.float32)
        arguments[5] = random.uniform(-2, 2, channels or 1).astype(np.float32)
    expected = [reference.gather(*arguments)]
    assert_same([_core.gather(*arguments, threads)], expected)
    places = st.lists(st.integers(1, count - 1), unique=True) if count > 1 else st.just([])
    shards = [part.copy() for part in np.split(examples, sorted(data.draw(places)))]
    assert_same([_core.gather(shards, *arguments[1:], threads)], expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (2, 2, 3, 5)])
def test_gather_takes_examples_of_any_shape(shape: tuple[int, ...], dtype: Any) -> None:
    random = np.random.default_rng(0)
    examples = random.integers(0, 256, [10, *shape]).astype(dtype)
    indices = random.integers(-1, 10, [2, 3, 4])
    turns = np.zeros([2, 3, 4], np.uint8)
    arguments = [(examples, indices, turns)]
    if shape:
        channels = 1 if len(shape) == 2 else shape[-1]
        numbers = random.random([2, channels], np.float32)
        arguments.append((examples, indices, turns, None, *numbers))
    for each in arguments:
        assert_same([_core.gather(*each)], [reference.gather(*each)])


def test_every_half_precision_number_is_converted() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)][:, None]
    indices, turns = np.arange(len(finite)), np.zeros(len(finite), np.uint8)
    assert_same([_core.gather(finite, indices, turns)], [finite.astype(np.float32)])
    assert_same([_core.gather(finite[:, 0], indices, turns)], [finite[:, 0].astype(np.float32)])
    for number in np.flatnonzero(~np.isfinite(halves)):
        with pytest.raises(ValueError, match=rf"in example {number}$"):
            _core.gather(halves, np.array([0, number]), turns[:2])


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_gather_splits_large_work_between_threads(threads: int) -> None:
    random = np.random.default_rng(0)
    examples = random.integers(0, 256, [50, 64, 64, 3], np.uint8)
    indices = random.integers(-1, 50, [16, 5, 6])  # 23 MB: enough for eight threads
    turns = random.integers(0, 4, [16, 5, 6], np.uint8)
    expected = np.where(
        (indices >= 0)[..., None, None, None],
        np.choose(
            turns[..., None, None, None],
            [np.rot90(examples[indices], k, (-3, -2)) * np.float32(1 / 255) for k in range(4)],
        ),
        np.float32(0),
    )
    assert_same([_core.gather(examples, indices, turns, threads=threads)], [expected])


def test_gather_reads_every_second_example_and_unaligned_floats() -> None:
    random = np.random.default_rng(0)
    examples = random.random([20, 6, 6], np.float32)
    shifted = np.frombuffer(b"?" + examples.tobytes(), np.float32, offset=1).reshape(20, 6, 6)
    assert not shifted.flags.aligned
    indices = random.integers(0, 10, [2, 3, 4])
    turns = random.integers(0, 4, [2, 3, 4], np.uint8)
    expected = [reference.gather(examples[::2], indices, turns)]
    assert_same([_core.gather(examples[::2], indices, turns)], expected)
    assert_same([_core.gather(shifted[::2], indices, turns)], expected)


def test_results_are_aligned_and_their_memory_is_not_shared() -> None:
    examples = np.arange(200, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    turns = np.zeros([8, 20], np.uint8)
    kept = []
    for number in range(12):
        indices = np.full([8, 20], number)
        kept.append(_core.gather(examples, indices, turns))
        if number % 3 == 2:
            del kept[0]  # gives its memory back, to be used again by the next
    for number, array in zip([4, 5, 6, 7, 8, 9, 10, 11], kept, strict=True):
        assert array.ctypes.data % 64 == 0
        assert array.flags.writeable
        np.testing.assert_array_equal(array, np.float32(number) * np.float32(1 / 255))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_gather_names_the_first_example_that_is_not_finite(
    bad: float, threads: int, dtype: Any
) -> None:
    examples = np.ones([300, 32, 32, 3], dtype)
    examples[[7, 123, 250], 31, 31, 2] = bad
    indices = np.arange(300).reshape(10, 5, 6)[::-1].copy()  # 250 is met first
    turns = np.tile(np.arange(6, dtype=np.uint8), (10, 5, 1))
    message = r"finite.*NaN or an infinity in example 250$"
    with pytest.raises(ValueError, match=message):
        _core.gather(examples, indices, turns, threads=threads)
    changes = np.zeros(indices.shape, reference.AUGMENTATION)
    changes["contrast"] = 0.5
    with pytest.raises(ValueError, match=message):
        _core.gather(examples, indices, turns, changes, threads=threads)


def test_extreme_but_finite_floats_pass() -> None:
    limits = np.finfo(np.float32)
    examples = np.array([[limits.max, limits.min, limits.tiny, 1e-45, -0.0]], np.float32)
    gathered = _core.gather(examples, np.zeros(1, np.int64), np.zeros(1, np.uint8))
    assert gathered.tobytes() == examples.tobytes()


def test_gather_survives_any_augmentation() -> None:
    examples = np.full([2, 5, 7, 1], 255, np.uint8)
    random = np.random.default_rng(0)
    changes = np.zeros(2000, reference.AUGMENTATION)
    for name in CHANGES:
        if changes[name].dtype == np.int32:
            limits = random.choice([-(2**31), -1, 0, 1, 4, 2**31 - 1], 2000)
            changes[name] = limits
        else:
            changes[name] = random.choice([0, 1, 1e30, -1, np.nan], 2000)
    indices, turns = random.integers(-1, 2, 2000), np.zeros(2000, np.uint8)
    changes["brightness"][:1000] = changes["contrast"][:1000] = 1
    arguments = (examples, indices[:1000], turns[:1000], changes[:1000])
    assert_same([_core.gather(*arguments)], [reference.gather(*arguments)])
    with pytest.raises(ValueError, match="finite"):
        _core.gather(examples, indices, turns, changes)


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
        (
            {"weighted": True, "class_offsets": np.array([0, 4, 8, 2**33])},
            ValueError,
            "`class_offsets` must be within `class_indices` of length 12",
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
    "turns": np.ones([2, 3, 4], np.uint8),
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
        ({"examples": []}, TypeError, "an array, or a list of arrays"),
        (
            {"examples": [np.zeros([9, 4, 4], np.uint8), np.zeros([9, 4, 4], np.float32)]},
            ValueError,
            "of one type and shape in all shards.*float32",
        ),
        (
            {"examples": [np.zeros([9, 4, 4], np.uint8), np.zeros([9, 4, 5], np.uint8)]},
            ValueError,
            "of one type and shape in all shards",
        ),
        ({"examples": [np.zeros([9, 4, 4], np.uint8)[::2]] * 2}, ValueError, "be contiguous"),
        (
            {
                "examples": [np.zeros([4, 4, 4], np.uint8)] * 2,
                "indices": np.full([2, 3, 4], 8),
            },
            ValueError,
            "number of examples, 8",
        ),
        ({"indices": np.full([2, 3, 4], 9)}, ValueError, "`indices` .* 9"),
        ({"indices": np.full([2, 3, 4], -2)}, ValueError, "`indices` .* -2"),
        ({"indices": np.zeros([2, 3, 4], np.int32)}, ValueError, "`indices` .*int32"),
        ({"indices": np.zeros([4, 3, 2], np.int64).T}, ValueError, "`indices` .*contiguous"),
        ({"turns": np.zeros([2, 3], np.uint8)}, ValueError, "`turns` .*shape of `indices`"),
        ({"turns": np.zeros([2, 3, 4], np.int64)}, ValueError, "`turns` .*uint8.*int64"),
        ({"augmentations": np.zeros([2, 3, 4])}, ValueError, "`augmentations` .*float64"),
        (
            {"augmentations": np.zeros([2, 3], reference.AUGMENTATION)},
            ValueError,
            "`augmentations` .*shape of `indices`",
        ),
        (
            {
                "examples": np.zeros([9, 16], np.uint8),
                "turns": np.zeros([2, 3, 4], np.uint8),
                "augmentations": np.zeros([2, 3, 4], reference.AUGMENTATION),
            },
            ValueError,
            "must be images .*to be augmented",
        ),
        ({"scale": np.ones(1, np.float32)}, ValueError, "`scale` and `offset` .*together"),
        (
            {"scale": np.ones(1), "offset": np.zeros(1, np.float32)},
            ValueError,
            "`scale` .*float32.*float64",
        ),
        (
            {"scale": np.ones(3, np.float32), "offset": np.zeros(3, np.float32)},
            ValueError,
            "each channel, 1.*lengths 3 and 3",
        ),
        ({"threads": 0}, ValueError, "`threads` .*threads=0"),
    ],
)
def test_gather_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    _core.gather(**GOOD_GATHER)
    with pytest.raises(error, match=message):
        _core.gather(**{**GOOD_GATHER, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"places": -1}, "`places` .*places=-1"),
        ({"rows": 0}, "`rows` and `columns` .*rows=0"),
        ({"columns": 2**40}, "`rows` and `columns` .*columns=1099511627776"),
        ({"tasks": -1}, "`tasks` .*tasks=-1"),
        ({"first": -1}, "`first` .*first=-1"),
        ({"crop": -1}, "`crop` .*crop=-1"),
        ({"crop": 2**30}, "`crop` .*crop=1073741824"),
        ({"cutout": -1}, "`cutout` .*cutout=-1"),
        ({"cutout": 9}, "`cutout` .*cutout=9"),
        ({"brightness": 1.5}, "`brightness` .*brightness=1.5"),
        ({"contrast": np.nan}, "`contrast` .*contrast=nan"),
    ],
)
def test_augmentations_refuse(change: dict[str, Any], message: str) -> None:
    good = {"places": 3, "rows": 8, "columns": 9, "seed": 0, "step": 0, "tasks": 2}
    _core.augmentations(**good)
    with pytest.raises(ValueError, match=message):
        _core.augmentations(**{**good, **change})


@pytest.mark.parametrize("tasks", [0, 2])
def test_more_augmentations_than_memory_holds(tasks: int) -> None:
    with pytest.raises(MemoryError):
        _core.augmentations(places=2**60, rows=8, columns=9, seed=0, step=0, tasks=tasks)


def test_many_episodes_drawn_by_eight_threads() -> None:
    """A million under ThreadSanitizer, which is there for this; enough for a crash elsewhere."""
    threads, tasks = 8, 1000
    each = (1_000_000 if os.environ.get("TFMETA_SANITIZED") == "tsan" else 40_000) // threads
    examples = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)
    alone = [
        _core.sample(**{**GOOD_SAMPLE, "step": step, "tasks": 4})[1] for step in range(threads)
    ]

    def drawn(thread: int) -> int:
        episodes = 0
        for step in range(thread, each // tasks * threads + thread, threads):
            _, indices, turns = _core.sample(**{**GOOD_SAMPLE, "step": step, "tasks": tasks})
            pixels = _core.gather(examples, indices, np.zeros_like(indices, np.uint8), threads=2)
            np.testing.assert_array_equal(np.rint(pixels[..., 0, 0, 0] * 255), indices)
            if step < threads:
                np.testing.assert_array_equal(indices[:4], alone[step])
            episodes += len(turns)
        return episodes

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(drawn, range(threads))) == each * threads
