"""Augmented and normalised episodes: what the sampler hands on to the core, and what it refuses."""

from __future__ import annotations

import pathlib
import pickle
from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.data.test_episodes import digest
from tfmeta.data import Augmentation, ClassDataset, EpisodeSampler

EVERYTHING = Augmentation(flip=True, crop=2, brightness=0.4, contrast=0.3, cutout=3)
SIZE = (10, 10, 3)


def images(dtype: Any = np.uint8, shape: tuple[int, ...] = SIZE) -> np.ndarray:
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind == "u":
        return random.integers(0, np.iinfo(dtype).max + 1, [96, *shape], dtype)
    return random.random([96, *shape]).astype(dtype)


def make_sampler(examples: np.ndarray, **options: Any) -> EpisodeSampler:
    dataset = ClassDataset(examples, np.arange(96) // 8)
    return EpisodeSampler(dataset, ways=5, shots=2, queries=3, seed=7, **options)


def expected(sampler: EpisodeSampler, step: int, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Support and query examples by the twins."""
    source, shots = sampler.source, sampler.shots
    *parts, turns = sampler.draw(step, tasks)
    indices = np.concatenate(parts, axis=2)
    examples, change = source.examples, sampler.augmentation
    if examples.dtype == np.float64:
        examples = examples.astype(np.float32)
    changes = None
    if change is not None:
        changes = reference.augmentations(
            indices[0].size, *examples.shape[1:3], sampler.seed, step, tasks,
            flip=change.flip, crop=change.crop, brightness=change.brightness,
            contrast=change.contrast, cutout=change.cutout,
        ).reshape(indices.shape)  # fmt: skip
    channels = 1 if examples.ndim == 3 else examples.shape[-1]
    scale = offset = None
    if sampler.mean is not None or sampler.std is not None:
        mean, std = np.zeros(channels), np.ones(channels)
        mean[:] = 0 if sampler.mean is None else sampler.mean
        std[:] = 1 if sampler.std is None else sampler.std
        scale, offset = (1 / std).astype(np.float32), (-mean / std).astype(np.float32)
    parts = []
    for part, changed in ((np.s_[..., :shots], True), (np.s_[..., shots:], change)):
        if change is not None:
            changed = changed is True or change.queries
        drawn = reference.gather(
            examples, indices[part], np.broadcast_to(turns[..., None], indices.shape)[part],
            changes[part] if changes is not None and changed else None, scale, offset,
        )  # fmt: skip
        parts.append(drawn.reshape(tasks, -1, *drawn.shape[3:]))
    return parts[0], parts[1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (SIZE, {"augmentation": EVERYTHING, "mean": [0.4, 0.5, 0.6], "std": 0.25}),
        (SIZE, {"augmentation": Augmentation(flip=True, queries=False), "random_rotation": True}),
        ((10, 12), {"augmentation": Augmentation(crop=9, cutout=10), "std": np.float32(3)}),
        ((9, 9, 2), {"mean": (1, 2), "random_rotation": True}),
    ],
)
def test_batches_equal_twin(dtype: Any, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    sampler = make_sampler(images(dtype, shape), **options)
    for step, tasks in ((0, 3), (2**63 - 1, 1)):
        inputs, _ = sampler.batch(step, tasks)
        support_x, query_x = expected(sampler, step, tasks)
        np.testing.assert_array_equal(inputs["support_x"], support_x)
        np.testing.assert_array_equal(inputs["query_x"], query_x)


def test_vectors_are_normalized_by_feature() -> None:
    examples = images(np.float32, (4,))
    mean, std = examples.mean(0), examples.std(0)
    plain, _ = make_sampler(examples).batch(3, 2)
    inputs, _ = make_sampler(examples, mean=mean, std=std).batch(3, 2)
    np.testing.assert_allclose(
        inputs["query_x"], (plain["query_x"] - mean) / std, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32])
def test_layout_and_files_make_no_difference(dtype: Any, tmp_path: pathlib.Path) -> None:
    examples = images(dtype)
    options = {"augmentation": EVERYTHING, "mean": 0.5, "random_rotation": True}
    batch = digest(make_sampler(examples, num_threads=1, **options).batch(1, 4))
    path = tmp_path / "examples"
    examples.tofile(path)
    mapped = np.memmap(path, dtype, "r", shape=examples.shape)
    every_second = examples.repeat(2, axis=0)[::2]
    for layout in (mapped, every_second, np.asfortranarray(examples), examples[::-1].copy()[::-1]):
        assert digest(make_sampler(layout, num_threads=3, **options).batch(1, 4)) == batch


def test_unaugmented_numbers_and_tasks_stay_what_they_are() -> None:
    plain = make_sampler(images()).batch(5, 2)
    assert digest(make_sampler(images(), augmentation=Augmentation()).batch(5, 2)) == digest(plain)
    support_only = Augmentation(flip=True, cutout=10, queries=False)
    inputs, targets = make_sampler(images(), augmentation=support_only).batch(5, 2)
    assert not inputs["support_x"].any()
    np.testing.assert_array_equal(inputs["query_x"], plain[0]["query_x"])
    np.testing.assert_array_equal(targets, plain[1])


def test_a_task_depends_on_nothing_but_its_number() -> None:
    sampler = make_sampler(images(), augmentation=EVERYTHING)
    large, small = sampler.batch(4, 6)[0], sampler.batch(4, 2)[0]
    for name in ("support_x", "query_x"):
        np.testing.assert_array_equal(large[name][:2], small[name])
    again = pickle.loads(pickle.dumps(sampler))
    assert digest(again.batch(4, 6)) == digest(sampler.batch(4, 6))
    others = [sampler.batch(5, 6), sampler.batch(4, 6), make_sampler(images()).batch(4, 6)]
    assert len({digest(batch) for batch in others}) == 3
    inputs, _ = next(iter(sampler.dataset(6, start=4)))
    np.testing.assert_array_equal(inputs["query_x"], large["query_x"])


def test_uint16_tokens_stay_integers() -> None:
    inputs, _ = make_sampler(images(np.uint16, (7,))).batch(0)
    assert inputs["query_x"].dtype == np.uint16


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.uint8, "a095ff0d5630456a64dd3a93f071fb62ad802a36186fb7dc29d43a4161cd3a89"),
        (np.float16, "fa8a67de476a3928b7a781b7e0c8bdaae2d16a9badc7b3fa55a112f198a5f720"),
    ],
)
def test_golden_digest(dtype: Any, expected: str) -> None:
    """Seeds that are written down anywhere must go on giving the same images."""
    pixels = np.arange(96 * 300, dtype=np.uint64) ** 2 % 251
    examples = pixels.reshape(96, *SIZE).astype(np.uint8)
    if dtype == np.float16:
        examples = (examples / 256).astype(np.float16)
    sampler = make_sampler(
        examples,
        augmentation=EVERYTHING,
        random_rotation=True,
        mean=[0.5, 0.25, 0.125],
        std=[0.5, 0.25, 0.125],
    )
    assert digest(sampler.batch(9, 16)) == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"flip": 1}, TypeError, "`flip` must be True or False. Received: flip=1"),
        ({"queries": None}, TypeError, "`queries` must be True or False. Received: queries=None"),
        ({"crop": 1.5}, TypeError, "`crop` must be an integer. Received: crop=1.5"),
        ({"crop": -1}, ValueError, "`crop` must be at least 0. Received: crop=-1"),
        ({"cutout": True}, TypeError, "`cutout` must be an integer. Received: cutout=True"),
        ({"brightness": "a"}, TypeError, "`brightness` must be a number. .*brightness='a'"),
        ({"brightness": 1}, ValueError, r"`brightness` must be in \[0, 1\). .*brightness=1"),
        ({"contrast": -0.1}, ValueError, r"`contrast` must be in \[0, 1\). .*contrast=-0.1"),
        ({"contrast": np.nan}, ValueError, r"`contrast` must be in \[0, 1\). .*contrast=nan"),
    ],
)
def test_augmentation_refuses(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Augmentation(**arguments)


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        (SIZE, {"augmentation": True}, TypeError, "`augmentation` must be .*augmentation=True"),
        ((7,), {"augmentation": Augmentation()}, ValueError, r"needs images.*uint8, .*\(96, 7\)"),
        (
            (10, 8),
            {"augmentation": Augmentation(crop=8)},
            ValueError,
            "`crop` must be less than .*, 8 at least. Received: crop=8",
        ),
        (
            (8, 10, 1),
            {"augmentation": Augmentation(cutout=9)},
            ValueError,
            "`cutout` must be at most .*, 8 at least. Received: cutout=9",
        ),
        (SIZE, {"mean": [1, 2]}, ValueError, r"`mean` .*of the 3 channels. .*mean=\[1, 2\]"),
        ((8, 3), {"std": [1, 2, 3]}, ValueError, r"`std` .*of the 1 channels"),
        (SIZE, {"std": 0}, ValueError, "`std` must be positive. Received: std=0"),
        (SIZE, {"std": [1, -1, 1]}, ValueError, "`std` must be positive"),
        (SIZE, {"mean": np.inf}, ValueError, "`mean` must be finite. Received: mean=inf"),
        (SIZE, {"mean": "0"}, TypeError, "`mean` must be a number, .*mean='0'"),
    ],
)
def test_sampler_refuses(
    shape: tuple[int, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_sampler(images(shape=shape), **options)


@pytest.mark.parametrize("options", [{"augmentation": EVERYTHING}, {"mean": 0.5}, {"std": 2}])
def test_strings_and_whole_numbers_are_refused(options: dict[str, Any]) -> None:
    name = "augmentation" if "augmentation" in options else "`mean` and `std`"
    for examples in (np.array(["text"] * 96), np.full([96, 5, 5], -3)):
        with pytest.raises(ValueError, match=f"{name}.*Received: examples of type"):
            make_sampler(examples, **options)
