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

from tfmeta.types import Params, Tensor


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
    g, x = (
        [_by_task(z, a, number) for z, a in zip(y, axes, strict=True)]
        for y in (gradients, particles)
    )
    # Far from the origin the squares in the kernel would cancel.
    x = [each - tf.reduce_mean(each, axis=2, keepdims=True) for each in x]
    products = [tf.reduce_sum(tf.matmul(each, each, transpose_b=True), axis=0) for each in x]
    kernel, width = _kernel(tf.add_n(products), number)
    apart = tf.linalg.diag(tf.reduce_sum(kernel, axis=1)) - kernel
    apart *= (2 * repulsion / number / width)[:, None, None]
    return [
        tf.reshape(tf.matmul(kernel, one) - tf.matmul(apart, other), like.shape)
        for one, other, like in zip(g, x, particles, strict=True)
    ]


def _by_task(x: Tensor, axis: int, number: int) -> Tensor:
    """Return `[n, tasks, M, m]` of a tensor with `tasks*M` in an axis: nothing is moved."""
    before, behind = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    return tf.reshape(x, [before, -1, number, behind])


def _kernel(products: Any, number: int) -> tuple[Tensor, Tensor]:
    """Return the kernel `[tasks, M, M]`, symmetric, and its width `[tasks]`, of inner products."""
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
