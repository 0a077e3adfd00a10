"""Few-shot classification tasks, drawn from a `ClassDataset`."""

from __future__ import annotations

import mmap
import operator
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmeta import _core
from tfmeta.data.augmentation import Augmentation
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.normalization import Numbers, scale_and_offset
from tfmeta.data.stream import stream
from tfmeta.types import Array, Episodes

if TYPE_CHECKING:
    import tensorflow as tf

_SMALL_FILE = 64 << 20  # a memory-mapped file below this size may stay in memory as a whole


class EpisodeSampler:
    r"""Draws few-shot classification tasks; meta-batch `step` is a function of `(seed, step)`.

    A task has `ways` classes, drawn from all classes of the dataset without replacement, and
    `shots + queries` examples of each, drawn without replacement too: the first `shots` are its
    support set, the others its query set. Classes come in random order and are called
    \(0, \dots, \mathit{ways} - 1\), so that a label says nothing beyond its task.

    Task `t` of meta-batch `s` depends on `(seed, s, t)` and nothing else: not on the number of
    threads, the process, the order of calls or the size of the meta-batch.

    Args:
        dataset: Where classes and examples are drawn from.
        ways: Classes of a task.
        shots: Support examples of each class.
        queries: Query examples of each class.
        seed: Another seed gives other tasks; in `[0, 2**64)`.
        random_rotation: Turns all images of a class by the same random multiple of 90 degrees,
            drawn anew for each class of each task.
        augmentation: Random changes of the images, or `None`.
        mean: What is subtracted from examples before they are divided by `std`, in units of the
            floats they come as ([0, 1] for uint8): one number, or one for each channel of images
            `[n, height, width, channels]` or vectors `[n, channels]`. 0 when `None`.
        std: What they are divided by, likewise; 1 when `None`.
        num_threads: Threads that fill large meta-batches; by default the CPUs there are.

    Raises:
        TypeError: An argument is of another type.
        ValueError: An argument is out of range; the dataset has fewer classes than `ways`, or a
            class has fewer examples than `shots + queries`; images to be turned are not square;
            there are no images to be augmented, or no floats to be normalised.

    Example:
        >>> import numpy as np
        >>> import tfmeta
        >>> images = np.random.default_rng(0).integers(0, 256, [60, 28, 28, 1], np.uint8)
        >>> classes = tfmeta.data.ClassDataset(images, np.arange(60) // 6)
        >>> sampler = tfmeta.data.EpisodeSampler(classes, ways=5, shots=1, queries=2)
        >>> inputs, targets = sampler.batch(step=0, meta_batch_size=4)
        >>> inputs["support_x"].shape, inputs["query_x"].shape, targets.shape
        ((4, 5, 28, 28, 1), (4, 10, 28, 28, 1), (4, 10))
        >>> targets[0]
        array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], dtype=int32)
    """

    def __init__(
        self,
        dataset: ClassDataset,
        ways: int,
        shots: int,
        queries: int,
        seed: int = 0,
        *,
        random_rotation: bool = False,
        augmentation: Augmentation | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        num_threads: int | None = None,
    ) -> None:
        if not isinstance(dataset, ClassDataset):
            raise TypeError(f"`dataset` must be a ClassDataset. Received: {type(dataset).__name__}")
        self.source = dataset
        self.ways = _integer("ways", ways, 1)
        self.shots = _integer("shots", shots, 1)
        self.queries = _integer("queries", queries, 1)
        self.seed = _integer("seed", seed, 0, 2**64)
        self.random_rotation = bool(random_rotation)
        self.num_threads = _integer(
            "num_threads", _available_cpus() if num_threads is None else num_threads, 1, 1025
        )
        self._check_classes()
        self._check_rotation()

        examples = dataset.examples
        if augmentation is not None:
            if not isinstance(augmentation, Augmentation):
                raise TypeError(
                    "`augmentation` must be a tfmeta.data.Augmentation or None. "
                    f"Received: augmentation={augmentation!r}"
                )
            augmentation.check(examples)
        self.augmentation = augmentation
        self.mean, self.std = mean, std
        self._become_floats = _become_floats(examples)
        if not self._become_floats and (mean is not None or std is not None):
            raise ValueError(
                "`mean` and `std` need images of uint8 or uint16, or floats. "
                f"Received: examples of type {examples.dtype}, shape {examples.shape}"
            )
        self._scale, self._offset = scale_and_offset(examples, mean, std)
        self._in_core = self._become_floats and _in_core(examples)
        self._file = _large_mapped_file(examples)
        if self._file is not None:
            # Reading ahead of scattered examples would read a multiple of what is wanted.
            self._file.madvise(mmap.MADV_RANDOM)
        self._support_y = np.repeat(np.arange(ways, dtype=np.int32), shots)
        self._query_y = np.repeat(np.arange(ways, dtype=np.int32), queries)

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        """Returns meta-batch number `step` as NumPy arrays.

        Args:
            step: Number of the meta-batch, in `[0, 2**63)`.
            meta_batch_size: Number of tasks.

        Returns:
            `(inputs, targets)`. `inputs["support_x"]` is `[tasks, ways * shots, ...]`,
            `inputs["support_y"]` is int32 `[tasks, ways * shots]`, `inputs["query_x"]` is
            `[tasks, ways * queries, ...]`, and `targets` are the labels of the queries, int32
            `[tasks, ways * queries]`. Examples are ordered by label. uint8 examples come as
            float32, multiplied by `float32(1 / 255)`; uint16 images too, by `float32(1 / 65535)`;
            other floats as float32; all of them augmented and normalised as the sampler was told.
            Other integers and strings come as they are.

        Raises:
            ValueError: `step` or `meta_batch_size` is out of range, or an example that was drawn
                holds a NaN or an infinity.
        """
        step = _integer("step", step, 0, 2**63)
        tasks = _integer("meta_batch_size", meta_batch_size, 1)
        source = self.source
        _, indices, turns = _core.sample(
            source.class_offsets,
            source.class_indices,
            source.quarter_turns,
            self.ways,
            self.shots,
            self.queries,
            self.seed,
            step,
            tasks,
            self.random_rotation,
        )
        changes: tuple[Array | None, Array | None] = None, None
        if self.augmentation is not None:
            drawn = self.augmentation.draw(source.examples, self.seed, step, indices.shape)
            queries = drawn[..., self.shots :] if self.augmentation.queries else None
            changes = drawn[..., : self.shots], queries
        support_x = self._gather(indices[..., : self.shots], turns, changes[0])
        query_x = self._gather(indices[..., self.shots :], turns, changes[1])
        inputs = {
            "support_x": support_x,
            "support_y": _repeat(self._support_y, tasks),
            "query_x": query_x,
        }
        return inputs, _repeat(self._query_y, tasks)

    def dataset(self, meta_batch_size: int = 1, start: int = 0) -> tf.data.Dataset:
        """Returns the endless `tf.data.Dataset` of meta-batches `start`, `start + 1`, ...

        Args:
            meta_batch_size: Number of tasks in a meta-batch.
            start: Number of the first meta-batch; a run that is resumed goes on where it was.

        Returns:
            A prefetched dataset of `(inputs, targets)` as in `batch`, all shapes static.

        Example:

        ```python
        learner.fit(sampler.dataset(meta_batch_size=32), steps_per_epoch=500, epochs=20)
        ```
        """
        return stream(self, meta_batch_size, start)

    def __repr__(self) -> str:
        return (
            f"EpisodeSampler({self.source!r}, ways={self.ways}, shots={self.shots}, "
            f"queries={self.queries}, seed={self.seed}, random_rotation={self.random_rotation}"
            + "".join(
                f", {name}={value!r}"
                for name in ("augmentation", "mean", "std")
                if (value := getattr(self, name)) is not None
            )
            + ")"
        )

    def _gather(self, indices: Array, turns: Array, changes: Array | None) -> Array:
        """Returns examples `[tasks, ways * n, ...]`, for indices and changes `[tasks, ways, n]`."""
        examples, file = self.source.examples, self._file
        turns = turns.repeat(indices.shape[2], axis=1)
        indices = indices.copy().reshape(turns.shape)
        if not self._in_core:
            examples = self._take(indices)
            if file is not None:
                file.madvise(mmap.MADV_DONTNEED)
                file = None
            if not self._become_floats:
                for place in zip(*np.nonzero(turns), strict=True):
                    examples[place] = np.rot90(examples[place], turns[place])
                return examples
            examples = examples.reshape(-1, *examples.shape[2:])
            indices = np.arange(indices.size).reshape(indices.shape)
        if changes is not None:
            changes = changes.copy().reshape(turns.shape)
        return _core.gather(
            examples,
            indices,
            turns,
            changes,
            self._scale,
            self._offset,
            self.num_threads,
            file is not None,
        )

    def _take(self, indices: Array) -> Array:
        """Returns examples of other types and layouts in one piece, and floats as float32."""
        drawn = np.ascontiguousarray(self.source.examples[indices])
        if drawn.dtype.kind == "f":
            with np.errstate(over="ignore"):
                drawn = drawn.astype(np.float32, copy=False)
            bad = ~np.isfinite(drawn.reshape(*indices.shape, -1)).all(-1)
            if bad.any():
                raise ValueError(
                    "`examples` must be finite as float32 numbers. Received: a NaN or an infinity "
                    f"in example {indices[bad][0]}"
                )
        return drawn

    def _check_classes(self) -> None:
        names = self.source.class_names
        of = f" of {self.source.description!r}" if self.source.description else ""
        if self.ways > len(names):
            raise ValueError(
                f"`ways` must be at most the number of classes{of}, {len(names)}. "
                f"Received: ways={self.ways}"
            )
        sizes = np.diff(self.source.class_offsets)
        needed = self.shots + self.queries
        small = np.flatnonzero(sizes < needed)
        if small.size:
            first = small[np.argmin(sizes[small])]
            others = f", and {small.size - 1} more classes are too small" if small.size > 1 else ""
            raise ValueError(
                f"Every class{of} must have at least `shots` + `queries` = {self.shots} + "
                f"{self.queries} = {needed} examples. Received: class {names[first]!r} with "
                f"{sizes[first]}{others}"
            )

    def _check_rotation(self) -> None:
        shape = self.source.examples.shape[1:]
        turned = self.random_rotation or self.source.quarter_turns.any()
        if turned and not (len(shape) >= 2 and shape[0] == shape[1]):
            cause = "`random_rotation`" if self.random_rotation else "A dataset with rotations"
            raise ValueError(
                f"{cause} needs square images `[n, size, size, ...]`. "
                f"Received: examples of shape {tuple(shape)}"
            )


