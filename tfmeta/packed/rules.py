"""What each Keras layer does to tensors of several tasks: one rule for each type.

A rule is a function `(layer, inputs, trace) -> outputs` on the layouts of `tfmeta.packed.layout`,
and the constructor arguments of the layer that the function heeds. An instance with any other off
its default has no rule, and so one with an argument that Keras has yet to invent. For values of an
argument that it does not know the function raises `NoRule`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tfmeta import kernels
from tfmeta.drop_block import DropBlock, rescaled
from tfmeta.foreign.of_keras import merge_function_of
from tfmeta.functional import Statistics
from tfmeta.layers import (
    BatchAtHandNormalization,
    Context,
    PerStepBatchNormalization,
)
from tfmeta.means import mean_along
from tfmeta.packed.convolution import convolution, depthwise_convolution, product
from tfmeta.packed.layout import merge, pack, part, reshaped, sizes, unpack
from tfmeta.packed.normalization import batch_normalization, moments
from tfmeta.types import Tensor


class NoRule(Exception):  # noqa: N818
    """A layer cannot be computed for several tasks at once; the message says which and why."""


class Trace:
    """The weights of one call, and how it is made.

    Args:
        values: The packed tensor of each floating-point variable, by the variable's id.
        tasks: How many.
        training: The Keras flag.
        statistics: See `tfmeta.functional.batch_norm_uses`.
        step: The inner step.
        made: The sizes of the outputs of all layers so far.
    """

    def __init__(
        self,
        values: Mapping[int, Any],
        tasks: int,
        *,
        training: bool,
        statistics: Statistics,
        step: Any,
        made: list[int],
    ) -> None:
        self.values = dict(values)
        self.tasks = tasks
        self.training = training
        self.statistics = statistics
        self.step = step
        self.made = made

    def weight(self, variable: keras.Variable, dtype: Any) -> Tensor:
        """Return a weight, in the precision that its layer computes in."""
        _refuse_integers(tf.as_dtype(dtype))
        return tf.cast(self.values[id(variable)], dtype)


class Rule(NamedTuple):
    """What a layer does to several tasks.

    Attributes:
        apply: `(layer, inputs, trace) -> outputs`.
        arguments: The constructor arguments that it implements, separated by spaces. Those that
            all rules do are in `EVERYWHERE`.
    """

    apply: Callable[[Any, Any, Trace], Any]
    arguments: str = ""


# A name changes nothing; the others are seen to where rules are applied and weights are read.
EVERYWHERE = frozenset({"name", "trainable", "dtype", "autocast"})


def _refuse_integers(dtype: Any) -> None:
    # What comes of them and weights, Keras decides otherwise for each layer.
    if not dtype.is_floating:
        raise NoRule(f"inputs of dtype {dtype.name}")


def _dense(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    kernel = trace.weight(layer.kernel, x.dtype)
    if len(x.shape) == 3:
        y = product(x, kernel)
    else:
        tasks_first = unpack(x)
        before = sizes(tasks_first)
        y = product(reshaped(tasks_first, [before[0], None, before[-1]]), kernel)
        y = pack(reshaped(y, [*before[:-1], kernel.shape[-1]]))
    if layer.use_bias:
        y += _by_channel(layer.bias, y, trace)
    return layer_activation(layer)(y)


def _conv(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    kernel = merge(trace.weight(layer.kernel, x.dtype))
    convolve = functools.partial(convolution, bias=_bias(layer, x, trace))
    return _activated(layer, _convolved(layer, merge(x), kernel, convolve), trace)


def _depthwise(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    kernel = _by_channel_of_all(trace.weight(layer.kernel, x.dtype))
    y = _depthwise_convolved(layer, x, kernel)
    if layer.use_bias:
        # The gradient of a plain sum would be a slow reduction.
        y = tf.nn.bias_add(y, _bias(layer, x, trace))
    return _activated(layer, y, trace)


def _separable(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    depthwise = _by_channel_of_all(trace.weight(layer.depthwise_kernel, x.dtype))
    pointwise = merge(trace.weight(layer.pointwise_kernel, x.dtype))
    y = _depthwise_convolved(layer, x, depthwise)
    bias = _bias(layer, x, trace)
    if layer.rank == 1:
        y = convolution(y[:, None], pointwise[None], (1, 1), "VALID", (1, 1), bias)[:, 0]
    else:
        y = convolution(y, pointwise, (1, 1), "VALID", (1, 1), bias)
    return _activated(layer, y, trace)


def _depthwise_convolved(layer: keras.Layer, x: Tensor, kernel: Tensor) -> Tensor:
    if max(layer.strides) > 1 and max(layer.dilation_rate) > 1:
        # TensorFlow has no such operation. Keras makes do without.
        raise NoRule(f"strides={layer.strides} and dilation_rate={layer.dilation_rate}")
    return _convolved(layer, merge(x), kernel, depthwise_convolution)


def _bias(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    """Return the bias of all tasks' channels, or `None`."""
    return tf.reshape(trace.weight(layer.bias, x.dtype), [-1]) if layer.use_bias else None


