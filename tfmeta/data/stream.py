"""From a sampler to `tf.data`: the one place where batches become a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfmeta.types import Array, Episodes, Sampler


def stream(
    sampler: Sampler, meta_batch_size: int, start: int, like: Sequence[Episodes] = ()
) -> tf.data.Dataset:
    """Returns the endless dataset of the meta-batches `start`, `start + 1`, ... of a sampler.

    Args:
        sampler: Anything whose `batch(step, meta_batch_size)` gives `(inputs, targets)`, a
            dictionary of arrays and an array, of the same shapes at every step.
        meta_batch_size: Number of tasks in a batch.
        start: Number of the first batch.
        like: Meta-batches of other shapes that there may be; the sizes in which they differ from
            the first are not static.

    Returns:
        A `tf.data.Dataset` of `(inputs, targets)`, all shapes static but for those, prefetched.
    """
    inputs, targets = sampler.batch(start, meta_batch_size)
    names = list(inputs)

    def listed(inputs: dict[str, Array], targets: Array) -> list[Array]:
        return [*(inputs[name] for name in names), targets]

    def draw(step: int) -> list[Array]:
        return listed(*sampler.batch(int(step), meta_batch_size))

    arrays = listed(inputs, targets)
    types = [_tensor_type(array) for array in arrays]
    shapes = [tf.TensorShape(array.shape) for array in arrays]
    for other in like:
        found = (tf.TensorShape(array.shape) for array in listed(*other))
        shapes = [a.most_specific_compatible_shape(b) for a, b in zip(shapes, found, strict=True)]

    def read(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        tensors = tf.numpy_function(draw, [step], types, stateful=False)
        for tensor, shape in zip(tensors, shapes, strict=True):
            tensor.set_shape(shape)
        return dict(zip(names, tensors, strict=False)), tensors[-1]

    return tf.data.Dataset.counter(start).map(read).prefetch(2)


def _tensor_type(array: Array) -> tf.DType:
    return tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)
