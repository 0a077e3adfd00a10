"""Batch normalisation whose first and second derivative cost few passes over the activations.

Ioffe and Szegedy, *Batch Normalization: Accelerating Deep Network Training*, ICML 2015.

Left to automatic differentiation, the second derivative has thirty passes and, through
`tf.nn.moments`, is wrong. Here each derivative is written down. With `N` examples a channel, `x̂`
the normalised activations, `s = 1/sqrt(var + ε)`, `P(z) = z − mean(z) − x̂·mean(z·x̂)`:

    y = γx̂ + β        dx = γs·P(dy)        dγ = Σ dy·x̂        dβ = Σ dy

and for the adjoints a, p, q of dx, dγ, dβ, with `S = Σ a·P(dy)`, `A = Σ a·x̂`, `B = Σ dy·x̂`:

    to dy: γs·P(a) + p·x̂ + q        to γ: s·S
    to x:  −γs²/N · (S·x̂ + B·P(a) + A·P(dy)) + p·s·P(dy)
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfmeta import kernels
from tfmeta.packed.layout import reshaped, sizes
from tfmeta.types import Tensor


def batch_normalization(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel by its own statistics.

    Args:
        x: `[n, ..., channels]`.
        gamma: Scale `[channels]`.
        beta: Offset `[channels]`.
        epsilon: ε.

    Returns:
        `(y, mean, variance)`; mean and variance, `[channels]`, without a gradient.
    """
    ours = kernels.usable(x)
    # TensorFlow's fused operation has no double precision, and on a CPU it adds row by row.
    fused = not ours and x.dtype == tf.float32 and kernels.gpus()

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def forward(x: Tensor, gamma: Tensor, beta: Tensor) -> Any:
        if ours:
            y, mean, variance = kernels.batch_norm(_rows(x), gamma, beta, epsilon)
            y = reshaped(y, sizes(x))
        elif fused:
            y, mean, variance, saved = _fused(x, gamma, beta, epsilon)
        else:
            mean, variance = moments(x)
            y = (x - mean) * (tf.math.rsqrt(variance + epsilon) * gamma) + beta

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def backward(dy: Tensor, x: Tensor, gamma: Tensor) -> Any:
            if ours:
                known = _rows(dy), _rows(x), gamma, mean, variance
                to_x, *narrow = kernels.batch_norm_first(*known, epsilon)

                def second(a: Tensor, p: Tensor, q: Tensor) -> Any:
                    *wide, to_gamma = kernels.batch_norm_second(*known, _rows(a), p, q, epsilon)
                    return *(reshaped(z, sizes(x)) for z in wide), to_gamma

                return (reshaped(to_x, sizes(x)), *narrow), second
            if fused:
                first = _fused_gradient(dy, x, gamma, saved, epsilon)
            else:
                first = _first(dy, x, gamma, epsilon)
            return first, lambda a, p, q: _second(dy, x, gamma, a, p, q, epsilon)

        return (y, mean, variance), lambda dy, *_: backward(dy, x, gamma)

    y, mean, variance = forward(x, gamma, beta)
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance)


def total(x: Tensor) -> Tensor:
    """Return the sums over all axes but the last one, one axis after another.

    Where a channel has one value at most places, as of a flat background, a sum of thousands would
    be off by much: it is rounded the same way each time. By matrix products: far quicker on a CPU
    than `tf.reduce_sum`.
    """
    for size in sizes(x)[:-1]:
        rest = x.shape[1:]
        across = reshaped(x, [size, math.prod(rest)])
        x = tf.reshape(tf.matmul(tf.ones([1, size], x.dtype), across), rest)
    return x


def average(x: Tensor) -> Tensor:
    """Return the means over all axes but the last one."""
    return total(x) / _number(x)


def _number(x: Tensor) -> Any:
    """Return how many numbers a channel has, to calculate with."""
    n = math.prod(sizes(x)[:-1])
    return tf.cast(n, x.dtype) if tf.is_tensor(n) else float(n)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means and variances over all axes but the last one."""
    mean = average(x)
    return mean, average(tf.math.squared_difference(x, mean))


def _rows(x: Tensor) -> Any:
    return reshaped(x, [None, x.shape[-1]])


def _normal(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    mean, variance = moments(x)
    scale = tf.math.rsqrt(variance + epsilon)
    return scale, (x - mean) * scale


def _first(dy: Tensor, x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    scale, normal = _normal(x, epsilon)
    dy_normal = dy * normal
    dx = gamma * scale * (dy - average(dy) - normal * average(dy_normal))
    return dx, total(dy_normal), total(dy)


def _second(
    dy: Tensor, x: Tensor, gamma: Tensor, a: Tensor, p: Tensor, q: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    n = _number(x)
    scale, normal = _normal(x, epsilon)
    dy_normal, a_normal = total(dy * normal), total(a * normal)
    dy_mean, a_mean = average(dy), average(a)
    s = total(a * dy) - n * a_mean * dy_mean - a_normal * dy_normal / n
    # The projections are not formed: their parts join the other terms.
    to_dy = (gamma * scale) * a + (p - gamma * scale * a_normal / n) * normal
    to_dy += q - gamma * scale * a_mean
    c = -gamma * scale**2 / n
    for_a, for_dy = c * dy_normal, c * a_normal + p * scale
    for_normal = c * s - (for_a * a_normal + for_dy * dy_normal) / n
    to_x = for_a * a + for_dy * dy + for_normal * normal - (for_a * a_mean + for_dy * dy_mean)
    return to_dy, to_x, scale * s


def _fused(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Any:
    y, mean, variance, *saved = tf.raw_ops.FusedBatchNormV3(
        x=_image(x),
        scale=gamma,
        offset=beta,
        mean=[],
        variance=[],
        epsilon=epsilon,
        is_training=True,
    )
    # TensorFlow's is an estimate, over n − 1.
    n = _number(x)
    variance *= (n - 1) / n
    return reshaped(y, sizes(x)), mean, variance, saved


def _fused_gradient(
    dy: Tensor, x: Tensor, gamma: Tensor, saved: list[Tensor], epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dgamma, dbeta, _, _ = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=_image(dy),
        x=_image(x),
        scale=gamma,
        reserve_space_1=saved[0],
        reserve_space_2=saved[1],
        reserve_space_3=saved[2],
        epsilon=epsilon,
        is_training=True,
    )
    return reshaped(dx, sizes(x)), dgamma, dbeta


def _image(x: Tensor) -> Tensor:
    return _rows(x)[None, None]
