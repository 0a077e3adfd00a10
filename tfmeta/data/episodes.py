"""Few-shot classification tasks, drawn from a `ClassDataset`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tfmeta import _core
from tfmeta.data.augmentation import Augmentation
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.class_sizes import listed
from tfmeta.data.gather import check_squares, integer, number_or_range, sharded
from tfmeta.data.gather_several import gather_of
from tfmeta.data.nested_stream import nested_stream
from tfmeta.data.normalization import Numbers
from tfmeta.data.stream import stream
from tfmeta.types import Array, Episodes

if TYPE_CHECKING:
    import tensorflow as tf


class EpisodeSampler:
    """Draws few-shot classification tasks; meta-batch `step` is a function of `(seed, step)`.

    A task has `ways` classes, drawn from all classes of the dataset without replacement, and
    `shots + queries` examples of each, drawn without replacement too: the first `shots` are its
    support set, the others its query set. Classes come in random order and are called
    0, …, ways − 1, so that a label says nothing beyond its task.

    Task `t` of meta-batch `s` depends on `(seed, s, t)` and nothing else: not on the number of
    threads, the process, the order of calls or the size of the meta-batch.

    Tasks may differ in size, as those of Meta-Dataset do, where `ways` or `shots` is a range.
    Meta-batches then have room for the largest: `inputs` have masks as well, `support_mask`
    `[tasks, ways * shots]` and `query_mask` `[tasks, ways * queries]`, false where there is no
    example; there the label is -1 and the example zeros. Learners leave such places out.

    For learners that learn from examples without labels there may be `unlabelled` more examples of
    each class, which are neither support nor query, and as many of each of `distractors` further
    classes, which the task does not have: `inputs["unlabelled_x"]`
    `[tasks, (ways + distractors) * unlabelled, ...]`, those of the task's classes first; and where
    tasks differ in size, `unlabelled_mask`.

    Args:
        dataset: Where classes and examples are drawn from.
        ways: Classes of a task; or `(least, most)`, each number between as likely as far as there
            are enough classes.
        shots: Support examples of each class; or `(least, most)`, each number between as likely as
            far as the classes have enough examples.
        queries: Query examples of each class.
        unlabelled: Further examples of each class, without labels.
        distractors: How many further classes there are examples of among those, drawn as the
            classes of a task are.
        seed: Another seed gives other tasks; in `[0, 2**64)`.
        random_rotation: Turns all images of a class by the same random multiple of 90 degrees,
            drawn anew for each class of each task.
        balanced: Whether the classes of a task have equally many shots, where `shots` is a range;
            otherwise each class has its own number.
        within: `"group"` draws all classes of a task from one of the dataset's groups (an
            alphabet, a superclass), each as likely that has enough classes. `"hierarchy"` reads
            groups as paths, `a/b/c`, and draws from any node of their tree, that is from all
            classes below it; the root is one.
        class_weights: `"uniform"` draws each class as likely as another; `"examples"` in
            proportion to how many examples it has.
        augmentation: Random changes of the images, or `None`. Of several inputs (a dataset of
            dicts) a dict of those that are changed, and so for `mean` and `std`.
        mean: What is subtracted from examples before they are divided by `std`, in units of the
            floats they come as ([0, 1] for uint8 images): one number, or one for each channel of
            images `[n, height, width, channels]` or vectors `[n, channels]`. 0 when `None`.
        std: What they are divided by, likewise; 1 when `None`.
        num_threads: Threads that fill large meta-batches; by default the CPUs there are.

    Raises:
        TypeError: An argument is of another type.
        ValueError: An argument is out of range; the dataset has fewer classes than
            `ways + distractors`, or a class has fewer examples than `shots + queries + unlabelled`;
            there are distractors without unlabelled examples; images to be turned are not square;
            there are no groups to draw within, no images to be augmented, or no floats to be
            normalised.

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
        ways: int | tuple[int, int],
        shots: int | tuple[int, int],
        queries: int,
        seed: int = 0,
        *,
        unlabelled: int = 0,
        distractors: int = 0,
        random_rotation: bool = False,
        balanced: bool = True,
        within: Literal["group", "hierarchy"] | None = None,
        class_weights: Literal["uniform", "examples"] = "uniform",
        augmentation: Augmentation | Mapping[str, Augmentation] | None = None,
        mean: Numbers | Mapping[str, Numbers] | None = None,
        std: Numbers | Mapping[str, Numbers] | None = None,
        num_threads: int | None = None,
    ) -> None:
        self._gather = gather_of(dataset, augmentation, mean, std, num_threads)
        self.source = dataset
        self.augmentation, self.mean, self.std = augmentation, mean, std
        self.num_threads = self._gather.num_threads
        self.ways, self._ways = number_or_range("ways", ways)
        self.shots, self._shots = number_or_range("shots", shots)
        self.queries = integer("queries", queries, 1)
        self.unlabelled = integer("unlabelled", unlabelled, 0)
        self.distractors = integer("distractors", distractors, 0)
        if self.distractors and not self.unlabelled:
            raise ValueError(
                "`distractors` must be 0 where there are no unlabelled examples. Received: "
                f"distractors={distractors}, unlabelled={unlabelled}"
            )
        self.seed = integer("seed", seed, 0, 2**64)
        self.random_rotation = bool(random_rotation)
        self.balanced = _one_of("balanced", balanced, (True, False))
        self.within = _one_of("within", within, (None, "group", "hierarchy"))
        self.class_weights = _one_of("class_weights", class_weights, ("uniform", "examples"))
        self._shard = (0, 1)
        if self.random_rotation or dataset.quarter_turns.any():
            cause = "`random_rotation`" if self.random_rotation else "A dataset with rotations"
            check_squares(dataset, cause)
        pools = self._pools_of_classes()
        self._pool_offsets = np.cumsum([0, *map(len, pools)])
        self._pool_classes = np.concatenate(pools)
        self._check_sizes()
        # No larger than any task can be.
        sizes = np.diff(dataset.class_offsets)
        most = max(map(len, pools)) - self.distractors
        self._ways = (self._ways[0], min(self._ways[1], most))
        most = int(sizes.max()) - self.queries - self.unlabelled
        self._shots = (self._shots[0], min(self._shots[1], most))
        self._padded = self._ways[0] < self._ways[1] or self._shots[0] < self._shots[1]

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        """Returns meta-batch number `step` as NumPy arrays.

        Args:
            step: Number of the meta-batch, in `[0, 2**63)`.
            meta_batch_size: Number of tasks.

        Returns:
            `(inputs, targets)`. `inputs["support_x"]` is `[tasks, ways * shots, ...]`,
            `inputs["support_y"]` is int32 `[tasks, ways * shots]`, `inputs["query_x"]` is `[tasks,
            ways * queries, ...]`, dicts of such for several inputs, and `targets` are the labels of
            the queries, int32 `[tasks, ways * queries]`. Examples are ordered by label. uint8
            images, of two axes or more, come as float32, multiplied by `float32(1 / 255)`; uint16
            images of two or three by `float32(1 / 65535)`; other floats as float32; all of them
            augmented and normalised as the sampler was told. Other integers (vectors of uint8 too,
            the tokens of a text for instance) and strings come as they are. Where `ways` or `shots`
            is a range, there are masks as well, and where there are unlabelled examples,
            `inputs["unlabelled_x"]`.

        Raises:
            ValueError: `step` or `meta_batch_size` is out of range, or an example that was drawn
                holds a NaN or an infinity.
        """
        tasks = integer("meta_batch_size", meta_batch_size, 1)
        _, support, query, unlabelled, turns = self._drawn(step, tasks)
        return self._gather(
            support,
            query,
            turns,
            unlabelled=unlabelled,
            seed=self.seed,
            step=step,
            first_task=self._shard[0] * tasks,
            padded=self._padded,
        )

    def draw(self, step: int, tasks: int = 1) -> tuple[Array, Array, Array]:
        """Returns which examples make up meta-batch `step`.

        Returns:
            The positions in the dataset's `examples` of support `[tasks, ways, shots]` and query
            `[tasks, ways, queries]`, -1 where a task has fewer ways or shots, and the
            counter-clockwise quarter turns of each class, `[tasks, ways]`.
        """
        _, support, query, _, turns = self._drawn(step, tasks)
        return support, query, turns[:, : self._ways[1]]

    def draw_classes(self, step: int, tasks: int = 1) -> Array:
        """Returns which classes make up meta-batch `step`.

        Returns:
            Their numbers in the dataset, `[tasks, ways]`: label `w` of task `t` stands for class
            `[t, w]`. -1 where a task has fewer ways.

        Example:

        ```python
        [names] = sampler.draw_classes(step=7)
        sampler.source.class_names[names[0]]  # what label 0 stands for
        ```
        """
        return self._drawn(step, tasks)[0]

    def draw_unlabelled(self, step: int, tasks: int = 1) -> Array:
        """Returns which examples without labels meta-batch `step` has.

        Returns:
            Their positions in the dataset's `examples`, `[tasks, ways + distractors, unlabelled]`:
            of each task first its classes and then the others, and -1 behind them where a task has
            fewer ways.
        """
        _, _, _, unlabelled, _ = self._drawn(step, tasks)
        return unlabelled

    def _drawn(self, step: int, tasks: int) -> tuple[Array, Array, Array, Array, Array]:
        """Return classes, positions of support, query and unlabelled examples, and all turns.

        A task's classes and its distractors are drawn as one task, of which the last `distractors`
        classes have unlabelled examples alone, and those the last places of each class.
        """
        step = integer("step", step, 0, 2**63)
        source = self.source
        more, ways, shots = self.distractors, self._ways[1], self._shots[1]
        classes, indices, turns = _core.sample(
            source.class_offsets,
            source.class_indices,
            source.quarter_turns,
            self._pool_offsets,
            self._pool_classes,
            (self._ways[0] + more, ways + more),
            self._shots,
            self.queries + self.unlabelled,
            self.seed,
            step,
            tasks,
            self._shard[0] * tasks,
            self.random_rotation,
            self.balanced,
            self.class_weights == "examples",
        )
        labelled, unlabelled = np.split(indices, [shots + self.queries], axis=2)
        labelled, own = labelled[:, :ways], classes[:, :ways]
        if more:
            others = np.arange(ways) >= (classes >= 0).sum(1, keepdims=True) - more
            labelled = np.where(others[..., None], -1, labelled)
            own = np.where(others, -1, own)
        return own, labelled[..., :shots], labelled[..., shots:], unlabelled, turns

    def shard(self, index: int, count: int) -> EpisodeSampler:
        """Returns the sampler of one of several workers, which share each meta-batch out.

        Worker `index` of `count` draws `meta_batch_size` tasks a step, and they are the tasks
        `index * meta_batch_size` and on of the meta-batch that one worker would have drawn, of
        `count * meta_batch_size` tasks.

        Args:
            index: Which worker, from 0.
            count: How many there are.

        Example:

        ```python
        mine = sampler.shard(worker, workers)
        learner.fit(mine.dataset(meta_batch_size=32 // workers), steps_per_epoch=500)
        ```
        """
        mine: EpisodeSampler = sharded(self, index, count)
        return mine

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
        several = isinstance(self.source.examples, dict)
        return (nested_stream if several else stream)(self, meta_batch_size, start)

    def __repr__(self) -> str:
        text = (
            f"EpisodeSampler({self.source!r}, ways={self.ways}, shots={self.shots}, "
            f"queries={self.queries}, seed={self.seed}, random_rotation={self.random_rotation}"
        )
        chosen = {
            "unlabelled": (self.unlabelled, 0),
            "distractors": (self.distractors, 0),
            "balanced": (self.balanced, True),
            "within": (self.within, None),
            "class_weights": (self.class_weights, "uniform"),
            "augmentation": (self.augmentation, None),
            "mean": (self.mean, None),
            "std": (self.std, None),
        }
        for name, (value, default) in chosen.items():
            text += "" if value is default else f", {name}={value!r}"
        index, count = self._shard
        return text + ")" + (f".shard({index}, {count})" if count > 1 else "")

    def _pools_of_classes(self) -> list[Array]:
        """Return the classes of each pool that tasks are drawn from."""
        names, groups = self.source.class_names, self.source.groups
        of = f" of {self.source.description!r}" if self.source.description else ""
        needed, what, received = self._ways[0] + self.distractors, "`ways`", f"ways={self.ways}"
        if self.distractors:
            what += " + `distractors`"
            received += f", distractors={self.distractors}"
        if self.within is None:
            if needed > len(names):
                raise ValueError(
                    f"{what} must be at most the number of classes{of}, {len(names)}. "
                    f"Received: {received}"
                )
            return [np.arange(len(names))]
        if groups is None:
            raise ValueError(
                f"`within` must be None for a dataset{of} without groups. Received: "
                f"within={self.within!r}"
            )
        members: dict[tuple[str, ...], list[int]] = {}
        for c, group in enumerate(groups):
            parts = tuple(group.split("/")) if self.within == "hierarchy" else (group,)
            for depth in range(0 if self.within == "hierarchy" else len(parts), len(parts) + 1):
                members.setdefault(parts[:depth], []).append(c)
        # A node with a single one below it is the same pool twice.
        pools = {tuple(pool) for pool in members.values() if len(pool) >= needed}
        if not pools:
            largest = max(members, key=lambda node: len(members[node]))
            name = "/".join(largest) or "all"
            raise ValueError(
                f"{what} must be at most the number of classes of a group{of}. Received: "
                f"{received}; the largest, {name!r}, has {len(members[largest])}"
            )
        return [np.asarray(pool) for pool in sorted(pools)]

    def _check_sizes(self) -> None:
        of = f" of {self.source.description!r}" if self.source.description else ""
        sizes = np.diff(self.source.class_offsets)
        drawn = np.unique(self._pool_classes)
        parts = {"shots": self._shots[0], "queries": self.queries, "unlabelled": self.unlabelled}
        parts = {name: n for name, n in parts.items() if n}
        needed = sum(parts.values())
        small = [(self.source.class_names[c], int(sizes[c])) for c in drawn if sizes[c] < needed]
        if small:
            hint = (
                f". Leave out smaller ones with dataset.with_min_per_class({needed}) "
                f"(--min-per-class {needed})."
            )
            raise ValueError(
                f"Every class{of} must have at least {' + '.join(f'`{name}`' for name in parts)} = "
                f"{' + '.join(map(str, parts.values()))} = {needed} examples, which "
                f"{len(drawn) - len(small)} of {len(drawn)} classes have. Received: "
                f"{listed(small)}{hint if len(small) < len(drawn) else ''}"
            )


def _one_of(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    if not isinstance(value, (str, bool, type(None))) or value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}"
        )
    return value
