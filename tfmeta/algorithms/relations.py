"""Networks that compare two embeddings: the usual one, and what each must take and give."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from tfmeta.models.parts import MOMENTUM


def usual_relation(shape: Sequence[int], dtype: str) -> keras.Model:
    """Return the network for pairs of this shape where the user gives none."""
    parts: list[keras.layers.Layer] = [keras.Input(shape, dtype=dtype)]
    if len(shape) == 1:
        parts += [layers.Dense(64, "relu", dtype=dtype) for _ in range(2)]
    else:
        for _ in range(2):
            parts += [
                layers.Conv2D(64, 3, padding="same", dtype=dtype),
                layers.BatchNormalization(momentum=MOMENTUM, dtype=dtype),
                layers.ReLU(dtype=dtype),
                layers.MaxPooling2D(2, padding="same", dtype=dtype),
            ]
        parts += [layers.Flatten(dtype=dtype), layers.Dense(8, "relu", dtype=dtype)]
    return keras.Sequential([*parts, layers.Dense(1, dtype=dtype)], name="relation")


def check_scores(relation: keras.Model, shape: Sequence[int], dtype: str) -> None:
    """Build a relation for pairs of this shape, or raise a `ValueError` if it is none for them."""
    words = (
        f"`relation` must take pairs [n, {', '.join(map(str, shape))}] of embeddings, and return a "
        "score [n, 1] of each. Received: a model"
    )
    try:
        scores = relation(keras.KerasTensor((None, *shape), dtype))
    except Exception as error:  # whatever a layer says of a shape that it does not take
        raise ValueError(f"{words} {relation.name!r} that does not: {error}") from error
    if keras.tree.is_nested(scores) or tuple(scores.shape) != (None, 1):
        given = keras.tree.map_structure(lambda x: tuple(x.shape), scores)
        raise ValueError(f"{words} {relation.name!r} that returns shape={given}")
