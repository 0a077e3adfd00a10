"""From a sampler to `tf.data`: the one place where batches become a pipeline."""

from __future__ import annotations

import tensorflow as tf

from tfmeta.types import Array, Sampler


def stream(sampler: Sampler, meta_batch_size: int, start: int) -> tf.data.Dataset:
    """Returns the endless dataset of the meta-batches `start`, `start + 1`, ... of a sampler.

    Args:
        sampler: Anything whose `batch(step, meta_batch_size)` gives `(inputs, targets)`, a
            dictionary of arrays and an array, of the same shapes at every step.
        meta_batch_size: Number of tasks in a batch.
        start: Number of the first batch.

    Returns:
        A `tf.data.Dataset` of `(inputs, targets)`, all shapes static, prefetched.
    """
    inputs, targets = sampler.batch(start, meta_batch_size)
    names = list(inputs)
    arrays = [*inputs.values(), targets]
    types = [_tensor_type(array) for array in arrays]

    def draw(step: int) -> list[Array]:
        inputs, targets = sampler.batch(int(step), meta_batch_size)
        return [*(inputs[name] for name in names), targets]

    def read(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        tensors = tf.numpy_function(draw, [step], types, stateful=False)
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.set_shape(array.shape)
        return dict(zip(names, tensors, strict=False)), tensors[-1]

    return tf.data.Dataset.counter(start).map(read).prefetch(2)


def _tensor_type(array: Array) -> tf.DType:
    return tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)
