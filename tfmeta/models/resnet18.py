"""ResNet-18 with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfmeta.checks import check_count
from tfmeta.models.parts import convolved, ended, image_shape, normalized, widths


def resnet18(
    input_shape: Sequence[int], outputs: int | None = None, filters: int | Sequence[int] = 64
) -> keras.Model:
    """Return ResNet-18 for small images: of 32×32 to 84×84, as few-shot benchmarks have them.

    The stem is one 3×3 convolution without a stride, batch normalisation and ReLU; that for
    ImageNet, 7×7 with a stride of 2 and a pool, would leave an eighth of a small image's places.
    Then there are four stages of two blocks, of 64, 128, 256 and 512 filters, the last three of
    which halve the image. A block is two 3×3 convolutions with batch normalisation, to which its
    input is added, by way of a 1×1 convolution where the shapes differ. At the end is the mean over
    the image. Without a head that is 11.2 million parameters.

    Args:
        input_shape: `(height, width, channels)`.
        outputs: Number of logits; `None` gives the encoder, `[n, 512]`.
        filters: Filters of the first stage, where the others have 2, 4 and 8 times as many; or of
            each of the four.

    Returns:
        A Functional model `[n, height, width, channels]` → `[n, outputs or features]`.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If an argument is out of range.

    Example:
        >>> tfmeta.models.resnet18((32, 32, 3)).output_shape
        (None, 512)

    Reference:
        He, Zhang, Ren and Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016.
    """
    shape = image_shape(input_shape)
    if outputs is not None:
        check_count("outputs", outputs)
    inputs = keras.Input(shape)
    stages = widths(filters, (1, 2, 4, 8))
    x = layers.ReLU()(normalized(convolved(inputs, stages[0])))
    for stage, width in enumerate(stages):
        for block in range(2):
            x = _block(x, width, 2 if stage and not block else 1)
    return ended(inputs, layers.GlobalAveragePooling2D()(x), outputs, "resnet18")


def _block(x: Any, filters: int, strides: int) -> Any:
    y = layers.ReLU()(normalized(convolved(x, filters, strides=strides)))
    y = normalized(convolved(y, filters))
    if strides > 1 or x.shape[-1] != filters:
        x = normalized(convolved(x, filters, size=1, strides=strides))
    return layers.ReLU()(layers.Add()([y, x]))
