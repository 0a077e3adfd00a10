"""A wide residual network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfmeta.checks import check_count
from tfmeta.models.parts import convolved, ended, image_shape, normalized, widths

STEM, BLOCKS = 16, 4


def wrn28_10(
    input_shape: Sequence[int],
    outputs: int | None = None,
    filters: int | Sequence[int] = 160,
    *,
    dropout: float = 0.0,
) -> keras.Model:
    """Return WRN-28-10, a residual network of 28 layers, ten times as wide as the first ones.

    A 3×3 convolution of 16 filters, then three stages of four blocks, of 160, 320 and 640 filters,
    the last two of which halve the image; batch normalisation, ReLU and the mean over the image. A
    block is twice batch normalisation, ReLU and a 3×3 convolution. Its input is added to that, by
    way of a 1×1 convolution behind the first ReLU where the shapes differ. Without a head that is
    36.5 million parameters.

    Args:
        input_shape: `(height, width, channels)`.
        outputs: Number of logits; `None` gives the encoder, `[n, 640]`.
        filters: Filters of the first stage, where the others have 2 and 4 times as many; or of each
            of the three.
        dropout: Rate of dropout between the two convolutions of a block.

    Returns:
        A Functional model `[n, height, width, channels]` → `[n, outputs or features]`.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If an argument is out of range.

    Example:
        >>> tfmeta.models.wrn28_10((32, 32, 3)).output_shape
        (None, 640)

    Reference:
        Zagoruyko and Komodakis, *Wide Residual Networks*, BMVC 2016.
    """
    shape = image_shape(input_shape)
    if outputs is not None:
        check_count("outputs", outputs)
    inputs = keras.Input(shape)
    x = convolved(inputs, STEM)
    for stage, width in enumerate(widths(filters, (1, 2, 4))):
        for block in range(BLOCKS):
            x = _block(x, width, 2 if stage and not block else 1, dropout)
    x = layers.ReLU()(normalized(x))
    return ended(inputs, layers.GlobalAveragePooling2D()(x), outputs, "wrn28_10")


def _block(x: Any, filters: int, strides: int, dropout: float) -> Any:
    y = layers.ReLU()(normalized(x))
    if strides > 1 or x.shape[-1] != filters:
        x = convolved(y, filters, size=1, strides=strides)
    y = layers.ReLU()(normalized(convolved(y, filters, strides=strides)))
    if dropout:
        y = layers.Dropout(dropout)(y)
    return layers.Add()([convolved(y, filters), x])
