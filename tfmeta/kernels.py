"""The C++ kernels that are TensorFlow operations, where they can be used.

They run on a CPU, most of them in single precision only. XLA cannot compile them, and on a GPU
TensorFlow's own are faster than a way to the CPU and back: there, and where the extension cannot be
loaded, callers take TensorFlow's operations.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tfmeta.foreign.of_tensorflow import in_xla
from tfmeta.types import Nest, Tensor


class _Window(NamedTuple):
    """What the kernels of convolutions are told, in this order."""

    kernel_height: int
    kernel_width: int
    stride_height: int
    stride_width: int
    top: int
    left: int
    height: int
    width: int
    out_height: int
    out_width: int
    groups: int


_avoided = contextvars.ContextVar("avoided", default=False)
_most_threads: contextvars.ContextVar[int | None] = contextvars.ContextVar("most", default=None)


def usable(*tensors: Any, types: Sequence[Any] = (tf.float32,)) -> bool:
    """Return whether the kernels can take these tensors, where the caller is being traced."""
    return (
        all(x.dtype in types for x in tensors)
        and not _avoided.get()
        and library() is not None
        and not in_xla()
        and not gpus()
    )


@contextlib.contextmanager
def avoided() -> Iterator[None]:
    """Have all that is traced meanwhile made of TensorFlow's own operations, for other programs."""
    token = _avoided.set(True)
    try:
        yield
    finally:
        _avoided.reset(token)


@contextlib.contextmanager
def limited_threads(most: int | None) -> Iterator[None]:
    """Have each kernel that is traced meanwhile run on so many threads, or on its usual number."""
    token = _most_threads.set(most)
    try:
        yield
    finally:
        _most_threads.reset(token)


def batch_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `(y, mean, variance)`; see `tfmeta.packed.normalization`."""
    y, mean, variance = library().tfmeta_batch_norm(
        x=x, gamma=gamma, beta=beta, epsilon=epsilon, threads=threads()
    )
    return y, mean, variance


def batch_norm_first(
    dy: Tensor, x: Tensor, gamma: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients to `x`, γ and β; see `tfmeta.packed.normalization`."""
    to_x, to_gamma, to_beta = library().tfmeta_batch_norm_first(
        dy=dy, x=x, gamma=gamma, mean=mean, variance=variance, epsilon=epsilon, threads=threads()
    )
    return to_x, to_gamma, to_beta


