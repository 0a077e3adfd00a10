"""Functions of TensorFlow and attributes of layers that are replaced while a learner is traced.

TensorFlow's own are wrong in their second derivative, or have none, and there is no public way to
give an operation another gradient for all that call it. Keras looks the functions up in the modules
of TensorFlow when it calls them, and so it finds these. `tests/test_foreign.py` has Keras call
each.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfmeta.foreign.of_tensorflow import in_xla
from tfmeta.means import mean_along
from tfmeta.types import Tensor

# What the contexts below replace is seen by all threads.
TRACING = threading.RLock()

_ABSENT = object()


@contextlib.contextmanager
def changed(changes: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Give objects other attributes while the context is open, and then those they had."""
    before = [vars(owner).get(name, _ABSENT) for owner, name, _ in changes]
    for owner, name, value in changes:
        # Keras would look at what is assigned to a layer.
        object.__setattr__(owner, name, value)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(changes, before, strict=True):
            if value is _ABSENT:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, value)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Have a module of TensorFlow's another function of this name while the context is open."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def exact_moments() -> Iterator[None]:
    """Give `tf.nn.moments` its second derivative while the context is open.

    TensorFlow stops the gradient at the mean inside the variance. The first derivative is right
    all the same, for the term left out is zero; the second is not, and batch, layer and group
    normalisation of Keras all call it. Outer gradients through them were wrong by some percent.
    """
    with replaced(tf.nn, "moments", _moments):
        yield


def _moments(
    x: Tensor, axes: Any, shift: Any = None, keepdims: bool = False, name: str | None = None
) -> tuple[Tensor, Tensor]:
    del shift, name  # as in TensorFlow, where the shift has no effect any more
    mean = mean_along(x, axes)
    variance = mean_along(tf.math.squared_difference(x, mean), axes)
    return (mean, variance) if keepdims else (tf.squeeze(mean, axes), tf.squeeze(variance, axes))


@contextlib.contextmanager
def exact_resizing() -> Iterator[None]:
    """Give `tf.image.resize` its second derivative while the context is open.

    TensorFlow has none for most methods. For bilinear resizing it says so by a gradient that is
    `None`, so that outer gradients through `UpSampling2D` or `Resizing` were wrong by some percent.
    """
    with replaced(tf.image, "resize", functools.partial(_resize, tf.image.resize)):
        yield


def _resize(original: Any, images: Tensor, size: Any, *args: Any, **kwargs: Any) -> Tensor:
    images = tf.convert_to_tensor(images)
    if not images.dtype.is_floating:
        return original(images, size, *args, **kwargs)

    # Resizing is linear: its derivative is its transpose, and the derivative of that itself.
    def forward(x: Tensor) -> Any:
        return original(x, size, *args, **kwargs), transposed

    def backward(y: Tensor) -> Any:
        anywhere = tf.zeros_like(images)
        with tf.GradientTape() as tape:
            tape.watch(anywhere)
            out = original(anywhere, size, *args, **kwargs)
        return tape.gradient(out, anywhere, y), resized

    resized, transposed = tf.custom_gradient(forward), tf.custom_gradient(backward)
    return resized(images)


@contextlib.contextmanager
def exact_pooling() -> Iterator[None]:
    """Give max pooling an exact second derivative under XLA while the context is open.

    XLA's looks for the largest number of a window in numbers rounded to half of their bits, and so
    finds another where two are close: outer gradients were off by one to two percent. It has none
    in double precision.
    """
    with replaced(tf.nn, "max_pool", functools.partial(_max_pool, tf.nn.max_pool)):
        yield


def _max_pool(
    original: Any,
    x: Tensor,
    size: Any,
    strides: Any,
    padding: Any,
    data_format: str | None = None,
    **kwargs: Any,
) -> Tensor:
    space = x.shape[1:-1]
    channels_last = data_format is None or data_format.endswith("C")
    if not (in_xla() and channels_last and None not in space and padding in ("SAME", "VALID")):
        return original(x, size, strides, padding, data_format, **kwargs)
    sizes, steps = (
        [n] * len(space) if isinstance(n, int) else list(n)[-len(space) :] for n in (size, strides)
    )
    if padding == "SAME":
        needed = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, k, s in zip(space, sizes, steps, strict=True)
        ]
        around = [[0, 0], *([n // 2, n - n // 2] for n in needed), [0, 0]]
        x = tf.pad(x, around, constant_values=x.dtype.min)
    out = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], sizes, steps, strict=True)]

    def at(tap: tuple[int, ...]) -> Tensor:
        """Return of each window the number at one place."""
        cuts = (slice(t, t + (n - 1) * s + 1, s) for t, n, s in zip(tap, out, steps, strict=True))
        return x[(slice(None), *cuts)]

    first, *others = (at(tap) for tap in itertools.product(*map(range, sizes)))
    # Of equal numbers the first, as everywhere.
    return functools.reduce(lambda a, b: tf.where(b > a, b, a), others, first)


class NoDerivative(LookupError):  # noqa: N818
    """An operation lacks a derivative that is asked for; the message is its name."""


@contextlib.contextmanager
def once_differentiable_ctc() -> Iterator[None]:
    """Have CTC refuse a second derivative while the context is open.

    TensorFlow's is NaN in eager mode, and in a graph ends in errors about shapes or functions.
    """
    with replaced(tf.nn, "ctc_loss", functools.partial(_ctc_loss, tf.nn.ctc_loss)):
        yield


def _ctc_loss(original: Any, labels: Tensor, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def loss(logits: Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = original(labels, logits, *args, **kwargs)
        return losses, lambda upstream: final(tape.gradient(losses, logits, upstream), logits)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def final(gradient: Tensor, logits: Tensor) -> Any:
        del logits  # what the gradient depends on

        def refuse(*_: Any) -> Any:
            raise NoDerivative("tf.nn.ctc_loss (keras.losses.CTC)")

        return tf.identity(gradient), refuse

    return loss(tf.convert_to_tensor(logits))


@contextlib.contextmanager
def exact_logsumexp() -> Iterator[None]:
    """Give `tf.math.reduce_logsumexp` of nothing but −∞ derivatives of 0 while the context is open.

    The second would be NaN. `keras.losses.Circle` takes it where a class has a single example.
    """
    with replaced(tf.math, "reduce_logsumexp", _logsumexp):
        yield


def _logsumexp(
    input_tensor: Tensor, axis: Any = None, keepdims: bool = False, name: str | None = None
) -> Tensor:
    del name
    x = tf.convert_to_tensor(input_tensor)
    most = tf.reduce_max(x, axis, keepdims=True)
    most = tf.stop_gradient(tf.where(tf.math.is_finite(most), most, tf.zeros_like(most)))
    total = tf.reduce_sum(tf.exp(x - most), axis, keepdims=True)
    some = total > 0
    result = tf.math.log(tf.where(some, total, tf.ones_like(total))) + most
    result = tf.where(some, result, tf.fill(tf.shape(result), tf.constant(-math.inf, x.dtype)))
    if keepdims:
        return result
    return tf.reshape(result, []) if axis is None else tf.squeeze(result, axis)


@contextlib.contextmanager
def exact_derivatives() -> Iterator[None]:
    """Make second derivatives exact, or have them refused, while the context is open."""
    with (
        exact_moments(),
        exact_resizing(),
        exact_pooling(),
        exact_logsumexp(),
        once_differentiable_ctc(),
    ):
        yield
