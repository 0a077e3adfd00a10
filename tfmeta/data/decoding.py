"""An image file as numbers: whatever kind it is, with what was lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tfmeta.foreign import of_pillow
from tfmeta.types import Array

# Pillow's weights of red, green and blue.
_LUMA = np.array([19595, 38470, 7471]) / 65536
_NO_RANGE = (
    "numbers of {} have no agreed range; dtype='float32' takes them as they are, or save them as 8 "
    "or 16 bits"
)


class Decoded(NamedTuple):
    """What was in a file.

    Attributes:
        pixels: `[height, width, channels]`: uint8, of 0..255; float64, of 0..1; or float32, of
            numbers as they are in the file.
        done: What was done that loses something, in the terms of `tfmeta.data.changes`.
    """

    pixels: Array
    done: frozenset[str]


def decode(
    image: Image.Image,
    opened: Callable[[], Image.Image],
    admit: Callable[[int], None],
    *,
    grayscale: bool,
    alpha: bool,
    dtype: str,
) -> Decoded:
    """Returns an image as an array, turned upright.

    Args:
        image: An opened file, at the page that is wanted, that is not loaded.
        opened: Opens it so again, as often as it is called.
        admit: Is told how many pixels of 8 bits take the memory that this will.
        grayscale: One channel if true, red, green and blue otherwise.
        alpha: Whether one channel more has the opacity; if not, the image is laid on white paper.
        dtype: What the array becomes in the end; with `"uint8"` it is that at once.

    Raises:
        ValueError: The numbers have no agreed range, or cannot be kept as `dtype`.
        Exception: Pillow cannot decode the file, for which it raises a dozen types.
    """
    bits, done = of_pillow.bits(image), set()
    admit(image.width * image.height * (8 if bits > 8 else 1))
    if of_pillow.is_garbled(image):
        raise ValueError("colours of 16 bits in planes cannot be read; save it as PNG")
    if of_pillow.has_more_channels(image):
        done.add("channels")
    if image.mode in ("CMYK", "LAB"):
        done.add("colours")
    if image.mode == "F" or bits > 16 or of_pillow.is_signed(image):
        return _as_they_are(image, done, grayscale, alpha, dtype)
    found = None
    if bits > 8:
        found = _deep(image, opened)
        if found is None and dtype != "uint8":
            raise ValueError(
                f"{image.format} of 16 bits and of this kind ({image.mode}) cannot be read "
                f"as dtype={dtype!r}; save it as PNG, in colour"
            )
        done.add("bits")
    if found is None:
        return _of_eight_bits(image, done, grayscale, alpha)
    values, opacity = found
    if opacity is not None and opacity.min() < 1 and not alpha:
        done.add("transparent")
        values = values * opacity + (1 - opacity)
    values = _coloured(values, grayscale)
    if alpha:
        values = np.dstack([values, np.ones_like(values[..., :1]) if opacity is None else opacity])
    if dtype == "uint8":
        values = np.rint(values * 255).astype(np.uint8)
    return Decoded(values, frozenset(done))


def _of_eight_bits(image: Image.Image, done: set[str], grayscale: bool, alpha: bool) -> Decoded:
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        least = image.getchannel("A").getextrema()[0]
        if not alpha and isinstance(least, int | float) and least < 255:
            done.add("transparent")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if alpha:
        image = image.convert("RGBA")  # a way to grey that any mode has
    pixels = np.asarray(image.convert(("L" if grayscale else "RGB") + "A" * alpha))
    return Decoded(pixels.reshape(*pixels.shape[:2], -1), frozenset(done))


def _as_they_are(
    image: Image.Image, done: set[str], grayscale: bool, alpha: bool, dtype: str
) -> Decoded:
    """Floats, and integers of more than 16 bits or with a sign."""
    if dtype != "float32":
        kind = "signed integers" if of_pillow.is_signed(image) else "32 bits"
        raise ValueError(_NO_RANGE.format("floats" if image.mode == "F" else kind))
    signed = of_pillow.is_signed(image)
    numbers = np.asarray(ImageOps.exif_transpose(image))
    # Pillow has integers of 32 bits with a sign and those of 8 without, whatever they are.
    if numbers.dtype == np.int32 and not signed:
        numbers = numbers.view(np.uint32)
    elif numbers.dtype == np.uint8 and signed:
        numbers = numbers.view(np.int8)
    values = numbers.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds a NaN or an infinity")
    if (values.astype(np.float64) != numbers).any():
        raise ValueError("it holds integers that float32 has no numbers for")
    values = _coloured(values[..., None], grayscale)
    if alpha:
        values = np.dstack([values, np.ones_like(values[..., :1])])
    return Decoded(values, frozenset(done | {"as they are"}))


def _deep(
    image: Image.Image, opened: Callable[[], Image.Image]
) -> tuple[Array, Array | None] | None:
    """Returns values of 9 to 16 bits as 0..1, `[height, width, 1 or 3]`, and their opacity.

    It is `None` if Pillow has no way to decode them.
    """
    see_through = image.info.get("transparency")
    if image.mode.startswith("I"):
        largest, ink = of_pillow.largest_grey(image), of_pillow.white_is_zero(image)
        numbers = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)[..., None]
        values = (largest - numbers if ink else numbers) / largest
    else:
        tiles = of_pillow.tiles_of_colours(image)
        # A later frame of an animation is only what changes of the one before.
        if tiles is None or (image.format == "PNG" and image.tell()):
            return None
        *tiles_of_bytes, largest = tiles
        upper, lower = (_bytes(opened, tile) for tile in tiles_of_bytes)
        numbers = upper.astype(np.int64) * 256 + lower
        values = np.minimum(numbers, largest) / largest
    opacity = values[..., 3:] if values.shape[2] > 3 else None
    if see_through is not None and opacity is None:
        opacity = (numbers != np.asarray(see_through)).any(-1, keepdims=True).astype(float)
    return values[..., :3], opacity


def _bytes(opened: Callable[[], Image.Image], tiles: list[Any]) -> Array:
    image: Any = opened()
    with image:
        image.tile = tiles
        return np.asarray(ImageOps.exif_transpose(image))


def _coloured(values: Array, grayscale: bool) -> Array:
    if grayscale:
        return values if values.shape[2] == 1 else (values @ _LUMA)[..., None]
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values
