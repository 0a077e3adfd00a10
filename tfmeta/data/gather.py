"""From positions of examples to a meta-batch: the copying, and what becomes of each example."""

from __future__ import annotations

import copy
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmeta import _core
from tfmeta.checks import check_count
from tfmeta.data.augmentation import Augmentation
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.maps import map_of
from tfmeta.data.normalization import Numbers, scale_and_offset
from tfmeta.data.several_inputs import check_one_input
from tfmeta.data.shards import Shards
from tfmeta.foreign.of_numpy import mapping_of
from tfmeta.types import Array, Episodes

_SMALL_FILE = 64 << 20  # a memory-mapped file below this size may stay in memory as a whole


class Gather:
    """Makes meta-batches of a dataset's examples, given which.

    Args:
        dataset: Whose examples.
        augmentation, mean, std, num_threads: As for `EpisodeSampler`.
    """

    def __init__(
        self,
        dataset: ClassDataset,
        augmentation: Augmentation | None,
        mean: Numbers | None,
        std: Numbers | None,
        num_threads: int | None,
    ) -> None:
        if not isinstance(dataset, ClassDataset):
            raise TypeError(f"`dataset` must be a ClassDataset. Received: {type(dataset).__name__}")
        check_one_input(dataset)
        self._dataset = dataset
        examples = dataset.examples
        self.num_threads = integer(
            "num_threads", _available_cpus() if num_threads is None else num_threads, 1, 1025
        )
        if augmentation is not None:
            if not isinstance(augmentation, Augmentation):
                raise TypeError(
                    "`augmentation` must be a tfmeta.data.Augmentation or None. "
                    f"Received: augmentation={augmentation!r}"
                )
            augmentation.check(examples)
        self.augmentation = augmentation
        self._become_floats = become_floats(examples)
        if not self._become_floats and (mean is not None or std is not None):
            raise ValueError(
                "`mean` and `std` need images of uint8 or uint16, or floats. "
                f"Received: examples of type {examples.dtype}, shape {examples.shape}"
            )
        self._scale, self._offset = scale_and_offset(examples, mean, std)
        self._find()

    def _find(self) -> None:
        """Find where the examples lie."""
        self.examples = examples = self._dataset.examples
        self._arrays = examples.arrays if isinstance(examples, Shards) else [examples]
        self._in_core = self._become_floats and all(map(_in_core, self._arrays))
        self._files = _large_mapped_files(self._arrays)
        for file in self._files:
            # Reading ahead of scattered examples would read a multiple of what is wanted.
            file.madvise(mmap.MADV_RANDOM)

    def __getstate__(self) -> dict[str, Any]:
        """Where the examples lie is another place in another process."""
        places = ("examples", "_arrays", "_in_core", "_files")
        return {name: value for name, value in self.__dict__.items() if name not in places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._find()

    def __call__(
        self,
        support: Array,
        query: Array,
        turns: Array,
        *,
        unlabelled: Array | None = None,
        seed: int,
        step: int,
        first_task: int = 0,
        padded: bool,
    ) -> Episodes:
        """Return `(inputs, targets)`.

        Args:
            support, query: Positions in `examples`, `[tasks, ways, shots]` and
                `[tasks, ways, queries]`; -1 where there is none.
            turns: Counter-clockwise quarter turns, uint8 `[tasks, ways]`.
            unlabelled: Positions of examples without labels, `[tasks, classes, n]`, or `None`. They
                may be of more classes than ways, behind these; `turns` are then of all.
            seed, step, first_task: What augmentations depend on.
            padded: Whether there are masks among the inputs.
        """
        if unlabelled is None:
            unlabelled = np.empty((*turns.shape, 0), support.dtype)
        ways, ends = support.shape[1], np.cumsum([support.shape[2], query.shape[2]])
        changes: list[Array | None] = [None, None, None]
        if self.augmentation is not None:
            shape = (*turns.shape, ends[1] + unlabelled.shape[2])
            drawn = self.augmentation.draw(self.examples, seed, step, first_task, shape)
            of_support, of_query, of_unlabelled = np.split(drawn, ends, axis=2)
            queries = of_query[:, :ways] if self.augmentation.queries else None
            changes = [of_support[:, :ways], queries, of_unlabelled]
        inputs = {
            "support_x": self._gathered(support, turns[:, :ways], changes[0]),
            "support_y": _labels(support),
            "query_x": self._gathered(query, turns[:, :ways], changes[1]),
        }
        targets = _labels(query)
        if padded:
            inputs |= {"support_mask": inputs["support_y"] >= 0, "query_mask": targets >= 0}
        if unlabelled.shape[2]:
            inputs["unlabelled_x"] = self._gathered(unlabelled, turns, changes[2])
            if padded:
                inputs["unlabelled_mask"] = unlabelled.reshape(len(unlabelled), -1) >= 0
        return inputs, targets

    def of_no_episode(self, indices: Array, turns: Array, *, seed: int, step: int) -> Array:
        """Return examples `[n, ...]`, augmented.

        Args:
            indices, turns: Positions in `examples` and counter-clockwise quarter turns, `[n]`.
            seed, step: What augmentations depend on.
        """
        changes = None
        if self.augmentation is not None:
            changes = self.augmentation.draw(self.examples, seed, step, 0, (1, len(indices), 1))
        return np.asarray(self._gathered(indices[None, :, None], turns[None], changes)[0])

    def _gathered(self, indices: Array, turns: Array, changes: Array | None) -> Array:
        """Return examples `[tasks, ways * n, ...]`, for indices and changes `[tasks, ways, n]`."""
        arrays, mapped = self._arrays, bool(self._files)
        turns = turns.repeat(indices.shape[2], axis=1)
        indices = indices.copy().reshape(turns.shape)
        if not self._in_core:
            examples = self._taken(indices)
            self._release()
            if not self._become_floats:
                for place in zip(*np.nonzero(turns), strict=True):
                    examples[place] = np.rot90(examples[place], turns[place])
                examples[indices < 0] = "" if examples.dtype.kind in "OU" else 0
                return examples
            arrays, mapped = [examples.reshape(-1, *examples.shape[2:])], False
            places = np.arange(indices.size).reshape(indices.shape)
            indices = np.where(indices < 0, -1, places)
        if changes is not None:
            changes = changes.copy().reshape(turns.shape)
        gathered = _core.gather(
            arrays,
            indices,
            turns,
            changes,
            self._scale,
            self._offset,
            self.num_threads,
            mapped,
        )
        self._release()
        return gathered

    def _release(self) -> None:
        """Take the pages that were read out of this process; the system keeps them as the file's.

        Without it the resident memory would grow towards the size of the files.
        """
        for file in self._files:
            file.madvise(mmap.MADV_DONTNEED)

    def _taken(self, indices: Array) -> Array:
        """Return examples of other types and layouts in one piece, and floats as float32."""
        drawn = np.ascontiguousarray(self.examples[indices])
        if drawn.dtype.kind == "f":
            with np.errstate(over="ignore"):
                drawn = drawn.astype(np.float32, copy=False)
            bad = ~np.isfinite(drawn.reshape(*indices.shape, -1)).all(-1) & (indices >= 0)
            if bad.any():
                raise ValueError(
                    "`examples` must be finite as float32 numbers. Received: a NaN or an infinity "
                    f"in example {indices[bad][0]}"
                )
        return drawn


def check_squares(dataset: ClassDataset, cause: str) -> None:
    """Raise a `ValueError` unless the examples are images that can be turned."""
    shape = dataset.example_shape
    if isinstance(shape, dict) or not (len(shape) >= 2 and shape[0] == shape[1]):
        raise ValueError(
            f"{cause} needs square images `[n, size, size, ...]`. "
            f"Received: examples of shape {shape}"
        )


def integer(name: str, value: Any, least: int, end: int = 2**31) -> int:
    """Return an integer in `[least, end)`, or raise an error that names it."""
    check_count(name, value, least)
    if value >= end:
        raise ValueError(f"`{name}` must be less than {end}. Received: {name}={value}")
    return int(value)


def number_or_range(name: str, value: Any) -> tuple[Any, tuple[int, int]]:
    """Return a number, or two, as given and as the least and the most."""
    if not isinstance(value, tuple | list):
        number = integer(name, value, 1)
        return number, (number, number)
    if len(value) != 2:
        raise ValueError(f"`{name}` must be a number or (least, most). Received: {name}={value}")
    least, most = (integer(name, part, 1) for part in value)
    if least > most:
        raise ValueError(f"`{name}` must be (least, most). Received: {name}={value}")
    return (least, most), (least, most)


def _labels(indices: Array) -> Array:
    """Return the number of each example's class in its task, `[tasks, ways * n]`, or -1."""
    ways = np.arange(indices.shape[1], dtype=np.int32)[:, None]
    return np.where(indices < 0, np.int32(-1), ways).reshape(len(indices), -1)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def become_floats(examples: Array) -> bool:
    """Whether examples come as float32: integers may be the tokens of a text, unless an image."""
    image = (examples.dtype == np.uint8 and examples.ndim >= 3) or (
        examples.dtype == np.uint16 and examples.ndim in (3, 4)
    )
    return image or examples.dtype.kind == "f"


def _in_core(examples: Array) -> bool:
    """Whether `_core.gather` takes them: each example in one piece, one after the other."""
    return (
        examples.dtype in (np.uint8, np.uint16, np.float16, np.float32)
        and bool(examples[0].flags.c_contiguous)
        and examples.strides[0] >= 0
    )


def _large_mapped_files(arrays: Sequence[Array]) -> list[Any]:
    """The mappings that arrays view, if the pages of all can be read from the files again."""
    files = [mapping_of(view) for array in arrays if (view := map_of(array)) is not None]
    large = sum(map(len, files)) > _SMALL_FILE and hasattr(mmap, "MADV_DONTNEED")
    return files if large and len(files) == len(arrays) else []


def sharded(sampler: Any, index: int, count: int) -> Any:
    """Return a copy of a sampler with the tasks of one of several workers.

    Args:
        sampler: With its own place among workers in `_shard`, `(index, count)`.
        index: Which worker, from 0.
        count: How many there are.
    """
    count = integer("count", count, 1)
    index = integer("index", index, 0, count)
    mine = copy.copy(sampler)
    of, among = sampler._shard
    mine._shard = (of * count + index, among * count)
    return mine
