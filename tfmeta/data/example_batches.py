"""Batches of labelled examples, for ordinary training on the classes of a `ClassDataset`."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from tfmeta.data.augmentation import Augmentation
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.gather import Gather, check_squares, integer
from tfmeta.data.normalization import Numbers
from tfmeta.data.stream import stream
from tfmeta.types import Array, Episodes


class ExampleBatches:
    """Batches of examples with the numbers of their classes; batch `step` = f(seed, step).

    In each epoch of `steps_per_epoch` batches every example is shown once, in an order of the
    epoch's own, but for those that would make a last batch smaller than the others.

    Args:
        dataset: Whose examples.
        batch_size: How many are in a batch; all of them, where there are fewer.
        seed: Another seed gives other orders; in `[0, 2**64)`.
        augmentation, mean, std, num_threads: As for `EpisodeSampler`.

    Raises:
        TypeError: An argument is of another type.
        ValueError: An argument is out of range.

    Example:
        >>> batches = ExampleBatches(images, batch_size=64)
        >>> classifier.fit(batches.dataset(), steps_per_epoch=batches.steps_per_epoch, epochs=10)
    """

    def __init__(
        self,
        dataset: ClassDataset,
        batch_size: int,
        seed: int = 0,
        *,
        augmentation: Augmentation | None = None,
        mean: Numbers | None = None,
        std: Numbers | None = None,
        num_threads: int | None = None,
    ) -> None:
        self._gather = Gather(dataset, augmentation, mean, std, num_threads)
        self.source = dataset
        self.batch_size = min(integer("batch_size", batch_size, 1), len(dataset))
        self.seed = integer("seed", seed, 0, 2**64)
        self.steps_per_epoch = len(dataset) // self.batch_size
        if dataset.quarter_turns.any():
            check_squares(dataset, "A dataset with rotations")
        sizes = np.diff(dataset.class_offsets)
        self._classes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        # The same for the batches of an epoch, which mostly come one after another.
        self._order = functools.lru_cache(maxsize=2)(self._order_of_epoch)

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        """Return batch number `step`, `({"x": [n, ...]}, [n])`; it is one, not several."""
        del meta_batch_size
        epoch, number = divmod(step, self.steps_per_epoch)
        rows = self._order(epoch)[number * self.batch_size :][: self.batch_size]
        classes = self._classes[rows]
        examples = self._gather.of_no_episode(
            self.source.class_indices[rows],
            self.source.quarter_turns[classes],
            seed=self.seed,
            step=step,
        )
        return {"x": examples}, classes

    def dataset(self, start: int = 0) -> tf.data.Dataset:
        """Return the endless dataset `(x, y)` of the batches `start`, `start + 1`, ..."""
        return stream(self, 1, start).map(lambda inputs, classes: (inputs["x"], classes))

    def _order_of_epoch(self, epoch: int) -> Array:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.source))
