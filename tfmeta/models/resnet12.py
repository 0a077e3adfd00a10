"""The residual network of few-shot learning."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import keras
from keras import layers

from tfmeta.checks import check_count
from tfmeta.layers import DropBlock
from tfmeta.models.parts import convolved, ended, image_shape, normalized, widths

SLOPE = 0.1


def resnet12(
    input_shape: Sequence[int],
    outputs: int | None = None,
    filters: int | Sequence[int] = 64,
    *,
    drop_rate: float = 0.0,
    block_size: int = 5,
) -> keras.Model:
    """Return ResNet-12, the backbone of TADAM, MetaOptNet and most that came after them.

    Four blocks, of 64, 160, 320 and 640 filters. A block is three 3×3 convolutions, each with batch
    normalisation and LeakyReLU of slope 0.1 behind it, the last LeakyReLU after the block's input
    was added by way of a 1×1 convolution; then a 2×2 max-pool. At the end is the mean over the
    image. Without a head that is 12.4 million parameters.

    Args:
        input_shape: `(height, width, channels)`.
        outputs: Number of logits; `None` gives the encoder, `[n, 640]`.
        filters: Filters of the first block, where the others have 2.5, 5 and 10 times as many; or
            of each of the four.
        drop_rate: Rate of `tfmeta.layers.DropBlock` at the end of each of the last two blocks; 0.1
            is usual, 0 leaves it out.
        block_size: Side of what it drops: 5 for images of 84×84, 2 for 32×32.

    Returns:
        A Functional model `[n, height, width, channels]` → `[n, outputs or features]`.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If an argument is out of range or the image is too small for four halvings.

    Example:
        >>> tfmeta.models.resnet12((32, 32, 3), drop_rate=0.1, block_size=2).output_shape
        (None, 640)

    References:
        Oreshkin, Rodríguez and Lacoste, *TADAM*, NeurIPS 2018; Lee, Maji, Ravichandran and Soatto,
        *Meta-Learning with Differentiable Convex Optimization*, CVPR 2019, where other blocks
        have ordinary dropout and the rate of DropBlock rises slowly.
    """
    shape = image_shape(input_shape, 16)
    if outputs is not None:
        check_count("outputs", outputs)
    inputs = x = keras.Input(shape)
    blocks = widths(filters, (1, Fraction(5, 2), 5, 10))
    for number, width in enumerate(blocks):
        x = _block(x, width)
        if drop_rate and number >= len(blocks) - 2:
            x = DropBlock(drop_rate, block_size)(x)
    return ended(inputs, layers.GlobalAveragePooling2D()(x), outputs, "resnet12")


def _block(x: Any, filters: int) -> Any:
    shortcut = normalized(convolved(x, filters, size=1))
    for _ in range(2):
        x = layers.LeakyReLU(SLOPE)(normalized(convolved(x, filters)))
    x = layers.Add()([normalized(convolved(x, filters)), shortcut])
    return layers.MaxPooling2D()(layers.LeakyReLU(SLOPE)(x))