def _by_channel_of_all(kernel: Tensor) -> Tensor:
    """Return `[*size, tasks*channels, multiplier]` of `[*size, tasks, channels, multiplier]`."""
    *size, tasks, channels, multiplier = kernel.shape
    return tf.reshape(kernel, [*size, tasks * channels, multiplier])


def _convolved(
    layer: keras.Layer, x: Tensor, kernel: Tensor, convolve: Callable[..., Any]
) -> Tensor:
    """Convolve in one or two dimensions, with the layer's settings."""
    if layer.data_format != "channels_last":
        raise NoRule(f"data_format={layer.data_format!r}")
    strides, dilations, padding = layer.strides, layer.dilation_rate, layer.padding
    if padding == "causal":
        width = dilations[0] * (kernel.shape[0] - 1)
        x, padding = tf.pad(x, [[0, 0], [width, 0], [0, 0]]), "valid"
    if layer.rank == 2:
        return convolve(x, kernel, strides, padding.upper(), dilations)
    # Along an axis of size 1 any stride is the same; depthwise ones must be equal.
    y = convolve(x[:, None], kernel[None], strides * 2, padding.upper(), (1, *dilations))
    return y[:, 0]


def _activated(layer: keras.Layer, y: Tensor, trace: Trace) -> Tensor:
    return layer_activation(layer)(part(y, trace.tasks))


def _by_channel(variable: keras.Variable, x: Tensor, trace: Trace) -> Tensor:
    """Return a weight `[tasks, channels]` in a shape that broadcasts to `x`."""
    return _broadcast(trace.weight(variable, x.dtype), x)


def _broadcast(values: Tensor, x: Tensor) -> Tensor:
    return values[:, None, :] if len(x.shape) == 3 else values


def layer_activation(layer: keras.Layer) -> Callable[[Tensor], Tensor]:
    """Return the activation of a layer, if it works on each channel or along them."""
    known = {id(getattr(keras.activations, name)) for name in dir(keras.activations)}
    if layer.activation is not None and id(layer.activation) not in known:
        raise NoRule(f"activation={layer.activation!r}")
    activation: Callable[[Any], Any] = layer.activation or (lambda x: x)
    return activation


