"""Convolutions of several tasks, each a group of channels with filters of its own."""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from tfmeta import kernels
from tfmeta.packed.layout import sizes
from tfmeta.types import Tensor


def convolution(
    x: Tensor, kernel: Tensor, strides: Any, padding: str, dilations: Any, bias: Tensor = None
) -> Tensor:
    """Convolve groups of channels, as many as `channels / kernel.shape[2]`.

    Args:
        x: `[n, height, width, channels]`.
        kernel: `[*size, channels of a group, filters of all groups]`.
        strides: For height and width.
        padding: `"SAME"` or `"VALID"`.
        dilations: For height and width.
        bias: `[filters of all groups]`, or `None`.
    """
    groups = x.shape[-1] // kernel.shape[2]
    # Without the format, second derivatives fail in eager mode.
    how = {"strides": strides, "padding": padding, "data_format": "NHWC", "dilations": dilations}
    if _pays(x, kernel, groups, dilations):
        products = kernels.convolution_products(x.shape, kernel.shape, strides, padding)
    elif (groups == 1 and tuple(dilations) == (1, 1)) or has_all_gradients(x.dtype):
        # Not Keras's convolution, which compiles one with groups by XLA on a CPU, the slow way.
        products = _tensorflow_products(x, kernel, how)
    else:
        parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
        y = tf.concat([tf.nn.convolution(a, k, **how) for a, k in parts], -1)
        return y if bias is None else tf.nn.bias_add(y, bias)
    return products.forward(x, kernel) if bias is None else _biased(products, x, kernel, bias)


def product(x: Tensor, kernel: Tensor) -> Tensor:
    """Return `[tasks, n, outputs]`, the product of `[tasks, n, d]` and `[tasks, d, outputs]`.

    oneDNN's has all threads share in it, also where each is busy with other tasks, and waits for
    them.
    """
    ours = kernels.usable(x, kernel) and kernels.instructions() != "portable"
    return kernels.product(x, kernel) if ours else tf.matmul(x, kernel)


def _tensorflow_products(x: Tensor, kernel: Tensor, how: dict[str, Any]) -> kernels.Products:
    how = {**how, "strides": [1, *how["strides"], 1], "dilations": [1, *how["dilations"], 1]}
    ops, size = tf.raw_ops, sizes(x)
    return kernels.Products(
        lambda x, kernel: ops.Conv2D(input=x, filter=kernel, **how),
        lambda y, kernel: ops.Conv2DBackpropInput(
            input_sizes=size, filter=kernel, out_backprop=y, **how
        ),
        lambda x, y: ops.Conv2DBackpropFilter(
            input=x, filter_sizes=kernel.shape, out_backprop=y, **how
        ),
    )


def _biased(products: kernels.Products, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolve and add a bias, whose second derivative takes no pass of its own.

    With adjoints v and p of the gradients to kernel and bias, that of the gradient to y is
    `x * v + p`, a biased convolution again. TensorFlow would write p into an array as large as y
    before it adds the two.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def forward(x: Tensor, kernel: Tensor, bias: Tensor) -> Any:
        y = tf.nn.bias_add(products.forward(x, kernel), bias)
        return y, lambda dy: (products.to_input(dy, kernel), *to_weights(x, dy))

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def to_weights(x: Tensor, dy: Tensor) -> Any:
        first = products.to_kernel(x, dy), tf.raw_ops.BiasAddGrad(out_backprop=dy)
        return first, lambda v, p: (products.to_input(dy, v), forward(x, v, p))

    return forward(x, kernel, bias)


def _pays(x: Tensor, kernel: Tensor, groups: int, dilations: Any) -> bool:
    """Return whether kernels of our own are faster than oneDNN's.

    They are where channels and filters fill registers: with a stride by a third, without one by a
    tenth of a whole meta-step. So they are for the one to five channels that they copy, those of an
    image, but for the gradient to the image, which few networks need. Without AVX they take two to
    three times as long as oneDNN's.
    """
    channels, filters = kernel.shape[2], kernel.shape[3] // groups
    wide = (channels % 16 == 0 or channels < 6) and filters % 16 == 0
    plain = None not in x.shape[1:] and tuple(dilations) == (1, 1)
    fits = wide and plain and kernels.usable(x, kernel)
    return fits and kernels.instructions() != "portable"


def depthwise_convolution(
    x: Tensor, kernel: Tensor, strides: Any, padding: str, dilations: Any
) -> Tensor:
    """Convolve each channel by itself; `kernel` is `[*size, channels, multiplier]`."""
    strides = (1, *strides, 1)
    return tf.nn.depthwise_conv2d(x, kernel, strides, padding, dilations=dilations)


@functools.cache
def has_all_gradients(dtype: Any) -> bool:
    """Return whether TensorFlow can differentiate any convolution on this device.

    On a CPU oneDNN can, in single precision and less; TensorFlow's own kernels know neither groups
    nor dilations. `tf.nn.convolution` makes do without the latter.
    """
    with tf.init_scope():
        # A tape does not record here.
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=[1, 3, 3, 4],
                filter=tf.ones([2, 2, 2, 4], dtype),
                out_backprop=tf.ones([1, 1, 1, 4], dtype),
                strides=[1, 1, 1, 1],
                padding="VALID",
                dilations=[1, 2, 2, 1],
            )
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            return False
    return True
