"""Newton's steps to the least loss of logistic regression, of all tasks at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmeta.types import Tensor

# The logit of a class that is not there.
_NEVER = -1e9
# In how many ways a Newton step is tried: whole, half, a quarter …
_HALVINGS = 6
# A step that is less, of the greatest weight, is the last.
_STILL = 1e-8
# Of conjugate gradients: the residual, of the right side, of a Newton step and of the last one; its
# square where it is nothing but rounding; and how many there are at most.
_ROUGHLY, _EXACTLY, _NOTHING, _ITERATIONS = 1e-3, 1e-9, 1e-24, 200


def solution(features: Tensor, targets: Tensor, l2: float, steps: int) -> Tensor:
    """Return what minimises the loss of logistic regression, with its derivative.

    Args:
        features: `[tasks, n, f]`.
        targets: One-hot `[tasks, n, ways]`; rows of zeros don't count, and a class without an
            example has the probability 0.
        l2: λ.
        steps: How many Newton steps are taken.

    Returns:
        `[tasks, f + 1, ways]`, the weights and in the last row the offsets.
    """
    real = tf.reduce_sum(targets, -1, keepdims=True)
    absent = _NEVER * (1 - tf.reduce_max(targets, 1, keepdims=True))
    x = tf.concat([features, tf.ones_like(real)], -1)
    # Offsets are free.
    penalty = (
        l2 * tf.concat([tf.ones_like(features[:, 0]), tf.zeros_like(real[:, 0])], -1)[..., None]
    )

    def loss(at: Tensor) -> Tensor:
        logs = tf.nn.log_softmax(tf.matmul(x, at) + absent)
        return tf.reduce_sum(penalty * at**2, [1, 2]) / 2 - tf.reduce_sum(targets * logs, [1, 2])

    def newton_step(at: Tensor, residual: float) -> Tensor:
        """Return a step to the least of the loss, where its second derivative counts as fixed."""
        p = tf.nn.softmax(tf.matmul(x, at) + absent)
        slope = tf.matmul(x, real * p - targets, transpose_a=True) + penalty * at
        fixed_x, fixed_p = tf.stop_gradient(x), tf.stop_gradient(p)

        def curved(v: Tensor) -> Tensor:
            u = tf.matmul(fixed_x, v)
            u = fixed_p * (u - tf.reduce_sum(fixed_p * u, -1, keepdims=True))
            return tf.matmul(fixed_x, real * u, transpose_a=True) + penalty * v

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def solved(right: Tensor) -> Any:
            # The matrix is symmetric, and so its inverse is its own derivative's.
            inverse = functools.partial(conjugate_gradients, curved, residual=residual)
            return inverse(right), inverse

        return -solved(slope)

    def body(at: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        step = newton_step(at, _ROUGHLY)
        tried = [at + step / 2**i for i in range(_HALVINGS)]
        best = tf.argmin(tf.stack([loss(x) for x in tried]), output_type=tf.int32)
        going = tf.reduce_max(tf.abs(step)) > _STILL * (1 + tf.reduce_max(tf.abs(at)))
        return tf.gather(tf.stack(tried, 1), best, batch_dims=1), going

    start = tf.stop_gradient(tf.zeros_like(tf.matmul(x, targets, transpose_a=True)))
    end, _ = tf.while_loop(
        lambda _, going: going, body, (start, tf.constant(True)), maximum_iterations=steps
    )
    end = tf.stop_gradient(end)
    return end + newton_step(end, _EXACTLY)


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], right: Tensor, residual: float
) -> Tensor:
    """Return v with `matrix(v) = right`, of each task by itself, `[tasks, rows, columns]`.

    That of `tfmeta.differentiation` takes a given number of steps on one system; here each task has
    its own, and the steps end when all are solved.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return tf.reduce_sum(a * b, [1, 2], keepdims=True)

    enough = residual**2 * dot(right, right) + _NOTHING

    def body(v: Tensor, r: Tensor, p: Tensor, square: Tensor) -> tuple[Tensor, ...]:
        product = matrix(p)
        # A task that is done stands still while others go on.
        step = tf.math.divide_no_nan(square, dot(p, product)) * tf.cast(square > enough, r.dtype)
        v, r = v + step * p, r - step * product
        now = dot(r, r)
        return v, r, r + tf.math.divide_no_nan(now, square) * p, now

    start = (tf.zeros_like(right), right, right, dot(right, right))
    v, *_ = tf.while_loop(
        lambda v, r, p, square: tf.reduce_any(square > enough),
        body,
        start,
        maximum_iterations=_ITERATIONS,
    )
    return v