def _activation(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    del trace
    return layer_activation(layer)(x)


def _elementwise(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    del trace
    return layer.call(x)


def _rescaling(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    # With several axes these would meet those of the layout, as those of vectors would where
    # examples have no axis, or Keras gives them two for images with channels first.
    axes = max(np.ndim(layer.scale), np.ndim(layer.offset))
    if axes > 1 or (axes == 1 and len(x.shape) < 3):
        raise NoRule("a scale or an offset of several axes")
    if axes and keras.config.image_data_format() != "channels_last":
        raise NoRule("a scale or an offset for channels that are first")
    return _elementwise(layer, x, trace)


def _softmax(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    del trace
    if layer.axis != -1:
        raise NoRule(f"axis={layer.axis}")
    return keras.activations.softmax(x)


def _prelu(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    alpha = trace.weight(layer.alpha, x.dtype)
    if len(x.shape) < 4:
        alpha = alpha[:, None]
    elif len(x.shape) == 4:
        # Weights of two axes have the tasks in front, activations of a sequence have not.
        alpha = tf.transpose(alpha, [1, 0, 2])
    return tf.nn.relu(x) - alpha * tf.nn.relu(-x)


def _noise(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    if getattr(layer, "noise_shape", None) is not None:
        raise NoRule(f"noise_shape={layer.noise_shape}")
    return layer.call(x, training=trace.training)


def _spatial_dropout(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    if not (trace.training and layer.rate > 0):
        return x
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise NoRule(f"data_format={layer.data_format!r}")
    n, *space, tasks, channels = sizes(x)
    shape = (n, *[1] * len(space), tasks, channels)
    return keras.random.dropout(x, layer.rate, noise_shape=shape, seed=layer.seed_generator)


def _drop_block(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    if len(x.shape) != 5:
        raise NoRule("inputs that are no images")
    if not (trace.training and layer.rate > 0):
        return x
    kept = part(layer.kept(sizes(merge(x))), trace.tasks)
    return x * tf.cast(rescaled(kept, (1, 2, 4)), x.dtype)


def _by_channels(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    """Apply a layer that treats each channel alike, whatever their number."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise NoRule(f"data_format={layer.data_format!r}")
    return part(layer.call(merge(x)), trace.tasks)


def _max_pool(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    known = layer.data_format == "channels_last" and None not in x.shape[1:]
    if not (known and kernels.usable(x)):
        return _by_channels(layer, x, trace)
    padding = layer.padding.upper()
    y = kernels.max_pool(merge(x), layer.pool_size, layer.strides, padding)
    return part(y, trace.tasks)


def _global_pool(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    if layer.data_format != "channels_last":
        raise NoRule(f"data_format={layer.data_format!r}")
    if layer.keepdims:
        return part(layer.call(merge(x)), trace.tasks)
    n, *_, tasks, channels = sizes(x)
    return tf.transpose(reshaped(layer.call(merge(x)), [n, tasks, channels]), [1, 0, 2])


def _by_examples(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    """Apply a layer without weights that treats each example alike, whatever their number."""
    del trace
    x = unpack(x)
    tasks, n, *rest = sizes(x)
    y = layer.call(reshaped(x, [tasks * n, *rest]))
    return pack(reshaped(y, [tasks, n, *sizes(y)[1:]]))


def _flatten(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    del trace
    if layer.data_format not in (None, "channels_last"):
        raise NoRule(f"data_format={layer.data_format!r}")
    x = unpack(x)
    tasks, n, *rest = sizes(x)
    return reshaped(x, [tasks, n, math.prod(rest)])


def _batch_norm(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    if layer.axis not in (-1, len(x.shape) - 2):
        raise NoRule(f"axis={layer.axis}")
    # As in Keras, half precision would overflow.
    x = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)

    def row(variable: keras.Variable) -> Tensor:
        value = trace.weight(variable, x.dtype)
        return value[:, trace.step] if isinstance(layer, PerStepBatchNormalization) else value

    channels = x.shape[-1]
    gamma = row(layer.gamma) if layer.scale else tf.ones([trace.tasks, channels], x.dtype)
    beta = row(layer.beta) if layer.center else tf.zeros([trace.tasks, channels], x.dtype)
    at_hand = isinstance(layer, BatchAtHandNormalization)
    moves = trace.statistics == "training" and trace.training
    if at_hand or (layer.trainable and (moves or trace.statistics == "batch")):
        # A vector's channels are made to lie one after another, as those of an image do.
        vector = len(x.shape) == 3
        wide = tf.transpose(x, [1, 0, 2]) if vector else x
        merged = merge(wide)
        scale, offset = (tf.reshape(weight, [-1]) for weight in (gamma, beta))
        y, mean, variance = batch_normalization(merged, scale, offset, layer.epsilon)
        y = reshaped(y, sizes(wide))
        y = tf.transpose(y, [1, 0, 2]) if vector else y
        if not at_hand:
            # What is stored for a query has a gradient, a moving average has none.
            new = (mean, variance) if moves else moments(merged)
            momentum = layer.momentum if moves else 0.0
            for variable, value in zip(
                (layer.moving_mean, layer.moving_variance), new, strict=True
            ):
                _move(layer, variable, tf.reshape(value, gamma.shape), momentum, trace)
    else:
        scale = gamma * tf.math.rsqrt(row(layer.moving_variance) + layer.epsilon)
        offset = beta - row(layer.moving_mean) * scale
        y = x * _broadcast(scale, x) + _broadcast(offset, x)
    return tf.cast(y, layer.compute_dtype)


def _move(
    layer: keras.Layer, variable: keras.Variable, value: Tensor, momentum: float, trace: Trace
) -> None:
    """Move a stored statistic towards the one of a batch, and the row of this step only."""
    old = trace.values[id(variable)]
    per_step = isinstance(layer, PerStepBatchNormalization)
    if momentum == 0 and not per_step:
        trace.values[id(variable)] = tf.cast(value, old.dtype)
        return
    change = 1.0 - momentum
    if per_step:
        change *= tf.one_hot(trace.step % layer.steps, layer.steps, dtype=old.dtype)[:, None]
        value = value[:, None]
    trace.values[id(variable)] = old + change * (tf.cast(value, old.dtype) - old)


def _layer_norm(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    last = len(x.shape) - 2
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if axes not in ([-1], [last]):
        raise NoRule(f"axis={layer.axis}")
    if getattr(layer, "rms_scaling", False):
        raise NoRule("rms_scaling=True")
    return _standardized(layer, x, [len(x.shape) - 1], trace)


def _group_norm(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    if layer.axis not in (-1, len(x.shape) - 2):
        raise NoRule(f"axis={layer.axis}")
    shape = sizes(x)
    groups = shape[-1] if layer.groups == -1 else layer.groups
    grouped = reshaped(x, [*shape[:-1], groups, shape[-1] // groups])
    rank = len(x.shape)
    # All but the examples, the tasks and the groups.
    axes = [3] if rank == 3 else [*range(1, rank - 2), rank]
    return _standardized(layer, grouped, axes, trace, shape)


def _standardized(
    layer: keras.Layer, x: Tensor, axes: list[int], trace: Trace, shape: list[Any] | None = None
) -> Tensor:
    _refuse_integers(x.dtype)
    wide = tf.cast(x, tf.float64 if x.dtype == tf.float64 else tf.float32)
    mean = mean_along(wide, axes)
    # Not tf.nn.moments, which stops the gradient at this mean.
    variance = mean_along(tf.math.squared_difference(wide, mean), axes)
    y = (wide - mean) * tf.math.rsqrt(variance + layer.epsilon)
    if shape is not None:
        y = reshaped(y, shape)
    if layer.scale:
        y *= _by_channel(layer.gamma, y, trace)
    if layer.center:
        y += _by_channel(layer.beta, y, trace)
    return tf.cast(y, layer.compute_dtype)


def _embedding(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    if layer.mask_zero:
        raise NoRule("mask_zero=True")
    table = trace.weight(layer.embeddings, layer.compute_dtype)
    rows = tf.cast(unpack(x), tf.int32)
    # In Keras, too, they may be counted from the end.
    rows = tf.where(rows < 0, rows + layer.input_dim, rows)
    return pack(tf.gather(table, rows, batch_dims=1))


def _merge_layers(layer: keras.Layer, xs: list[Tensor], trace: Trace) -> Tensor:
    del trace
    if len({len(x.shape) for x in xs}) > 1:
        raise NoRule("inputs with different numbers of axes")
    return merge_function_of(layer)(xs)


def _concatenate(layer: keras.Layer, xs: list[Tensor], trace: Trace) -> Tensor:
    del trace
    rank = len(xs[0].shape) - 1
    axis = layer.axis % rank
    if axis == 0 or rank < 2:
        raise NoRule(f"axis={layer.axis}")
    last = axis == rank - 1
    return keras.ops.concatenate(xs, -1 if last else axis + (len(xs[0].shape) == 3))


def _context(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    context = trace.weight(layer.context, x.dtype)
    context = context[:, None] if len(x.shape) < 4 else context
    shape = [*sizes(x)[:-1], layer.units]
    return tf.concat([x, tf.broadcast_to(context, shape)], axis=-1)


def _same(layer: keras.Layer, x: Tensor, trace: Trace) -> Tensor:
    del layer, trace
    return x


_ACTIVATED = "activation use_bias"
_WINDOW = "kernel_size strides padding data_format dilation_rate"
_CONV = Rule(_conv, f"filters groups {_WINDOW} {_ACTIVATED}")
_DEPTHWISE = Rule(_depthwise, f"depth_multiplier {_WINDOW} {_ACTIVATED}")
_SEPARABLE = Rule(_separable, f"filters depth_multiplier {_WINDOW} {_ACTIVATED}")
_POOL = "pool_size strides padding data_format"
_GLOBAL_POOL = Rule(_global_pool, "data_format keepdims")
_BATCH_NORM = "axis momentum epsilon center scale"
_MERGE = Rule(_merge_layers)

RULES: dict[type, Rule] = {
    layers.Dense: Rule(_dense, f"units {_ACTIVATED}"),
    layers.Conv1D: _CONV,
    layers.Conv2D: _CONV,
    layers.DepthwiseConv1D: _DEPTHWISE,
    layers.DepthwiseConv2D: _DEPTHWISE,
    layers.SeparableConv1D: _SEPARABLE,
    layers.SeparableConv2D: _SEPARABLE,
    layers.MaxPooling1D: Rule(_by_channels, _POOL),
    layers.MaxPooling2D: Rule(_max_pool, _POOL),
    layers.AveragePooling1D: Rule(_by_channels, _POOL),
    layers.AveragePooling2D: Rule(_by_channels, _POOL),
    layers.GlobalMaxPooling1D: _GLOBAL_POOL,
    layers.GlobalMaxPooling2D: _GLOBAL_POOL,
    layers.GlobalAveragePooling1D: _GLOBAL_POOL,
    layers.GlobalAveragePooling2D: _GLOBAL_POOL,
    layers.ZeroPadding1D: Rule(_by_channels, "padding data_format"),
    layers.ZeroPadding2D: Rule(_by_channels, "padding data_format"),
    layers.Cropping1D: Rule(_by_channels, "cropping"),
    layers.Cropping2D: Rule(_by_channels, "cropping data_format"),
    layers.UpSampling1D: Rule(_by_channels, "size"),
    layers.UpSampling2D: Rule(_by_channels, "size data_format interpolation"),
    layers.Activation: Rule(_activation, "activation"),
    layers.ReLU: Rule(_elementwise, "max_value negative_slope threshold"),
    layers.LeakyReLU: Rule(_elementwise, "negative_slope"),
    layers.ELU: Rule(_elementwise, "alpha"),
    layers.Softmax: Rule(_softmax, "axis"),
    layers.PReLU: Rule(_prelu, "shared_axes"),
    layers.Rescaling: Rule(_rescaling, "scale offset"),
    layers.Dropout: Rule(_noise, "rate noise_shape seed"),
    layers.GaussianNoise: Rule(_noise, "stddev seed"),
    layers.GaussianDropout: Rule(_noise, "rate seed"),
    layers.SpatialDropout1D: Rule(_spatial_dropout, "rate seed"),
    layers.SpatialDropout2D: Rule(_spatial_dropout, "rate data_format seed"),
    DropBlock: Rule(_drop_block, "rate block_size seed"),
    layers.BatchNormalization: Rule(_batch_norm, _BATCH_NORM),
    BatchAtHandNormalization: Rule(_batch_norm, _BATCH_NORM),
    PerStepBatchNormalization: Rule(_batch_norm, f"steps {_BATCH_NORM}"),
    layers.LayerNormalization: Rule(_layer_norm, "axis epsilon center scale rms_scaling"),
    layers.GroupNormalization: Rule(_group_norm, "groups axis epsilon center scale"),
    layers.Embedding: Rule(_embedding, "input_dim output_dim mask_zero weights"),
    layers.Flatten: Rule(_flatten, "data_format"),
    layers.Reshape: Rule(_by_examples, "target_shape"),
    layers.Permute: Rule(_by_examples, "dims"),
    layers.RepeatVector: Rule(_by_examples, "n"),
    layers.Add: _MERGE,
    layers.Subtract: _MERGE,
    layers.Multiply: _MERGE,
    layers.Average: _MERGE,
    layers.Maximum: _MERGE,
    layers.Minimum: _MERGE,
    layers.Concatenate: Rule(_concatenate, "axis"),
    layers.Identity: Rule(_same),
    Context: Rule(_context, "units"),
}
