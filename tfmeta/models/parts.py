"""What the backbones of images have in common: arguments, convolutions and the end."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import keras
from keras import layers

from tfmeta.checks import check_count

# Of the running statistics, which lag 1/(1 - momentum) steps behind the weights.
MOMENTUM = 0.9


def image_shape(input_shape: Sequence[int], least: int = 1, instead: str = "") -> tuple[int, ...]:
    """Return the shape of an image, or raise an error that names it.

    Args:
        input_shape: `(height, width, channels)`.
        least: The smallest height and width.
        instead: What else could be done, for the message.
    """
    shape = tuple(input_shape)
    if len(shape) != 3:
        raise ValueError(
            f"`input_shape` must be (height, width, channels). Received: input_shape={shape}"
        )
    for size in shape:
        check_count("input_shape", size)
    if min(shape[:2]) < least:
        raise ValueError(
            f"`input_shape` must be at least {least}×{least} to be halved so often{instead}. "
            f"Received: input_shape={shape}"
        )
    return shape


def widths(filters: int | Sequence[int], proportions: Sequence[Fraction | int]) -> tuple[int, ...]:
    """Return how many filters each block has, or raise an error that names them.

    Args:
        filters: Those of the first block, or of each.
        proportions: Of the blocks, where `filters` is one number.
    """
    if isinstance(filters, Sequence) and not isinstance(filters, str):
        if len(filters) != len(proportions):
            raise ValueError(
                f"`filters` must be a number, or one for each of {len(proportions)} blocks. "
                f"Received: filters={tuple(filters)}"
            )
        return tuple(check_count("filters", n) for n in filters)
    first = check_count("filters", filters)
    return tuple(max(1, int(first * proportion)) for proportion in proportions)


def convolved(x: Any, filters: int, size: int = 3, strides: int = 1) -> Any:
    """Return a convolution without a bias, for batch normalisation behind it to have one."""
    return layers.Conv2D(
        filters,
        size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)


def normalized(x: Any) -> Any:
    """Return batch normalisation of `x`."""
    return layers.BatchNormalization(momentum=MOMENTUM)(x)


def ended(inputs: Any, x: Any, outputs: int | None, name: str) -> keras.Model:
    """Return the model: the encoder, or with a dense layer of logits."""
    if outputs is not None:
        x = layers.Dense(check_count("outputs", outputs))(x)
    return keras.Model(inputs, x, name=name)
