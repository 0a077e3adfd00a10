"""Episodes: what they hold, that nothing but `(seed, step)` matters, and what is refused."""

from __future__ import annotations

import hashlib
import pathlib
import pickle
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tfmeta import _core
from tfmeta.data import ClassDataset, EpisodeSampler
from tfmeta.data.stream import stream
from tfmeta.types import Episodes

SIDE = 6


def make_dataset(classes: int = 12, each: int = 8, dtype: Any = np.uint8) -> ClassDataset:
    """Images whose pixels tell which example they are of, in a mixed-up order."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(classes), each))
    images = random.integers(0, 256, [len(labels), SIDE, SIDE, 1]).astype(dtype)
    if np.dtype(dtype).kind == "f":
        images = images / dtype(256)
    return ClassDataset(images, labels, [f"class {c}" for c in range(classes)])


def digest(batch: Episodes) -> str:
    inputs, targets = batch
    arrays = [inputs["support_x"], inputs["support_y"], inputs["query_x"], targets]
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


def assert_same(a: Episodes, b: Episodes) -> None:
    for name in ("support_x", "support_y", "query_x"):
        np.testing.assert_array_equal(a[0][name], b[0][name])
        assert a[0][name].dtype == b[0][name].dtype
    np.testing.assert_array_equal(a[1], b[1])


def test_shapes_types_and_labels() -> None:
    inputs, targets = EpisodeSampler(make_dataset(), ways=5, shots=2, queries=3).batch(0, 4)
    assert {name: (a.dtype, a.shape) for name, a in inputs.items()} == {
        "support_x": (np.float32, (4, 10, SIDE, SIDE, 1)),
        "support_y": (np.int32, (4, 10)),
        "query_x": (np.float32, (4, 15, SIDE, SIDE, 1)),
    }
    assert targets.dtype == np.int32
    assert inputs["support_y"].tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 4
    assert targets.tolist() == [[0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3] * 4


def test_an_episode_is_what_it_says() -> None:
    """Every example is in the dataset, of the class of its label, and comes once."""
    dataset = make_dataset()
    owner = {}
    for c in range(dataset.num_classes):
        members = slice(dataset.class_offsets[c], dataset.class_offsets[c + 1])
        for index in dataset.class_indices[members]:
            owner[(dataset.examples[index] * np.float32(1 / 255)).tobytes()] = c
    inputs, targets = EpisodeSampler(dataset, ways=5, shots=3, queries=4).batch(3, 20)
    for task in range(20):
        images = [*inputs["support_x"][task], *inputs["query_x"][task]]
        labels = [*inputs["support_y"][task], *targets[task]]
        found = [owner[image.tobytes()] for image in images]
        assert len({image.tobytes() for image in images}) == 35
        assert len(set(found)) == 5
        assert len(set(zip(found, labels, strict=True))) == 5


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("random_rotation", [False, True])
@pytest.mark.parametrize("rotations", [False, True])
def test_batch_equals_twin(dtype: Any, random_rotation: bool, rotations: bool) -> None:
    dataset = make_dataset(dtype=dtype)
    if rotations:
        dataset = dataset.with_rotations()
    sampler = EpisodeSampler(dataset, 5, 1, 2, seed=2**64 - 1, random_rotation=random_rotation)
    for step in (0, 1, 2**63 - 1):
        inputs, _ = sampler.batch(step, 6)
        _, indices, turns = reference.sample(
            dataset.class_offsets,
            dataset.class_indices,
            dataset.quarter_turns,
            [[*range(dataset.num_classes)]],
            (5, 5), (1, 1), 2, 2**64 - 1, step, 6, random_rotation=random_rotation,
        )  # fmt: skip
        assert turns.any() == (random_rotation or rotations)
        turns = np.broadcast_to(turns[..., None], indices.shape)
        drawn = reference.gather(dataset.examples, indices, turns)
        shape = (SIDE, SIDE, 1)
        np.testing.assert_array_equal(inputs["support_x"], drawn[:, :, :1].reshape(6, 5, *shape))
        np.testing.assert_array_equal(inputs["query_x"], drawn[:, :, 1:].reshape(6, 10, *shape))


def test_rotations_as_classes_turn_as_np_rot90() -> None:
    dataset = make_dataset(classes=1)
    upright = [image * np.float32(1 / 255) for image in dataset.examples]
    turned = dataset.with_rotations()
    for quarter in range(4):
        only = turned.select([quarter])
        inputs, _ = EpisodeSampler(only, ways=1, shots=4, queries=4).batch(0)
        expected = {np.rot90(image, quarter).tobytes() for image in upright}
        shown = [*inputs["support_x"][0], *inputs["query_x"][0]]
        assert {image.tobytes() for image in shown} == expected


def test_random_rotation_is_drawn_for_each_class() -> None:
    dataset = make_dataset()
    sampler = EpisodeSampler(dataset, 6, 1, 1, random_rotation=True)
    _, _, turns = sampler.draw(0, 50)
    assert all(len(set(task)) > 1 for task in turns.tolist()[:5])
    assert set(turns.ravel().tolist()) == {0, 1, 2, 3}


def test_tasks_depend_on_seed_step_and_their_number_only() -> None:
    sampler = EpisodeSampler(make_dataset(), 5, 1, 2, seed=3)
    large = sampler.batch(7, 32)
    small = sampler.batch(7, 4)
    first = {name: array[:4] for name, array in large[0].items()}
    assert_same(small, (first, large[1][:4]))
    sampler.batch(1, 2)
    assert digest(sampler.batch(7, 32)) == digest(large)  # whatever was drawn in between
    others = [sampler.batch(8, 32), EpisodeSampler(make_dataset(), 5, 1, 2, seed=4).batch(7, 32)]
    assert len({digest(batch) for batch in [large, *others]}) == 3
    tasks = {large[0]["support_x"][t].tobytes() for t in range(32)}
    assert len(tasks) == 32


def large_sampler(num_threads: int | None) -> EpisodeSampler:
    """A sampler whose meta-batches of 32 are large enough to be shared by several threads."""
    pixels = np.arange(400 * 28 * 28 * 3, dtype=np.uint64) ** 2 % 251
    dataset = ClassDataset(
        pixels.astype(np.uint8).reshape(400, 28, 28, 3), np.repeat(np.arange(20), 20)
    )
    return EpisodeSampler(
        dataset.with_rotations(), 10, 1, 9, seed=5, random_rotation=True, num_threads=num_threads
    )


def test_threads_make_no_difference() -> None:
    batches = {digest(large_sampler(threads).batch(9, 32)) for threads in (1, 2, 8, None)}
    assert len(batches) == 1


def test_golden_digest() -> None:
    """Seeds that are written down anywhere must go on giving the same tasks."""
    assert digest(large_sampler(1).batch(9, 32)) == (
        "853fd3e7785deb6c5ebce07e48d218b3059b56bfe143894b5c3dc39772d69b11"
    )


def test_another_process_draws_the_same() -> None:
    program = (
        "from tests.data.test_episodes import digest, large_sampler\n"
        "print(digest(large_sampler(8).batch(9, 32)))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split()[-1] == digest(large_sampler(1).batch(9, 32))


def test_pickle_round_trip() -> None:
    sampler = EpisodeSampler(make_dataset(), 5, 1, 2, seed=3, random_rotation=True)
    copy = pickle.loads(pickle.dumps(sampler))
    assert_same(copy.batch(5, 3), sampler.batch(5, 3))


def test_frequencies_are_uniform() -> None:
    """Chi-square of classes by way, of first examples and of turns, at 1 in 10,000 each."""
    classes, each, ways, tasks = 10, 8, 4, 20_000
    dataset = make_dataset(classes, each)
    drawn, indices, turns = _core.sample(
        dataset.class_offsets, dataset.class_indices, dataset.quarter_turns,
        np.array([0, classes]), np.arange(classes),
        (ways, ways), (1, 1), 1, 0, 0, tasks, random_rotation=True,
    )  # fmt: skip

    def statistic(values: np.ndarray, kinds: int) -> float:
        counts = np.bincount(values, minlength=kinds)
        expected = values.size / kinds
        return float(((counts - expected) ** 2).sum() / expected)

    for way in range(ways):
        assert statistic(drawn[:, way], classes) < 33.7  # 9 degrees of freedom
        assert statistic(turns[:, way].astype(int), 4) < 21.1  # 3
    place = np.empty(len(dataset), int)
    place[dataset.class_indices] = np.tile(np.arange(each), classes)
    for c in range(classes):
        for position in range(2):
            mine = place[indices[..., position][drawn == c]]
            assert statistic(mine, each) < 29.9  # 7
    pairs = drawn[:, 0] * classes + drawn[:, 1]
    assert not (drawn[:, 0] == drawn[:, 1]).any()
    present = np.unique(pairs, return_inverse=True)[1].ravel()
    assert statistic(present, classes * (classes - 1)) < 145.0  # 89


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_any_layout_of_the_examples_gives_the_same(dtype: Any) -> None:
    dataset = make_dataset(dtype=dtype).with_rotations()
    expected = EpisodeSampler(dataset, 5, 1, 2).batch(0, 3)
    examples = dataset.examples
    wide = np.zeros([*examples.shape[:-1], 2], dtype)
    wide[..., 0] = examples[..., 0]
    backwards = examples[::-1].copy()[::-1]
    for layout in (wide[..., :1], backwards, np.asfortranarray(examples)):
        dataset.examples = layout
        assert_same(EpisodeSampler(dataset, 5, 1, 2).batch(0, 3), expected)


def test_integers_and_strings_come_as_they_are() -> None:
    labels = np.repeat(np.arange(4), 3)
    numbers = np.arange(24).reshape(12, 2) * 10**10
    inputs, _ = EpisodeSampler(ClassDataset(numbers, labels), 4, 1, 2).batch(0, 2)
    assert inputs["support_x"].dtype == np.int64
    assert set(inputs["query_x"].ravel().tolist()) <= set(numbers.ravel().tolist())

    texts = [f"text {i}, größer" for i in range(12)]
    sampler = EpisodeSampler(ClassDataset(texts, labels), 4, 1, 2)
    inputs, _ = sampler.batch(0, 2)
    shown = [*inputs["support_x"][0], *inputs["query_x"][0]]
    assert sorted(shown) == sorted(texts)
    tensors, _ = next(iter(sampler.dataset(2)))
    assert tensors["query_x"].dtype == tf.string
    assert [t.decode() for t in tensors["query_x"][1].numpy()] == inputs["query_x"][1].tolist()


def test_dataset_streams_the_batches() -> None:
    sampler = EpisodeSampler(make_dataset(), 5, 1, 2, seed=1, random_rotation=True)
    dataset = sampler.dataset(meta_batch_size=3, start=4)
    inputs, targets = dataset.element_spec
    assert {name: (spec.dtype, tuple(spec.shape)) for name, spec in inputs.items()} == {
        "support_x": (tf.float32, (3, 5, SIDE, SIDE, 1)),
        "support_y": (tf.int32, (3, 5)),
        "query_x": (tf.float32, (3, 10, SIDE, SIDE, 1)),
    }
    assert (targets.dtype, tuple(targets.shape)) == (tf.int32, (3, 10))
    for step, (x, y) in zip(range(4, 12), dataset.as_numpy_iterator(), strict=False):
        assert_same((x, y), sampler.batch(step, 3))


def test_dataset_can_be_sharded() -> None:
    sampler = EpisodeSampler(make_dataset(), 5, 1, 2)
    second = sampler.dataset(2).shard(num_shards=3, index=1)
    for step, batch in zip((1, 4, 7), second.as_numpy_iterator(), strict=False):
        assert_same(batch, sampler.batch(step, 2))


def test_batches_become_tensors_without_a_copy() -> None:
    sampler = large_sampler(1)
    addresses: list[int] = []

    class Spy:
        def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
            batch = sampler.batch(step, meta_batch_size)
            addresses.append(batch[0]["query_x"].ctypes.data)
            return batch

    inputs, _ = next(iter(stream(Spy(), 32, 0)))
    assert np.asarray(memoryview(inputs["query_x"])).ctypes.data in addresses


def test_names_a_class_that_is_too_small() -> None:
    labels = ["cat"] * 9 + ["dog"] * 4 + ["eel"] * 5 + ["fox"] * 9
    dataset = ClassDataset(np.zeros([27, 3], np.float32), labels)
    expected = (
        r"Every class must have at least `shots` \+ `queries` = 2 \+ 4 = 6 examples, "
        r"which 2 of 4 classes have\. Received: dog \(4\), eel \(5\)\. Leave out smaller ones with "
        r"dataset\.with_min_per_class\(6\) \(--min-per-class 6\)\."
    )
    with pytest.raises(ValueError, match=expected):
        EpisodeSampler(dataset, ways=2, shots=2, queries=4)
    EpisodeSampler(dataset, ways=4, shots=2, queries=2)
    with pytest.warns(
        UserWarning, match=r"^Left out 2 classes of fewer than 6 exa.*: dog \(4\), eel"
    ):
        large = dataset.with_min_per_class(6)
    assert large.class_names == ("cat", "fox")
    EpisodeSampler(large, ways=2, shots=2, queries=4)
    assert dataset.with_min_per_class(4).class_names == dataset.class_names  # and says nothing


def test_the_list_of_classes_that_are_too_small_is_bounded() -> None:
    labels = [f"{c:03d}" for c in range(200) for _ in range(1 + c % 7)]
    dataset = ClassDataset(np.zeros([len(labels), 2], np.float32), labels)
    small = [f"{c:03d} (1)" for c in range(0, 140, 7)]  # the smallest
    message = f"which 56 of 200 classes have. Received: {', '.join(small)}, ... and 124 more. Leave"
    with pytest.raises(ValueError, match=re.escape(message)):
        EpisodeSampler(dataset, ways=2, shots=2, queries=4)
    with pytest.warns(
        UserWarning, match=r"^Left out 144 classes .*, \.\.\. and 124 more$"
    ) as caught:
        assert dataset.with_min_per_class(6).num_classes == 56
    assert [warning.filename for warning in caught] == [__file__]
    assert len(str(caught[0].message)) < 300
    message = (
        r"^`min_per_class` must be at most 7, the size of the largest class\. Received: min_per"
    )
    with pytest.raises(ValueError, match=message):
        dataset.with_min_per_class(8)
    with pytest.raises(TypeError, match="`min_per_class` must be an integer"):
        dataset.with_min_per_class(2.5)  # type: ignore[arg-type]


def test_reports_examples_that_are_not_finite() -> None:
    for dtype in (np.float32, np.float64):
        dataset = make_dataset(dtype=dtype)
        dataset.examples[11, 2, 3, 0] = np.nan
        sampler = EpisodeSampler(dataset, 12, 4, 4)  # every example is in every task
        with pytest.raises(ValueError, match=r"finite.*NaN or an infinity in example 11$"):
            sampler.batch(0)
    dataset = make_dataset(dtype=np.float64)
    dataset.examples[5] = 1e300
    with pytest.raises(ValueError, match=r"finite.*in example 5$"):
        EpisodeSampler(dataset, 12, 4, 4).batch(0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"dataset": np.zeros(3)},
            TypeError,
            "`dataset` must be a ClassDataset. Received: ndarray",
        ),
        ({"ways": 13}, ValueError, "`ways` must be at most the number of classes, 12. .*ways=13"),
        ({"ways": 0}, ValueError, "`ways` must be at least 1. Received: ways=0"),
        ({"shots": 0}, ValueError, "`shots` must be at least 1. Received: shots=0"),
        ({"queries": -2}, ValueError, "`queries` must be at least 1. Received: queries=-2"),
        ({"shots": 1.0}, TypeError, "`shots` must be an integer. Received: shots=1.0"),
        ({"ways": "5"}, TypeError, "`ways` must be an integer. Received: ways='5'"),
        (
            {"shots": 6},
            ValueError,
            "= 6 \\+ 3 = 9 examples, which 0 of 12 classes have. Received: class 0 \\(8\\), clas",
        ),
        ({"seed": -1}, ValueError, "`seed` must be at least 0. Received: seed=-1"),
        ({"seed": 2**64}, ValueError, "`seed` must be less than 18446744073709551616"),
        ({"num_threads": 0}, ValueError, "`num_threads` must be at least 1"),
        ({"num_threads": 5000}, ValueError, "`num_threads` must be less than"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"dataset": make_dataset(), "ways": 5, "shots": 2, "queries": 3}
    EpisodeSampler(**good)
    with pytest.raises(error, match=message):
        EpisodeSampler(**{**good, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, 1), ValueError, "`step` must be at least 0. Received: step=-1"),
        ((2**63, 1), ValueError, "`step` must be less than"),
        ((0.5, 1), TypeError, "`step` must be an integer. Received: step=0.5"),
        ((0, 0), ValueError, "`meta_batch_size` must be at least 1. Received: meta_batch_size=0"),
        ((0, None), TypeError, "`meta_batch_size` must be an integer"),
    ],
)
def test_batch_refuses(arguments: Any, error: type[Exception], message: str) -> None:
    sampler = EpisodeSampler(make_dataset(), 5, 1, 2)
    with pytest.raises(error, match=message):
        sampler.batch(*arguments)
    step, meta_batch_size = arguments
    with pytest.raises(error, match=message):
        sampler.dataset(meta_batch_size, start=step)


@pytest.mark.parametrize("shape", [(7,), (4, 5), (4, 5, 1)])
def test_random_rotation_refuses_what_is_not_square(shape: tuple[int, ...]) -> None:
    dataset = ClassDataset(np.zeros([12, *shape], np.uint8), np.repeat(np.arange(3), 4))
    with pytest.raises(ValueError, match=r"`random_rotation` needs square images .*Received"):
        EpisodeSampler(dataset, 2, 1, 1, random_rotation=True)
    EpisodeSampler(dataset, 2, 1, 1).batch(0)