def _integer(name: str, value: Any, least: int, end: int = 2**31) -> int:
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r}") from None
    if not least <= value < end:
        expected = f"at least {least}" if value < least else f"less than {end}"
        raise ValueError(f"`{name}` must be {expected}. Received: {name}={value}")
    return int(value)


def _repeat(row: Array, tasks: int) -> Array:
    rows = np.empty([tasks, row.size], row.dtype)
    rows[:] = row
    return rows


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _become_floats(examples: Array) -> bool:
    """Whether examples come as float32: uint16 may be the tokens of a text, unless an image."""
    image = examples.dtype == np.uint16 and examples.ndim in (3, 4)
    return image or examples.dtype == np.uint8 or examples.dtype.kind == "f"


def _in_core(examples: Array) -> bool:
    """Whether `_core.gather` takes them: each example in one piece, one after the other."""
    return (
        examples.dtype in (np.uint8, np.uint16, np.float16, np.float32)
        and bool(examples[0].flags.c_contiguous)
        and examples.strides[0] >= 0
    )


def _large_mapped_file(array: Any) -> Any:
    """The mapping that `array` views, if its pages can be read from the file again."""
    while isinstance(array, np.ndarray):
        mapping = getattr(array, "_mmap", None)
        if mapping is not None:
            # What was written to a copy-on-write mapping is in no file.
            shared = getattr(array, "mode", "c") != "c" and hasattr(mmap, "MADV_DONTNEED")
            return mapping if shared and len(mapping) > _SMALL_FILE else None
        array = array.base
    return None
