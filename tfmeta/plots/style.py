"""What the pictures have in common: colours, texts that are not ours, and how they are written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeAlias

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from tfmeta.files import replacing

Path: TypeAlias = str | os.PathLike[str]

RIGHT, WRONG = "#1b7837", "#c51b2f"
BAR = "#4477aa"
# One for each of several series; those that share a colour differ in their marks.
SERIES = (BAR, "#ee6677", "#228833", "#aa3377", "#66ccee", "#ccbb44")
MARKS = "osD^vP*X"


def ink() -> str:
    """Return the colour of lines and letters, which `text.color` of matplotlib sets."""
    return str(matplotlib.rcParams["text.color"])


def plain(texts: Iterable[Text]) -> None:
    """Have a dollar sign in texts that are the user's mean a dollar, and no formula."""
    for text in texts:
        text.set_parse_math(False)


def short(text: str, most: int) -> str:
    """Return a text in one line of at most so many characters, without its middle if need be.

    Names of classes often begin alike.
    """
    line = " ".join(text.split()) or text
    start = most // 2
    return line if len(line) <= most else line[:start] + "…" + line[start + 1 - most :]


def saved(figure: Figure, path: Path | None) -> Figure:
    """Return a figure after it is written, if there is a path to write it to."""
    if path is not None:
        with replacing(path) as beside:
            figure.savefig(beside, dpi=120, bbox_inches="tight")
    return figure
