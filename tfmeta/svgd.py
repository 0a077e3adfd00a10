"""Stein variational gradient descent: particles that follow a gradient and keep apart.

Liu and Wang, *Stein Variational Gradient Descent: A General Purpose Bayesian Inference Algorithm*,
NeurIPS 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta.types import Params


def descent_direction(
    gradients: Params,
    particles: Params,
    axes: Sequence[int],
    number: int,
    repulsion: float = 1.0,
) -> Params:
    """Return the direction to go down for each of M particles.

    `g_m = 1/M Σ_j [k(φ_j, φ_m) ∇L(φ_j) − ρ ∇_{φ_j} k(φ_j, φ_m)]`, with `k = exp(−d²/h)`, d the
    distance of two particles over all their tensors, and `h = median(d²)/log M` over all pairs,
    taken as a constant. Where all particles are the same, h is 1. One particle has `g = ∇L`.

    Args:
        gradients: Those of the mean of L over particles, `∇L(φ_m)/M`.
        particles: φ, tensors with an axis of `tasks*M` each: the particles of a task lie together.
        axes: Which axis that is, for each tensor.
        number: M.
        repulsion: ρ.

    Returns:
        Tensors like `gradients`.
    """
    if number == 1:
        return gradients
    g, x = (_vectors(tensors, axes, number) for tensors in (gradients, particles))
    # Far from the origin the squares in the kernel would cancel.
    x -= tf.reduce_mean(x, axis=1, keepdims=True)
    kernel, width = _kernel(x, number)
    apart = tf.linalg.diag(tf.reduce_sum(kernel, axis=1)) - kernel
    apart *= (2 * repulsion / number / width)[:, None, None]
    return _tensors(tf.matmul(kernel, g) - tf.matmul(apart, x), particles, axes)


def _vectors(tensors: Params, axes: Sequence[int], number: int) -> Any:
    """Return `[tasks, M, d]` of tensors with `tasks*M` in an axis each."""
    rows = []
    for x, axis in zip(tensors, axes, strict=True):
        first = x if axis == 0 else tf.transpose(x, _front(axis, len(x.shape)))
        rows.append(tf.reshape(first, [-1, number, math.prod(x.shape) // x.shape[axis]]))
    return tf.concat(rows, -1)


def _tensors(vectors: Any, like: Params, axes: Sequence[int]) -> Params:
    """Return the tensors of which `_vectors` made `[tasks, M, d]`."""
    sizes = [math.prod(x.shape) // x.shape[axis] for x, axis in zip(like, axes, strict=True)]
    tensors = []
    for part, x, axis in zip(tf.split(vectors, sizes, -1), like, axes, strict=True):
        order = _front(axis, len(x.shape))
        first = tf.reshape(part, [x.shape[i] for i in order])
        tensors.append(first if axis == 0 else tf.transpose(first, np.argsort(order)))
    return tensors


def _front(axis: int, rank: int) -> list[int]:
    return [axis, *(i for i in range(rank) if i != axis)]


def _kernel(x: Any, number: int) -> tuple[Any, Any]:
    """Return the kernel `[tasks, M, M]`, symmetric, and its width `[tasks]`."""
    products = tf.matmul(x, x, transpose_b=True)
    square = tf.linalg.diag_part(products)
    distances = tf.maximum(square[:, :, None] + square[:, None] - 2 * products, 0)
    pairs = np.ravel_multi_index(np.triu_indices(number, 1), (number, number))
    ranked = tf.sort(
        tf.gather(tf.reshape(tf.stop_gradient(distances), [-1, number**2]), pairs, axis=1)
    )
    middle = (ranked[:, (len(pairs) - 1) // 2] + ranked[:, len(pairs) // 2]) / 2
    width = middle / np.log(number)
    width = tf.where(width > 0, width, tf.ones_like(width))
    return tf.exp(-distances / width[:, None, None]), width