def batch_norm_second(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor,
    mean: Tensor,
    variance: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the adjoints of `dy`, `x` and `gamma`; see `tfmeta.packed.normalization`."""
    first = {"dy": dy, "x": x, "gamma": gamma, "mean": mean, "variance": variance}
    to_dy, to_x, to_gamma = library().tfmeta_batch_norm_second(
        **first, a=a, p=p, q=q, epsilon=epsilon, threads=threads()
    )
    return to_dy, to_x, to_gamma


def max_pool(x: Tensor, size: Any, strides: Any, padding: str) -> Tensor:
    """Return the largest of each window.

    Args:
        x: `[n, height, width, channels]`, the last three known.
        size: `(height, width)` of a window.
        strides: For height and width.
        padding: `"SAME"` or `"VALID"`.
    """
    fixed = tf.stop_gradient(x)
    out, before = _window(x.shape[1:3], size, strides, padding)
    how = {"x": fixed, "window": [*size, *strides, *before, *out], "threads": threads()}

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def put(values: Tensor) -> Tensor:
        """Return each of `values` where the largest of its window is: the adjoint of `take`."""
        placed = library().tfmeta_max_pool_put(values=values, **how)
        placed.set_shape(x.shape)
        return placed, take

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def take(values: Tensor) -> Tensor:
        """Return what of `values` is where the largest of each window is."""
        taken = library().tfmeta_max_pool_take(values=values, **how)
        taken.set_shape([x.shape[0], *out, x.shape[-1]])
        return taken, put

    # Of the images themselves it is max pooling.
    return take(x)


class Products(NamedTuple):
    """A convolution y = x * kernel and its adjoints, each linear in both of its arguments.

    Attributes:
        forward: `(x, kernel)` → y.
        to_input: `(y, kernel)` → x.
        to_kernel: `(x, y)` → kernel.
    """

    forward: Callable[[Any, Any], Any]
    to_input: Callable[[Any, Any], Any]
    to_kernel: Callable[[Any, Any], Any]


def convolution_products(x: Tensor, kernel: Tensor, strides: Any, padding: str) -> Products:
    """Return the products that convolve groups of channels, as many as `channels / kernel[2]`.

    Args:
        x: The shape `[n, height, width, channels]`, the last three known.
        kernel: The shape `[*size, channels of a group, filters of all groups]`.
        strides: For height and width.
        padding: `"SAME"` or `"VALID"`.
    """
    size, space = kernel[:2], x[1:3]
    out, before = _window(space, size, strides, padding)
    window = _Window(*[*size, *strides, *before, *space, *out, x[-1] // kernel[2]])
    return Products(
        *(
            functools.partial(product, window=window)
            for product in (_convolution, _convolution_to_input, _convolution_to_kernel)
        )
    )


def _convolution(x: Tensor, kernel: Tensor, window: _Window) -> Tensor:
    y = library().tfmeta_convolution(x=x, kernel=kernel, window=window, threads=threads())
    y.set_shape([x.shape[0], window.out_height, window.out_width, kernel.shape[-1]])
    return y


def _convolution_to_input(y: Tensor, kernel: Tensor, window: _Window) -> Tensor:
    x = library().tfmeta_convolution_to_input(y=y, kernel=kernel, window=window, threads=threads())
    x.set_shape([y.shape[0], window.height, window.width, window.groups * kernel.shape[2]])
    return x


def _convolution_to_kernel(x: Tensor, y: Tensor, window: _Window) -> Tensor:
    kernel = library().tfmeta_convolution_to_kernel(x=x, y=y, window=window, threads=threads())
    size = [window.kernel_height, window.kernel_width]
    kernel.set_shape([*size, x.shape[-1] // window.groups, y.shape[-1]])
    return kernel


def product(x: Tensor, kernel: Tensor) -> Tensor:
    """Return `[tasks, n, outputs]`, the product of `[tasks, n, d]` and `[tasks, d, outputs]`."""
    y = library().tfmeta_product(x=x, kernel=kernel, threads=threads())
    y.set_shape([*x.shape[:2], kernel.shape[2]])
    return y


def _product_to_input(y: Tensor, kernel: Tensor) -> Tensor:
    x = library().tfmeta_product_to_input(y=y, kernel=kernel, threads=threads())
    x.set_shape([*y.shape[:2], kernel.shape[1]])
    return x


def _product_to_kernel(x: Tensor, y: Tensor) -> Tensor:
    kernel = library().tfmeta_product_to_kernel(x=x, y=y, threads=threads())
    kernel.set_shape([x.shape[0], x.shape[2], y.shape[2]])
    return kernel


# All three, of products and of convolutions, are linear in each factor: each other's derivatives.


@tf.RegisterGradient("TfmetaProduct")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, dy: Tensor) -> Nest:
    x, kernel = op.inputs
    return _product_to_input(dy, kernel), _product_to_kernel(x, dy)


@tf.RegisterGradient("TfmetaProductToInput")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, dx: Tensor) -> Nest:
    y, kernel = op.inputs
    return product(dx, kernel), _product_to_kernel(dx, y)


@tf.RegisterGradient("TfmetaProductToKernel")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, dkernel: Tensor) -> Nest:
    x, y = op.inputs
    return _product_to_input(y, dkernel), product(x, dkernel)


@tf.RegisterGradient("TfmetaConvolution")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, dy: Tensor) -> Nest:
    (x, kernel), window = op.inputs, _Window(*op.get_attr("window"))
    return _convolution_to_input(dy, kernel, window), _convolution_to_kernel(x, dy, window)


@tf.RegisterGradient("TfmetaConvolutionToInput")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, dx: Tensor) -> Nest:
    (y, kernel), window = op.inputs, _Window(*op.get_attr("window"))
    return _convolution(dx, kernel, window), _convolution_to_kernel(dx, y, window)


@tf.RegisterGradient("TfmetaConvolutionToKernel")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, dkernel: Tensor) -> Nest:
    (x, y), window = op.inputs, _Window(*op.get_attr("window"))
    return _convolution_to_input(y, dkernel, window), _convolution(x, dkernel, window)


def threads() -> int:
    """Return on how many threads an operation runs; 0 for as many as there are cores."""
    usual, most = _threads_of_process(), _most_threads.get()
    return usual if most is None else min(usual or most, most)


@functools.cache
def _threads_of_process() -> int:
    # TensorFlow begins with this: from then on the number stays as it is, and to ask takes longer
    # than a kernel.
    tf.config.list_logical_devices()
    return int(tf.config.threading.get_intra_op_parallelism_threads())


def _window(space: Any, size: Any, strides: Any, padding: str) -> tuple[list[int], list[int]]:
    """Return the size of what comes out, and how many zeros lie before what goes in."""
    axes = list(zip(space, size, strides, strict=True))
    if padding == "VALID":
        return [(n - k) // s + 1 for n, k, s in axes], [0, 0]
    out = [-(-n // s) for n, _, s in axes]
    return out, [max((o - 1) * s + k - n, 0) // 2 for o, (n, k, s) in zip(out, axes, strict=True)]


@functools.cache
def gpus() -> Any:
    """Return the GPUs that there are."""
    return tf.config.list_physical_devices("GPU")


@functools.cache
def instructions() -> str:
    """Return what the kernels of convolutions are made of: avx512, avx2 or portable instructions.

    It depends on the processor, and on the compiler that built the extension.
    """
    made = ctypes.CDLL(library().tfmeta_file).tfmeta_instructions
    made.restype = ctypes.c_char_p
    return str(made().decode())


@functools.cache
def library() -> Any:
    """Return the extension's operations, or None where they cannot be loaded."""
    files = sorted(Path(__file__).parent.glob("_tf_ops*.so"))
    reasons = []
    for file in files:
        try:
            loaded = tf.load_op_library(str(file))
            loaded.tfmeta_file = str(file)
            return loaded
        except tf.errors.OpError as error:
            # Of another platform, of another C library than this one's, for another TensorFlow.
            reasons.append(error.message)
    logging.getLogger("tfmeta").warning(
        "The C++ kernels are not used, and TensorFlow's own operations instead, which give the "
        "same and take longer: %s",
        "; ".join(reasons) or f"there is no _tf_ops*.so in '{Path(__file__).parent}'",
    )
    return None
