"""Images that are brought to one size, and turned from dark on bright into bright on dark."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tfmeta.checks import check_size
from tfmeta.types import Array

ImageArray = npt.NDArray[np.uint8]

RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
}


def prepare(
    images: ImageArray,
    *,
    size: int | tuple[int, int] | None = None,
    grayscale: bool = False,
    invert: bool = False,
    resample: str = "lanczos",
) -> ImageArray:
    """Resizes and converts a stack of images at once.

    Args:
        images: A uint8 array `[n, height, width, channels]` of 1 or 3 channels, or of 2 or 4 of
            which the last is the opacity.
        size, grayscale, invert, resample: As for `read_image`; one channel stays one.

    Returns:
        A new uint8 array of the same layout.
    """
    shape = check_size(size)
    n, height, width, channels = images.shape
    if grayscale and channels > 1:
        colour = Image.fromarray(images.reshape(n * height, width, channels))
        images = np.asarray(colour.convert("L")).reshape(n, height, width, 1)
    if shape is not None and shape != (height, width):
        # First the width, then the height with the axes exchanged: the two passes that Pillow
        # makes of every single image, to the bit, but each a single call for the stack.
        images = _resize_width(images, shape[1], resample).swapaxes(1, 2)
        images = _resize_width(images, shape[0], resample).swapaxes(1, 2)
    if not invert:
        return np.ascontiguousarray(images)
    colours = _colours(images)
    return np.concatenate([255 - images[..., :colours], images[..., colours:]], axis=-1)


def prepare_floats(
    image: Array,
    *,
    size: int | tuple[int, int] | None,
    invert: bool,
    resample: str,
    dtype: str,
    bounded: bool,
) -> Array:
    """Resizes and converts one image of more than 8 bits a channel, or that becomes one.

    Args:
        image: `[height, width, channels]` of uint8; or of floats, from 0 to 1 if `bounded`.
        size, invert, resample, dtype: As for `read_image`; `dtype` is not `"uint8"`.
        bounded: Whether the numbers have a range, which resizing could leave.

    Returns:
        An array of that type.
    """
    values: Array = image / 255.0 if image.dtype == np.uint8 else image
    shape, colours = check_size(size), _colours(image)
    if shape is not None and shape != values.shape[:2]:
        opacity = values[..., colours:]
        # What is transparent has no colour that others could take on.
        parts = [values[..., :colours] * opacity if opacity.size else values, opacity]
        values = np.concatenate([_resize_floats(part, shape, resample) for part in parts], axis=-1)
        if opacity.size:
            opacity = values[..., colours:].clip(0, 1)
            shown = values[..., :colours] / np.where(opacity > 0, opacity, 1)
            values = np.concatenate([shown, opacity], axis=-1)
        values = values.clip(0, 1) if bounded else values
    if invert:
        values = np.concatenate([1 - values[..., :colours], values[..., colours:]], axis=-1)
    if dtype == "uint16":
        return np.asarray(np.rint(values * 65535), np.uint16)
    return np.ascontiguousarray(values, np.float32)


def _colours(images: Array) -> int:
    """How many of the channels are no opacity."""
    return int(images.shape[-1]) - (images.shape[-1] in (2, 4))


def _resize_width(images: ImageArray, width: int, resample: str) -> ImageArray:
    n, height, _, channels = images.shape
    one_below_the_other = images.reshape(n * height, -1, channels)
    if channels == 1:
        one_below_the_other = one_below_the_other[:, :, 0]
    resized = Image.fromarray(one_below_the_other).resize((width, n * height), RESAMPLING[resample])
    return np.asarray(resized).reshape(n, height, width, channels)


def _resize_floats(image: Array, shape: tuple[int, int], resample: str) -> Array:
    channels: list[Any] = [
        Image.fromarray(image[..., c].astype(np.float32)).resize(
            (shape[1], shape[0]), RESAMPLING[resample]
        )
        for c in range(image.shape[-1])
    ]
    return np.stack(channels, axis=-1) if channels else np.empty((*shape, 0))
