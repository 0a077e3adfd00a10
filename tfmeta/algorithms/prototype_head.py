"""Which classes have prototypes, and a head of prototypes in Keras's own layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.inputs import known_ways
from tfmeta.types import Nest, Tensor


def model_of_prototypes(
    encoder: keras.Model, example: Nest, means: Tensor, distance: str, temperature: Any
) -> keras.Model:
    """Return an encoder and a head of prototypes as one model, with the logits of the distance.

    Squared Euclidean: `−t‖z − c‖² = t (2c·z − ‖c‖² − ‖z‖²)`, a dense layer less the squared norm;
    cosine: a dense layer without bias after a normalisation to length 1.

    Args:
        encoder: A model `[n, ...]` → `[n, d]`, which becomes a part of the new one.
        example: What it takes, symbolically.
        means: The prototypes c, `[ways, d]`.
        distance: `"squared_euclidean"` or `"cosine"`.
        temperature: t, a number or a scalar; the head has its precision, whatever the encoder
            computes in.
    """
    t = tf.convert_to_tensor(temperature)
    means = tf.cast(means, t.dtype)
    ways, dtype = means.shape[0], t.dtype.name
    inputs = keras.tree.map_structure(lambda x: keras.Input(x.shape[1:], dtype=x.dtype), example)
    z = encoder(inputs)
    if distance == "cosine":
        head = keras.layers.Dense(ways, use_bias=False, dtype=dtype, name="prototypes")
        outputs = head(keras.layers.UnitNormalization(dtype=dtype)(z))
        head.kernel.assign(t * tf.transpose(tf.math.l2_normalize(means, axis=-1)))
    else:
        # Far from the origin the squares would cancel all that matters: first to the middle.
        middle = tf.reduce_mean(means, axis=0)
        means = means - middle
        shift = keras.layers.Normalization(
            mean=middle.numpy(), variance=np.ones(len(middle)), dtype=dtype
        )
        z = shift(z)
        head = keras.layers.Dense(ways, dtype=dtype, name="prototypes")
        norm = keras.layers.Dot(axes=-1, dtype=dtype)([z, z])
        norm = keras.layers.Rescaling(float(t), dtype=dtype)(norm)
        outputs = keras.layers.Subtract(dtype=dtype)([head(z), norm])
        head.kernel.assign(2 * t * tf.transpose(means))
        head.bias.assign(-t * tf.reduce_sum(means**2, axis=-1))
    return keras.Model(inputs, outputs, name="adapted")


def present_classes(labels: Tensor, static: bool) -> tuple[Any, Any]:
    """Return the number of ways of `labels` `[tasks, n]`, and which are there, `[tasks, ways]`.

    XLA needs a number that is `static`; that is then the most that a support set can have.
    """
    labels = tf.cast(labels, tf.int32)
    most = known_ways() or (labels.shape[1] if static else None)
    ways = tf.reduce_max(labels) + 1 if most is None else most
    return ways, tf.reduce_any(tf.one_hot(labels, ways, on_value=True, off_value=False), axis=1)
