"""A folder of files that is seen as one array."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmeta.data import Augmentation, ClassDataset, EpisodeSampler, Shards

SIZES = (7, 1, 20, 12)


def write(folder: Path, examples: np.ndarray) -> Shards:
    """Files of these sizes, whose order is that of their names and not of writing."""
    parts = np.split(examples, np.cumsum(SIZES)[:-1])
    for i in (2, 0, 3, 1):
        np.save(folder / f"part{i}.npy", parts[i])
    return Shards(folder)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64"])
def test_shards_are_one_array(dtype: str, tmp_path: Path) -> None:
    """Gathered in place, or of other types picked out first; the same episodes."""
    whole = np.random.default_rng(0).integers(0, 2, [40, 6, 6, 2]).astype(dtype)
    shards = write(tmp_path, whole)
    assert all(isinstance(array, np.memmap) for array in shards.arrays)
    assert (shards.shape, shards.dtype, shards.nbytes) == (whole.shape, whole.dtype, whole.nbytes)
    indices = np.random.default_rng(1).integers(-40, 40, [3, 5])
    for index in (3, -1, slice(5, 30, 7), indices):
        np.testing.assert_array_equal(shards[index], whole[index])
    options: dict[str, Any] = {}
    if dtype != "int64":
        options = {"mean": [0.1, 0.2], "augmentation": Augmentation(flip=True, crop=1)}
    if dtype == "float64":
        del options["augmentation"]
    labels = np.repeat(np.arange(4), 10)
    samplers = [
        EpisodeSampler(ClassDataset(x, labels).with_rotations(), (2, 3), 2, 3, seed=5, **options)
        for x in (shards, whole)
    ]
    for step in range(3):
        (inputs, targets), (others, expected) = (sampler.batch(step, 4) for sampler in samplers)
        np.testing.assert_array_equal(targets, expected)
        for name, value in inputs.items():
            np.testing.assert_array_equal(value, others[name])


def sums(folder: Path) -> str:
    """What `sha256sum *.npy` prints."""
    files = sorted(folder.glob("*.npy"))
    return "".join(f"{hashlib.sha256(x.read_bytes()).hexdigest()}  {x.name}\n" for x in files)


def test_whatever_is_changed_in_a_shard_is_found_by_its_digest(tmp_path: Path) -> None:
    """Numbers, which nothing else would find, as well as names and what is added or lost."""
    whole = np.random.default_rng(0).integers(0, 256, [40, 3, 3], np.uint8)
    write(tmp_path, whole)
    with pytest.raises(FileNotFoundError, match=r"`source` must hold the file SHA256SUMS where"):
        Shards(tmp_path, verify=True)
    listed = tmp_path / "SHA256SUMS"
    listed.write_text(sums(tmp_path))
    np.testing.assert_array_equal(Shards(tmp_path, verify=True)[:], whole)
    random = np.random.default_rng(1)
    for file in sorted(tmp_path.glob("*.npy")):
        content = file.read_bytes()
        for place in random.integers(0, len(content), 20):
            changed = bytearray(content)
            changed[place] ^= 1 << int(random.integers(8))
            file.write_bytes(changed)
            with pytest.raises(ValueError, match=rf"{file.name}' \(its SHA-256 is another one"):
                Shards(tmp_path, verify=True)
        file.write_bytes(content)
    last = tmp_path / "part3.npy"
    last.rename(tmp_path / "part4.npy")
    with pytest.raises(ValueError, match=r"part3.npy' \(it is in the list, and not among"):
        Shards(tmp_path, verify=True)
    np.save(last, whole[:1])
    listed.write_text(sums(tmp_path))
    np.save(tmp_path / "part5.npy", whole[:1])
    with pytest.raises(ValueError, match=r"part5.npy' \(it is not in the list"):
        Shards(tmp_path, verify=True)
    # A stranger's list.
    for text in ("\0", "no digest  part0.npy", f"{'0' * 64}  ../part0.npy", sums(tmp_path) * 2):
        listed.write_text(text)
        with pytest.raises(ValueError, match=r"as sha256sum writes it. Received: '.*SHA256SUMS'"):
            Shards(tmp_path, verify=True)
    with pytest.raises(ValueError, match=r"must be a folder where verify=True"):
        Shards([whole], verify=True)


def test_arrays_in_memory(tmp_path: Path) -> None:
    shards = Shards([np.zeros([2, 3], np.uint8), np.ones([3, 3], np.uint8)])
    assert repr(shards) == "Shards(2 arrays, shape=(5, 3), dtype=uint8)"
    assert len(ClassDataset(shards, ["a", "b", "a", "b", "a"])) == 5


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], ValueError, "at least one array"),
        ([[1, 2]], TypeError, r"arrays of numbers. Received: source\[0\] of type list"),
        ([np.array([["a"]])], TypeError, "arrays of numbers"),
        ([np.zeros([3])], ValueError, r"\[examples, ...\]"),
        ([np.zeros([0, 3])], ValueError, "at least one example"),
        ([np.zeros([4, 3])[::2]], ValueError, "contiguous.*strides"),
        (
            [np.zeros([1, 3]), np.zeros([1, 4])],
            ValueError,
            r"one shape. Received: source\[0\] of float64 \(1, 3\) and source\[1\] of .*\(1, 4\)",
        ),
        ([np.zeros([1, 3]), np.zeros([1, 3], np.uint8)], ValueError, "of one type.*uint8"),
    ],
)
def test_what_is_refused(source: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Shards(source)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a folder with files \*\.npy. Received: source='"):
        Shards(tmp_path)
    np.save(tmp_path / "a.npy", np.zeros([2, 3], np.uint8))
    np.save(tmp_path / "b.npy", np.zeros([2, 4], np.uint8))
    with pytest.raises(ValueError, match=r"a\.npy' of uint8 \(2, 3\) and '.*b\.npy' of uint8"):
        Shards(tmp_path)


def test_bad_indices() -> None:
    shards = Shards([np.zeros([2, 3], np.uint8)])
    with pytest.raises(IndexError, match=r"within 2 examples\. Received: 2"):
        shards[2]
    with pytest.raises(TypeError, match="integers or a slice"):
        shards[0.5]
