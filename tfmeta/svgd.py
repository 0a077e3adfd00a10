"""Stein variational gradient descent: particles that follow a gradient and keep apart.

Liu and Wang, *Stein Variational Gradient Descent: A General Purpose Bayesian Inference Algorithm*,
NeurIPS 2016.
"""

from __future__ import annotations

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
        gradients: Those of L for each tensor, for each particle by itself.
        particles: φ, tensors with an axis of `tasks*M` each: the particles of a task lie together.
        axes: Which axis that is, for each tensor.
        number: M.
        repulsion: ρ.

    Returns:
        Tensors like `gradients`.
    """
    if number == 1:
        return gradients
    shapes = [p.shape for p in particles]
    g, x = (
        [_split(t, axis, number) for t, axis in zip(tensors, axes, strict=True)]
        for tensors in (gradients, particles)
    )
    # Far from the origin the squares below would cancel.
    x = [t - tf.reduce_mean(t, axis=2, keepdims=True) for t in x]
    kernel, width = _kernel(x, number)
    push = (2 * repulsion / number / width)[:, None, None]
    total = tf.reduce_sum(kernel, axis=1)[:, :, None]
    new = [
        tf.einsum("cjm,acjb->acmb", kernel, a / number + push * b) - push * total * b
        for a, b in zip(g, x, strict=True)
    ]
    return [tf.reshape(t, shape) for t, shape in zip(new, shapes, strict=True)]


def _split(x: Any, axis: int, number: int) -> Any:
    """Return `[before, tasks, M, behind]` of a tensor with `tasks*M` in an axis."""
    before, behind = (int(np.prod(x.shape[a])) for a in (slice(axis), slice(axis + 1, None)))
    return tf.reshape(x, [before, x.shape[axis] // number, number, behind])


def _kernel(x: Params, number: int) -> tuple[Any, Any]:
    """Return the kernel `[tasks, M, M]` and its width `[tasks]`."""
    products = tf.add_n([tf.einsum("acmb,acjb->cmj", t, t) for t in x])
    square = tf.linalg.diag_part(products)
    distances = tf.maximum(square[:, :, None] + square[:, None] - 2 * products, 0)
    pairs = np.ravel_multi_index(np.triu_indices(number, 1), (number, number))
    ranked = tf.sort(tf.gather(tf.reshape(distances, [-1, number**2]), pairs, axis=1))
    middle = (ranked[:, (len(pairs) - 1) // 2] + ranked[:, len(pairs) // 2]) / 2
    width = tf.stop_gradient(middle / np.log(number))
    width = tf.where(width > 0, width, tf.ones_like(width))
    return tf.exp(-distances / width[:, None, None]), width
