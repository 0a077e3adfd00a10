"""Which classes have prototypes; a head of prototypes in Keras's own layers, and the way back."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmeta.functional import plain
from tfmeta.inputs import known_ways
from tfmeta.types import Nest, Tensor


def model_of_prototypes(
    encoder: keras.Model,
    example: Nest,
    means: Tensor,
    distance: str,
    temperature: Any,
    *,
    of_classes: bool = True,
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
        of_classes: Whether each prototype is the mean of its class's examples and of nothing else,
            so that `prototypes_of` may find it and another may be put beside it.
    """
    name = "prototypes" if of_classes else "class_vectors"
    t = tf.convert_to_tensor(temperature)
    means = tf.cast(means, t.dtype)
    ways, dtype = means.shape[0], t.dtype.name
    example = plain(example)
    inputs = keras.tree.map_structure(lambda x: keras.Input(x.shape[1:], dtype=x.dtype), example)
    if isinstance(example, dict):
        # Keras wants an input's key for its name.
        inputs |= {
            k: keras.Input(x.shape[1:], dtype=x.dtype, name=k)
            for k, x in example.items()
            if not keras.tree.is_nested(x)
        }
    z = encoder(inputs)
    if distance == "cosine":
        head = keras.layers.Dense(ways, use_bias=False, dtype=dtype, name=name)
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
        head = keras.layers.Dense(ways, dtype=dtype, name=name)
        norm = keras.layers.Dot(axes=-1, dtype=dtype)([z, z])
        norm = keras.layers.Rescaling(float(t), dtype=dtype)(norm)
        outputs = keras.layers.Subtract(dtype=dtype)([head(z), norm])
        head.kernel.assign(2 * t * tf.transpose(means))
        head.bias.assign(-t * tf.reduce_sum(means**2, axis=-1))
    return keras.Model(inputs, outputs, name="adapted")


class Prototypes(NamedTuple):
    """What `model_of_prototypes` was given, besides `example`."""

    encoder: keras.Model
    means: Tensor
    distance: str
    temperature: Any


def prototypes_of(model: keras.Model) -> Prototypes | None:
    """Return what `model_of_prototypes` made a model of, `None` of others and of no means."""
    layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    (head,) = [x for x in layers if x.name == "prototypes"] or [None]
    kinds = {type(x): x for x in layers if not isinstance(x, keras.Model)}
    encoders = [x for x in layers if isinstance(x, keras.Model)]
    if not isinstance(head, keras.layers.Dense) or len(encoders) != 1:
        return None
    rows = np.transpose(head.kernel).astype(np.float64)
    dtype = head.kernel.dtype
    if set(kinds) == {keras.layers.UnitNormalization, keras.layers.Dense}:
        t = np.linalg.norm(rows, axis=-1).max()
        return Prototypes(encoders[0], tf.cast(rows, dtype), "cosine", tf.cast(t, dtype))
    shift, scale = (kinds.get(k) for k in (keras.layers.Normalization, keras.layers.Rescaling))
    if shift is None or scale is None or len(layers) != 6:
        return None
    means = rows / (2 * scale.scale) + np.ravel(shift.mean)
    distance = "squared_euclidean"
    return Prototypes(encoders[0], tf.cast(means, dtype), distance, tf.cast(scale.scale, dtype))


def with_mean(head: Prototypes, examples: Nest) -> Tensor:
    """Return a head's prototypes and, as the last one, the mean of the embeddings of examples.

    Raises:
        ValueError: If an embedding is NaN or infinite.
    """
    z = tf.cast(head.encoder(examples, training=False), head.means.dtype)
    check_embedded("examples", z)
    return tf.concat([head.means, tf.reduce_mean(z, 0, keepdims=True)], 0)


def without_row(rows: Tensor, label: int) -> Tensor:
    """Return rows, one for each class, without that of one class.

    Raises:
        ValueError: If there is no such class, or no other.
    """
    check_label(label, len(rows))
    return tf.concat([rows[:label], rows[label + 1 :]], 0)


def check_label(label: int, ways: int) -> None:
    """Raise a `ValueError` unless a class of so many may go."""
    if label >= ways or ways == 1:
        raise ValueError(
            f"`label` must be one of the classes 0..{ways - 1}, and not the only one. Received: "
            f"label={label}"
        )


def check_embedded(name: str, embedded: Tensor) -> None:
    """Raise a `ValueError` if one of embeddings `[n, ...]` is NaN or infinite."""
    finite = np.isfinite(embedded).reshape(len(embedded), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            "`encoder` must return finite numbers. Received: NaN or infinite ones for example "
            f"{int(np.argmin(finite))} of `{name}`"
        )


def present_classes(labels: Tensor, static: bool) -> tuple[Any, Any]:
    """Return the number of ways of `labels` `[tasks, n]`, and which are there, `[tasks, ways]`.

    XLA needs a number that is `static`; that is then the most that a support set can have.
    """
    labels = tf.cast(labels, tf.int32)
    most = known_ways() or (labels.shape[1] if static else None)
    ways = tf.reduce_max(labels) + 1 if most is None else most
    return ways, tf.reduce_any(tf.one_hot(labels, ways, on_value=True, off_value=False), axis=1)
