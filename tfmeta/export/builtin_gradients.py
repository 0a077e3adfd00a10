"""Gradients made of operations that LiteRT has built in.

LiteRT computes convolutions, pooling and activations, but not TensorFlow's operations for their
gradients. What an inner loop needs of these is written here with comparisons, slices and matrix
products. The transpose of a convolution is built in.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfmeta.foreign.derivatives import TRACING
from tfmeta.foreign.of_tensorflow import gradient_of, looking_up_gradients


@contextlib.contextmanager
def builtin_gradients() -> Iterator[None]:
    """Have tapes take these gradients instead of TensorFlow's while the context is open."""
    with TRACING, looking_up_gradients(lambda name: RULES.get(name) or gradient_of(name)):
        yield


class _Windows(NamedTuple):
    """Where the windows of a convolution, or of pooling, lie in an image `[n, *space, c]`."""

    space: Sequence[int]
    size: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    before: Sequence[int]
    after: Sequence[int]
    out: Sequence[int]

    def taps(self, x: Any, fill: float = 0.0) -> dict[tuple[int, ...], Any]:
        """Return by its place in the window what each pixel of a window is, `[n, *out, c]`."""
        around = [[0, 0], *zip(self.before, self.after, strict=True), [0, 0]]
        x = tf.pad(x, around, constant_values=fill)
        places = itertools.product(*map(range, self.size))
        return {place: x[(slice(None), *self._cuts(place))] for place in places}

    def scattered(self, taps: dict[tuple[int, ...], Any]) -> Any:
        """Return `[n, *space, c]`, the transpose of `taps`; for windows without dilation."""
        nothing = tf.zeros_like(taps[0, 0])
        (down, right), padded = self.strides, self._padded()
        total: Any = 0.0
        # Windows of one stride lie side by side: their pixels are an image, a row of each in turn.
        for top, left in itertools.product(*map(range, (0, 0), self.size, self.strides)):
            rows = [
                _in_turn([taps.get((top + i, left + j), nothing) for j in range(right)], axis=2)
                for i in range(down)
            ]
            image = _in_turn(rows, axis=1)[:, : padded[0] - top, : padded[1] - left]
            below, beside = padded[0] - top - image.shape[1], padded[1] - left - image.shape[2]
            total += tf.pad(image, [[0, 0], [top, below], [left, beside], [0, 0]])
        cuts = (slice(b, b + n) for b, n in zip(self.before, self.space, strict=True))
        return total[(slice(None), *cuts)]

    def _cuts(self, place: tuple[int, ...]) -> Iterator[slice]:
        for i, dilation, n, stride in zip(
            place, self.dilations, self.out, self.strides, strict=True
        ):
            yield slice(i * dilation, i * dilation + (n - 1) * stride + 1, stride)

    def _padded(self) -> list[int]:
        return [b + n + a for b, n, a in zip(self.before, self.space, self.after, strict=True)]


def _windows(op: Any, dy: Any, size: Sequence[int]) -> _Windows | None:
    """Return where an operation's windows lie; `None` where these gradients do not know."""
    space, padding = op.inputs[0].shape[1:3], op.get_attr("padding")
    strides = op.get_attr("strides")[1:3]
    dilations = (1, 1) if "Pool" in op.type else op.get_attr("dilations")[1:3]
    if None in space or op.get_attr("data_format") != b"NHWC" or padding == b"EXPLICIT":
        return None
    before, after = [], []
    # Not of the operation's output, which the tape of a convolution has not kept.
    out = dy.shape[1:3]
    for n, k, stride, dilation, o in zip(space, size, strides, dilations, out, strict=True):
        # What lies after the last window is cut off by `taps`.
        missing = max((o - 1) * stride + (k - 1) * dilation + 1 - n, 0)
        before.append(missing // 2)
        after.append(missing - missing // 2)
    return _Windows(list(space), list(size), strides, dilations, before, after, list(out))


def _in_turn(parts: Sequence[Any], axis: int) -> Any:
    """Return one tensor with the slices of `parts` along `axis`, one of each in turn."""
    shape = parts[0].shape.as_list()
    shape[axis] *= len(parts)
    return tf.reshape(tf.stack(parts, axis + 1), [-1, *shape[1:]])


def _convolution(op: Any, dy: Any) -> Any:
    x, kernel = op.inputs
    *size, depth, filters = kernel.shape
    windows = _windows(op, dy, size)
    to_x, to_kernel = gradient_of("Conv2D")(op, dy)
    # The gradient to `x` is a transposed convolution, which is built in.
    if windows is None or x.shape[-1] != depth:
        return to_x, to_kernel
    patches = [tf.reshape(tap, [-1, depth]) for tap in windows.taps(x).values()]
    by_filter = tf.reshape(dy, [-1, filters])
    to_kernel = tf.matmul(tf.concat(patches, 1), by_filter, transpose_a=True)
    return to_x, tf.reshape(to_kernel, kernel.shape)


def _depthwise_convolution(op: Any, dy: Any) -> Any:
    x, kernel = op.inputs
    *size, depth, multiplier = kernel.shape
    windows = _windows(op, dy, size)
    if windows is None or max(windows.dilations) > 1:
        return gradient_of("DepthwiseConv2dNative")(op, dy)
    dy = tf.reshape(dy, [-1, *windows.out, depth, multiplier])
    taps = windows.taps(x)
    to_x = windows.scattered({place: tf.reduce_sum(dy * kernel[place], -1) for place in taps})
    to_kernel = [tf.reduce_sum(tap[..., None] * dy, [0, 1, 2]) for tap in taps.values()]
    return to_x, tf.reshape(tf.stack(to_kernel), kernel.shape)


def _max_pool(op: Any, dy: Any) -> Any:
    (x,), (y,) = op.inputs, op.outputs
    windows = _windows(op, dy, op.get_attr("ksize")[1:3])
    if windows is None:
        return gradient_of("MaxPool")(op, dy)
    put = {}
    for place, tap in windows.taps(x, x.dtype.min).items():
        # Of equal numbers the first has it all.
        put[place] = tf.where(tap == y, dy, 0.0)
        dy = tf.where(tap != y, dy, 0.0)
    return windows.scattered(put)


def _average_pool(op: Any, dy: Any) -> Any:
    (x,) = op.inputs
    windows = _windows(op, dy, op.get_attr("ksize")[1:3])
    if windows is None:
        return gradient_of("AvgPool")(op, dy)
    # Padding does not count.
    taps = windows.taps(tf.ones_like(x))
    share = dy / tf.add_n(list(taps.values()))
    return windows.scattered(dict.fromkeys(taps, share))


def _relu(op: Any, dy: Any) -> Any:
    return tf.where(op.outputs[0] > 0, dy, 0.0)


def _relu6(op: Any, dy: Any) -> Any:
    (y,) = op.outputs
    return tf.where((y > 0) & (y < 6), dy, 0.0)


def _leaky_relu(op: Any, dy: Any) -> Any:
    return tf.where(op.inputs[0] > 0, dy, op.get_attr("alpha") * dy)


def _elu(op: Any, dy: Any) -> Any:
    (y,) = op.outputs
    return tf.where(y < 0, (y + 1) * dy, dy)


RULES: dict[str, Callable[[Any, Any], Any]] = {
    "AvgPool": _average_pool,
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise_convolution,
    "Elu": _elu,
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "Relu": _relu,
    "Relu6": _relu6,
}
