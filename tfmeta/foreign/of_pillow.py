"""What Pillow knows of a file before it decodes it, and how it decodes colours of 16 bits.

It has no mode for these: it decodes one of the two bytes of each number. Which one is written in
the description of the image's tiles, which Pillow's decoders are told.
"""

from __future__ import annotations

import sys
from typing import Any

_BITS, _SUBFILE, _PHOTOMETRIC, _PLANES, _EXTRA, _SAMPLE = 258, 254, 262, 284, 338, 339
# The order of bytes by which the other byte of a number is decoded; N is the machine's.
_OTHER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def bits(image: Any) -> int:
    """Return of how many bits the numbers of an image that is not loaded are: 8, 16, or 32."""
    if image.format == "TIFF":
        return min(n for n in (8, 16, 32, 64) if n >= max(_tag(image, _BITS, (1,))))
    if image.mode == "F":
        return 32
    mode, largest = _mode_and_largest(image)
    return 16 if image.mode.startswith("I") or ";16" in mode or largest > 255 else 8


def is_signed(image: Any) -> bool:
    """Return whether an image's integers have a sign, as those of some TIFF files have."""
    return image.format == "TIFF" and bool(max(_tag(image, _SAMPLE, (1,))) == 2)


def largest_grey(image: Any) -> int:
    """Return the largest number that is decoded of one channel of 16 bits, or of 12."""
    return 4095 if _mode_and_largest(image)[0] == "I;12" else 65535


def white_is_zero(image: Any) -> bool:
    """Return whether numbers of an image are ink; Pillow turns those of 8 bits over, no others."""
    return image.format == "TIFF" and bool(_tag(image, _PHOTOMETRIC, 1) == 0)


def has_more_channels(image: Any) -> bool:
    """Return whether there are channels beside the colours of which none is transparency."""
    return image.format == "TIFF" and 0 in _tag(image, _EXTRA, ())


def is_garbled(image: Any) -> bool:
    """Return whether Pillow would decode wrong numbers: of two bytes each, in planes."""
    planes = image.format == "TIFF" and _tag(image, _PLANES, 1) == 2
    return planes and len(image.getbands()) > 1 and bits(image) > 8


def is_beside(image: Any) -> bool:
    """Return whether a page of a TIFF file is a smaller copy of another, or a mask of it."""
    return image.format == "TIFF" and bool(_tag(image, _SUBFILE, 0) & 5)


def tiles_of_colours(image: Any) -> tuple[list[Any], list[Any], int] | None:
    """Return how the upper and the lower bytes of colours of 16 bits are decoded.

    Args:
        image: One that is not loaded.

    Returns:
        Two values for `image.tile`, and the largest number that the bytes together can be; or
        `None` if there is no such way.
    """
    (mode, largest), tiles = _mode_and_largest(image), image.tile
    if mode == "RGB" and largest > 255 and str(tiles[0][0]) == "ppm":
        mode, tiles = "RGB;16B", [("raw", *tile[1:3], "RGB;16B") for tile in tiles]
    colours, _, order = mode.partition(";16")
    if colours not in ("RGB", "RGBX", "RGBA") or order not in _OTHER:
        return None
    other = f"{colours};16{_OTHER[order]}"
    upper, lower = ([_of_mode(tile, chosen) for tile in tiles] for chosen in (mode, other))
    return upper, lower, largest or 65535


def _mode_and_largest(image: Any) -> tuple[str, int]:
    """Return how numbers lie in a file, and the largest where a file chooses it, or 0."""
    if not image.tile:
        return "", 0
    codec, _, _, args = image.tile[0]
    parts = args if isinstance(args, tuple) else (args,)
    chosen = str(codec).startswith("ppm") and len(parts) > 1
    return str(parts[0]), int(parts[1] or 0) if chosen else 0


def _of_mode(tile: Any, mode: str) -> Any:
    args = (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode
    # A plain tuple in older releases.
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _tag(image: Any, number: int, default: Any) -> Any:
    found = image.tag_v2.get(number, default)
    return (found,) if isinstance(default, tuple) and not isinstance(found, tuple) else found
