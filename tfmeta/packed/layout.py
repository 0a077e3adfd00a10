"""How the tensors of several tasks lie beside each other.

Activations with axes of space are `[n, *space, tasks, channels]`: to a convolution, which sees
`tasks*channels`, a task is a group of channels, and to batch normalisation a set of channels of its
own. Vectors, and whatever else has at most two axes in one task, are `[tasks, n, d]`. So the rank
alone says which it is. Weights have the axis of tasks where the layer that uses them wants it.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.foreign.of_keras import layers_of
from tfmeta.types import Tensor

_BY_CHANNEL = (
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def pack(x: Tensor) -> Tensor:
    """Return the packed layout of `[tasks, n, ...]`."""
    rank = len(x.shape)
    if rank < 4:
        return x
    # [tasks, n, *space, channels] -> [n, *space, tasks, channels]
    return tf.transpose(x, [*range(1, rank - 1), 0, rank - 1])


def unpack(x: Tensor) -> Tensor:
    """Return `[tasks, n, ...]` of the packed layout."""
    rank = len(x.shape)
    if rank < 4:
        return x
    return tf.transpose(x, [rank - 2, *range(rank - 2), rank - 1])


def merge(x: Tensor) -> Tensor:
    """Return `[n, *space, tasks*channels]` of `[n, *space, tasks, channels]`."""
    return reshaped(x, [*sizes(x)[:-2], x.shape[-2] * x.shape[-1]])


def part(x: Tensor, tasks: int) -> Tensor:
    """Return `[n, *space, tasks, channels]` of `[n, *space, tasks*channels]`."""
    return reshaped(x, [*sizes(x)[:-1], tasks, x.shape[-1] // tasks])


def sizes(x: Tensor) -> list[Tensor]:
    """Return the sizes of `x`, as numbers where they are known."""
    if None not in x.shape:
        return list(x.shape)
    dynamic = tf.shape(x)
    return [dynamic[i] if n is None else n for i, n in enumerate(x.shape)]


def reshaped(x: Tensor, shape: list[Tensor]) -> Tensor:
    """Reshape, keeping what is known of the shape."""
    known = [n if isinstance(n, int) else None for n in shape]
    if known.count(None) == 0:
        return x if x.shape == known else tf.reshape(x, shape)
    if known.count(None) == 1:
        shape = [-1 if n is None else n for n in known]
    return tf.ensure_shape(tf.reshape(x, shape), known)


def task_axes(model: keras.Model) -> dict[int, int]:
    """Return for each variable of `model`, by its id, where its packed tensor has the tasks."""
    axes = {id(v): 0 if len(v.shape) < 3 else len(v.shape) - 1 for v in model.variables}
    for layer in layers_of(model, include_self=False):
        if isinstance(layer, _BY_CHANNEL):
            # A kernel for each channel: [*size, channels, multiplier].
            kernel = layer.weights[0]
            axes[id(kernel)] = len(kernel.shape) - 2
    return axes


def spread(x: Tensor, axis: int, tasks: Any) -> Tensor:
    """Return a weight for each task, all the same: `x` with an axis of `tasks` at `axis`."""
    shape = [*x.shape[:axis], tasks, *x.shape[axis:]]
    return tf.broadcast_to(tf.expand_dims(x, axis), shape)


def along(values: Tensor, axis: int, rank: int) -> Tensor:
    """Return `[tasks]` values in a shape that broadcasts to a packed weight."""
    return tf.reshape(values, [1] * axis + [-1] + [1] * (rank - axis - 1))
