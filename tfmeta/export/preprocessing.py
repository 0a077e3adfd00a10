"""How images become what a model takes, as TensorFlow operations that travel with an export."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta.checks import check_positive, check_size

# Pillow's weights of red, green and blue, in 1/65536.
_LUMA = (19595, 38470, 7471)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Bring uint8 images of any size to what a model was trained on.

    As `tfmeta.data.images.read_image`, and then scaled: grey by Pillow's weights, resized by
    Lanczos' filter of three lobes with antialiasing, inverted, multiplied. Where nothing is resized
    the numbers are the same to the bit; where something is, TensorFlow's filter and Pillow's differ
    in the rounding of their coefficients: by 1 or 2 of 255, in fewer than one pixel of 1,000.

    Attributes:
        size: Side of the square, or `(height, width)`, to which images are resized; `None` leaves
            the size as it is, which must then be the model's.
        grayscale: One channel if true, red, green and blue otherwise.
        invert: Whether to turn `v` into `255 - v`.
        scale: What the numbers 0 … 255 are multiplied by; that of `EpisodeSampler` by default.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is out of range.

    Example:
        >>> drawings = tfmeta.export.Preprocessing(size=28, grayscale=True, invert=True)
        >>> drawings(photos).shape
        TensorShape([16, 28, 28, 1])
    """

    size: int | tuple[int, int] | None = None
    grayscale: bool = False
    invert: bool = False
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        """Check the values."""
        check_size(self.size)
        check_positive("scale", self.scale)

    def __call__(self, images: Any) -> Any:
        """Return images as a model takes them.

        Args:
            images: uint8 `[n, height, width, channels]`, of 1 or 3 channels.

        Returns:
            float32 `[n, *size, 1]` or `[n, *size, 3]`.
        """
        images = tf.convert_to_tensor(images)
        colour = tf.broadcast_to(images, tf.concat([tf.shape(images)[:3], [3]], 0))
        colour = tf.ensure_shape(colour, [*images.shape[:3], 3])
        if self.grayscale:
            # Three equal channels give that number again.
            weighted = tf.cast(colour, tf.int32) * tf.constant(_LUMA)
            rounded = tf.reduce_sum(weighted, axis=-1, keepdims=True) + 2**15
            colour = tf.bitwise.right_shift(rounded, 16)
        pixels = tf.cast(colour, tf.float32)
        size = check_size(self.size)
        if size is not None:
            height, width = size
            # In two passes with whole numbers between them, as Pillow.
            pixels = _resized(pixels, (tf.shape(pixels)[1], width))
            pixels = _resized(pixels, (height, width))
            pixels = tf.ensure_shape(pixels, [None, height, width, pixels.shape[-1]])
        if self.invert:
            pixels = 255 - pixels
        return pixels * np.float32(self.scale)


def _resized(pixels: Any, size: tuple[Any, Any]) -> Any:
    resized = tf.image.resize(pixels, size, "lanczos3", antialias=True)
    return tf.clip_by_value(tf.floor(resized + 0.5), 0, 255)
