"""A Keras model whose weights are normal random numbers, with a draw of its own for each example.

Dense layers draw their outputs (Kingma, Salimans and Welling, *Variational Dropout and the Local
Reparameterization Trick*, NeurIPS 2015), convolutions turn the signs of one draw (Wen, Vicol, Ba,
Tran and Grosse, *Flipout*, ICLR 2018). Scale and offset of normalisation are drawn once for all.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfmeta.foreign.derivatives import changed
from tfmeta.foreign.of_keras import kernel_of, layers_of, own_weights
from tfmeta.types import Params, Tensor

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_DRAWN_ONCE = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)


class Noise:
    """Standard normal numbers: new ones in training, otherwise always the same.

    Args:
        training: Which of the two.
        dtype: Their type.
    """

    def __init__(self, training: bool, dtype: Any) -> None:
        self.training = training
        self.dtype = dtype
        self._count = itertools.count()

    def __call__(self, shape: Any) -> Any:
        """Return numbers of this shape."""
        if self.training:
            return tf.random.normal(shape, dtype=self.dtype)
        return tf.random.stateless_normal(shape, [next(self._count), 0], dtype=self.dtype)

    def signs(self, shape: Any) -> Tensor:
        """Return -1 and 1, as often as each other."""
        return tf.where(self(shape) < 0, -tf.ones([], self.dtype), tf.ones([], self.dtype))


def check_rules(model: keras.Model) -> None:
    """Raise a `ValueError` that names the first layer with weights that cannot be random."""
    known = (keras.layers.Dense, *_CONVOLUTIONS, *_DRAWN_ONCE)
    for layer in _layers(model):
        unusual = type(layer) not in known or getattr(layer, "groups", 1) != 1
        if unusual and type(layer) is not keras.layers.GroupNormalization:
            raise ValueError(
                "`model` must have weights in Dense, Conv1D, Conv2D, Conv3D (without groups), "
                "BatchNormalization, LayerNormalization and GroupNormalization layers only: others "
                f"have no reparameterisation. Received: layer {layer.name!r} "
                f"({type(layer).__name__})"
            )


def drawn_once(model: keras.Model, means: Params, log_stds: Params, noise: Noise) -> Params:
    """Return weights in which those of normalisation layers are drawn, and the others the means."""
    once = {
        id(v)
        for layer in _layers(model)
        if isinstance(layer, _DRAWN_ONCE)
        for v in layer.trainable_variables
    }
    return [
        mean + tf.exp(log_std) * noise(tf.shape(mean)) if id(v) in once else mean
        for v, mean, log_std in zip(model.trainable_variables, means, log_stds, strict=True)
    ]


@contextlib.contextmanager
def random_weights(model: keras.Model, log_stds: Params, noise: Noise) -> Iterator[None]:
    """Have dense and convolutional layers compute with noise on their weights meanwhile.

    Args:
        model: A built model.
        log_stds: Logarithms of standard deviations, in the order of `model.trainable_variables`.
        noise: Where numbers come from.
    """
    by_id = {id(v): x for v, x in zip(model.trainable_variables, log_stds, strict=True)}
    layers = [x for x in _layers(model) if isinstance(x, (keras.layers.Dense, *_CONVOLUTIONS))]
    changes: list[tuple[Any, str, Any]] = []
    for layer in layers:
        deviate = _dense if isinstance(layer, keras.layers.Dense) else _convolution
        deviation = functools.partial(deviate, layer, by_id, noise)
        call = functools.partial(_call, layer.call, deviation, layer.activation)
        changes += [(layer, "call", call), (layer, "activation", keras.activations.linear)]
    with changed(changes):
        yield


def _layers(model: keras.Model) -> list[Any]:
    layers = layers_of(model, include_self=False, recursive=True)
    return [x for x in layers if not isinstance(x, keras.Model) and own_weights(x)]


def _call(
    call: Callable[..., Any], deviation: Tensor, activation: Any, /, x: Tensor, **kwargs: Any
) -> Tensor:
    return activation(call(x, **kwargs) + deviation(x))


def _dense(layer: keras.Layer, log_stds: dict[int, Any], noise: Noise, x: Tensor) -> Tensor:
    """Return how far the outputs are from their means: a sum of normal numbers is one."""
    variance = tf.matmul(x**2, tf.exp(2 * log_stds[id(kernel_of(layer))]))
    if layer.use_bias:
        variance += tf.exp(2 * log_stds[id(layer.bias)])
    return tf.sqrt(variance) * noise(tf.shape(variance))


def _convolution(layer: keras.Layer, log_stds: dict[int, Any], noise: Noise, x: Tensor) -> Tensor:
    if layer.data_format != "channels_last":
        raise ValueError(
            "`model` must have its channels last. Received: layer "
            f"{layer.name!r} with data_format={layer.data_format!r}"
        )
    log_std = log_stds[id(kernel_of(layer))]
    kernel = tf.exp(log_std) * noise(tf.shape(log_std))
    n, space = tf.shape(x)[:1], [1] * layer.rank
    before = noise.signs(tf.concat([n, space, [x.shape[-1]]], 0))
    behind = noise.signs(tf.concat([n, space, [layer.filters]], 0))
    y = behind * layer.convolution_op(x * before, kernel)
    if layer.use_bias:
        y += tf.exp(log_stds[id(layer.bias)]) * noise(tf.shape(behind))
    return y
