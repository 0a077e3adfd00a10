"""Convolutions of several tasks, each a group of channels with filters of its own."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tfmeta import kernels


def convolution(x: Any, kernel: Any, strides: Any, padding: str, dilations: Any) -> Any:
    """Convolve groups of channels, as many as `channels / kernel.shape[2]`.

    Args:
        x: `[n, height, width, channels]`.
        kernel: `[*size, channels of a group, filters of all groups]`.
        strides: For height and width.
        padding: `"SAME"` or `"VALID"`.
        dilations: For height and width.
    """
    groups = x.shape[-1] // kernel.shape[2]
    if _pays(x, kernel, groups, strides, dilations):
        return kernels.convolution(x, kernel, strides, padding)
    if groups == 1 or has_grouped_gradients(x.dtype):
        # Not Keras's convolution, which compiles one with groups by XLA on a CPU, the slow way.
        return tf.nn.conv2d(x, kernel, strides, padding, dilations=dilations)
    # Without the format, second derivatives fail in eager mode.
    how = {"strides": strides, "padding": padding, "data_format": "NHWC", "dilations": dilations}
    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return tf.concat([tf.nn.convolution(a, k, **how) for a, k in parts], -1)


def _pays(x: Any, kernel: Any, groups: int, strides: Any, dilations: Any) -> bool:
    """Return whether a kernel of our own is faster, as it is where oneDNN is slow.

    With a stride oneDNN takes half as long again; but it is the better one without, for an image's
    few channels, and for filters that do not fill registers.
    """
    wide = kernel.shape[2] >= 16 and kernel.shape[3] // groups % 16 == 0
    plain = None not in x.shape[1:] and tuple(dilations) == (1, 1)
    return max(strides) > 1 and wide and plain and kernels.usable(x, kernel)


def depthwise_convolution(x: Any, kernel: Any, strides: Any, padding: str, dilations: Any) -> Any:
    """Convolve each channel by itself; `kernel` is `[*size, channels, multiplier]`."""
    strides = (1, *strides, 1)
    return tf.nn.depthwise_conv2d(x, kernel, strides, padding, dilations=dilations)


@functools.cache
def has_grouped_gradients(dtype: Any) -> bool:
    """Return whether TensorFlow can differentiate a convolution with groups on this device.

    On a CPU oneDNN can, in single precision and less; TensorFlow's own kernels cannot.
    """
    with tf.init_scope():
        # A tape does not record here.
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=[1, 3, 3, 4],
                filter=tf.ones([2, 2, 2, 4], dtype),
                out_backprop=tf.ones([1, 2, 2, 4], dtype),
                strides=[1, 1, 1, 1],
                padding="VALID",
            )
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True
