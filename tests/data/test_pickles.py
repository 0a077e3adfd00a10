"""Samplers go to other processes: a memory map by the name of its file."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_memmap import sparse_file
from tfmeta.data import ClassDataset, EpisodeList, EpisodeSampler, Shards, write_episodes

SHAPE = (4000, 80, 80, 3)  # 77 MB


def write(path: Path, mode: Any = "r", dtype: Any = np.uint8) -> np.memmap:
    """A map of a file that is nearly empty."""
    sparse_file(path, int(np.prod(SHAPE)) * np.dtype(dtype).itemsize + 100)
    examples = np.memmap(path, dtype, "r+", offset=100, shape=SHAPE)
    examples[:40] = np.random.default_rng(0).integers(0, 200, [40, *SHAPE[1:]])
    examples.flush()
    return np.memmap(path, dtype, mode, offset=100, shape=SHAPE)


def dataset_of(examples: Any) -> ClassDataset:
    """Classes of the examples that are written, and one of the rest."""
    labels = np.minimum(np.arange(len(examples)) // 10, 4)
    return ClassDataset(examples, labels).select([0, 1, 2, 3])


def same(one: Any, other: Any) -> bool:
    (inputs, targets), (others, expected) = one.batch(3, 2), other.batch(3, 2)
    pairs = [(targets, expected), *((inputs[name], others[name]) for name in inputs)]
    return inputs["support_x"].any() and all((a == b).all() for a, b in pairs)


VIEWS: dict[str, Any] = {
    "whole": lambda x: x,
    "part": lambda x: x[3:],
    "array": lambda x: np.asarray(x)[1:],
    "strides": lambda x: x[::2, ::-1],
    "reshaped": lambda x: x.reshape(8000, 40, 80, 3),
    "shards": lambda x: Shards([x[:1500], x[1500:]]),
    "views": lambda x: x.view(np.int8),
}


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_sampler_over_a_large_map_is_pickled_by_name(
    view: str, mode: str, tmp_path: Path
) -> None:
    examples = VIEWS[view](write(tmp_path / "examples", mode))
    sampler = EpisodeSampler(dataset_of(examples), 3, 2, 2)
    pickled = pickle.dumps(sampler)
    assert len(pickled) < 200_000
    made = pickle.loads(pickled)
    assert same(made, sampler)
    assert made.source is made._gather._dataset
    assert bool(made._gather._files) == bool(sampler._gather._files)
    assert same(pickle.loads(pickle.dumps(made)), sampler)  # from there to the next
    if view == "whole":
        assert isinstance(made.source.examples, np.memmap)


def test_what_is_in_no_file_is_pickled_itself(tmp_path: Path) -> None:
    examples = write(tmp_path / "examples", "c")
    examples[5] = 7
    sampler = EpisodeSampler(dataset_of(examples[:60]), 3, 2, 2)
    assert same(pickle.loads(pickle.dumps(sampler)), sampler)


def test_copies_and_parts_share_the_map(tmp_path: Path) -> None:
    dataset = dataset_of(write(tmp_path / "examples"))
    assert dataset.select([0, 1]).examples is dataset.examples
    sampler = EpisodeSampler(dataset, 3, 2, 2)
    assert sampler.shard(0, 2).source is dataset
    assert same(copy.deepcopy(sampler), sampler)


def test_a_list_of_episodes_is_pickled(tmp_path: Path) -> None:
    dataset = dataset_of(write(tmp_path / "examples"))
    write_episodes(tmp_path / "list", EpisodeSampler(dataset, 3, 2, 2), 9)
    fixed = EpisodeList(dataset, tmp_path / "list")
    assert same(pickle.loads(pickle.dumps(fixed)), fixed)


def test_a_map_whose_file_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "examples"
    pickled = pickle.dumps(dataset_of(write(path)))
    os.utime(path, ns=(0, 0))
    with pytest.raises(ValueError, match=r"as it was when .* pickled.*examples', which has chang"):
        pickle.loads(pickled)
    writable = pickle.dumps(dataset_of(write(path, "r+")))
    os.utime(path, ns=(0, 0))
    pickle.loads(writable)  # others may write to it
    os.truncate(path, 1000)
    with pytest.raises(ValueError, match=r"which has changed since, with 1000 bytes"):
        pickle.loads(writable)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="examples"):
        pickle.loads(pickled)


def draw(sampler: EpisodeSampler) -> Any:
    return sampler.batch(3, 2)[0]["support_x"]


def test_a_sampler_goes_to_a_process_that_is_spawned(tmp_path: Path) -> None:
    sampler = EpisodeSampler(dataset_of(write(tmp_path / "examples")), 3, 2, 2)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        drawn = pool.apply(draw, (sampler,))
    np.testing.assert_array_equal(drawn, draw(sampler))
