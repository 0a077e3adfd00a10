"""Means that are rounded little."""

from __future__ import annotations

from typing import Any

import keras

from tfmeta.types import Tensor


def mean_along(x: Tensor, axes: Any) -> Tensor:
    """Return the mean over some axes, one after another, which stay as axes of size 1.

    Where thousands of numbers are the same, as of a flat background, a single sum of them all would
    be off by much: it is rounded the same way each time.
    """
    for axis in keras.tree.flatten(axes):
        x = keras.ops.mean(x, axis, keepdims=True)
    return x
