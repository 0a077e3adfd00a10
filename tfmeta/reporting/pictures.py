"""Pictures inside a page: figures in its colours, light and dark, and examples as they are."""

from __future__ import annotations

import base64
import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from tfmeta.reporting.markup import Markup, tag, visible
from tfmeta.types import Array

# Stands for the colour of letters until the page says which that is; nothing else has it.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
    ),
    **{"legend.framealpha": 0.0, "legend.edgecolor": "none", "axes.facecolor": "none"},
    **{"figure.facecolor": "none", "savefig.facecolor": "none", "svg.fonttype": "none"},
    **{"font.family": "sans-serif", "axes.formatter.use_mathtext": False},
}
# An image of its own does not inherit the page's colours, and asks the reader's wish itself.
_COLOURS = (
    "<style>svg{color:#1c2024}text{font-family:system-ui,sans-serif!important}"
    "@media screen and (prefers-color-scheme:dark){svg{color:#e4e7eb}}</style>"
)
# How far a figure may be shrunk.
_LEAST = 0.72
# Pixels of a thumbnail at most.
_SIDE = 96
# The least side of a square of floats that is taken for an image.
_SMALLEST = 8


@contextlib.contextmanager
def page_style() -> Iterator[None]:
    """Have figures drawn, within the block, so that `figure_tag` can put them into a page."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Names of classes may be of any script: the reader's fonts show them, and not matplotlib's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def figure_tag(figure: Figure, alt: str) -> Markup:
    """Return a figure, drawn in `page_style`, as an image of the page.

    It is SVG in an `<img>`, where nothing in it can run or reach for anything.

    Args:
        figure: The figure.
        alt: What it shows, for who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # Control characters of names would be no XML.
    text = visible(buffer.getvalue())
    start = text.index("<svg")
    inside = text.index(">", start) + 1
    text = text[start:inside] + _COLOURS + text[inside:].replace(_INK, "currentColor")
    width = round(96 * figure.get_figwidth())
    # On a narrow screen it may shrink, as far as its letters can be read.
    least = f"min-width:{round(_LEAST * width)}px"
    return tag("img", src=_data("image/svg+xml", text.encode()), alt=alt, width=width, style=least)


def are_images(x: Any) -> bool:
    """Return whether examples `[n, ...]` can be looked at.

    They can with two axes and 1, 3 or 4 channels, or as squares of floats without channels.
    """
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fu":
        return False
    if x.ndim == 4:
        return x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 1
    return x.ndim == 3 and x.shape[1] == x.shape[2] >= _SMALLEST


def in_range(images: Array) -> Array:
    """Return images as uint8; those that do not lie in [0, 1] are stretched so that they do."""
    x = np.asarray(images, np.float64)
    if images.dtype.kind == "u":
        x = x / np.iinfo(images.dtype).max
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        x = (x - low) / max(high - low, 1e-12)
    return np.asarray(np.round(255 * x), np.uint8)


def thumbnail(image: Array, alt: str) -> Markup:
    """Return one image, uint8 `[height, width]` or with channels, as an image of the page."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    picture = Image.fromarray(image)
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    # Small drawings keep their pixels where they are enlarged.
    kind = "pixels" if max(picture.size) < 48 else None
    return tag("img", src=_data("image/png", buffer.getvalue()), alt=alt, class_=kind)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
