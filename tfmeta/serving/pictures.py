"""Images as they come in requests: what is in them is checked before it is decoded."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tfmeta.classifier import unit_range
from tfmeta.data.images import FORMATS, read_image
from tfmeta.serving.limits import Limits, RefusedError, received
from tfmeta.types import Array


def decoded(texts: Sequence[Any], images: dict[str, Any], limits: Limits, of: str = "") -> Array:
    """Return images as what a learner's model takes, float32 `[n, height, width, channels]`.

    Args:
        texts: Files in base64.
        images: `size`, `grayscale` and `invert`, as for `read_image`.
        limits: How large an image may be.
        of: What they are of, for messages.

    Raises:
        RefusedError: If one is no image (415), too large (413), or damaged (422); it is named.
    """
    made = [
        _decoded(text, images, limits, f"Image {number}{of}")
        for number, text in enumerate(texts, start=1)
    ]
    return unit_range(np.stack(made))


def _decoded(text: Any, images: dict[str, Any], limits: Limits, name: str) -> Array:
    if not isinstance(text, str):
        raise RefusedError(422, f"{name} must be a text in base64.{received(text)}")
    try:
        file = io.BytesIO(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise RefusedError(
            422, f"{name} must be a text in base64 ({error}).{received(text)}"
        ) from error
    most = limits.max_megapixels * 10**6
    try:
        with Image.open(file, formats=FORMATS) as opened:
            width, height = opened.size
    except UnidentifiedImageError:
        raise RefusedError(
            415, f"{name} must be an image: {', '.join(FORMATS)}. Received: something else"
        ) from None
    # Pillow's own bounds are far above; of the lower one it warns, which may be an error.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RefusedError(
            413, f"{name} must have at most {most} pixels. Received: far more"
        ) from None
    # Pillow's decoders raise a dozen types (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise RefusedError(422, f"{name} is not a readable image ({error})") from error
    if width * height > most:
        raise RefusedError(
            413, f"{name} must have at most {most} pixels. Received: {width}x{height}"
        )
    file.seek(0)
    try:
        # What is lost nobody here could be told; it was said when the learner was trained.
        return read_image(file, **{"dtype": "uint8", "alpha": False, "page": 0, **images})
    except ValueError as error:
        why = error.__cause__ or error
        raise RefusedError(422, f"{name} is not a readable image ({why})") from error
