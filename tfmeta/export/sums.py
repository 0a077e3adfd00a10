"""Sums over several axes, taken one axis after another.

LiteRT adds up all numbers in turn, where TensorFlow adds up parts of them: over the images and
pixels of a batch that lost a digit, which inner steps made another one of.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta.foreign.derivatives import TRACING


@contextlib.contextmanager
def sums_by_axis() -> Iterator[None]:
    """Have `tf.reduce_sum` and `tf.reduce_mean` take one axis at a time while this is open."""
    with TRACING:
        originals = tf.reduce_sum, tf.reduce_mean
        tf.reduce_sum, tf.reduce_mean = (functools.partial(_by_axis, f) for f in originals)
        try:
            yield
        finally:
            tf.reduce_sum, tf.reduce_mean = originals


def _by_axis(
    reduce: Any, input_tensor: Any, axis: Any = None, keepdims: bool = False, name: Any = None
) -> Any:
    x = tf.convert_to_tensor(input_tensor)
    axes = tf.get_static_value(axis) if tf.is_tensor(axis) else axis
    if x.shape.rank is None or (axes is None and axis is not None):
        return reduce(x, axis, keepdims, name)
    rank = x.shape.rank
    every = range(rank) if axes is None else np.ravel(axes)
    # From the last one, so that the others keep their numbers.
    for i in sorted({int(i) % rank for i in every}, reverse=True):
        x = reduce(x, i, keepdims)
    return x
