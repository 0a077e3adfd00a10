"""Single examples: images as they are, anything else by its text or its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfmeta.reporting.markup import Markup, tag
from tfmeta.reporting.pictures import are_images, in_range, thumbnail

_LONGEST_TEXT = 160
_MOST_NUMBERS = 6


class Examples:
    """Shows the examples of an episode.

    Args:
        inputs: The episode's, with an axis of one task.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self._parts = {name: inputs[name] for name in ("support_x", "query_x")}
        several = any(isinstance(x, Mapping | list | tuple) for x in self._parts.values())
        if not several:
            self._parts = {name: np.asarray(x)[0] for name, x in self._parts.items()}
        self.images = not several and all(are_images(x) for x in self._parts.values())
        self._several = several
        if self.images:
            # Both by one scale, or a query would look unlike the support that it is like.
            sizes = [len(x) for x in self._parts.values()]
            every = in_range(np.concatenate(list(self._parts.values())))
            cut = np.split(every, [sizes[0]])
            self._parts = dict(zip(self._parts, cut, strict=True))

    def show(self, part: str, i: int, alt: str) -> Markup:
        """Return example number `i` of `"support_x"` or `"query_x"`."""
        if self.images:
            return thumbnail(self._parts[part][i], alt)
        if self._several:
            return tag("div", "of several parts", class_="text")
        return tag("div", described(self._parts[part][i]), class_="text")


def described(x: Any) -> str:
    """Return an example that is no image as a short text."""
    values = np.asarray(x)
    if values.ndim == 0 and values.dtype.kind not in "fiub":
        text = x.decode("utf-8", "backslashreplace") if isinstance(x, bytes) else str(x)
        line = " ".join(text.split())
        return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"
    flat = values.ravel()
    digits = "{:.3g}" if values.dtype.kind == "f" else "{}"
    some = ", ".join(digits.format(v) for v in flat[:_MOST_NUMBERS])
    return some if flat.size <= _MOST_NUMBERS else f"{some}, … ({flat.size} numbers)"


def tile(
    content: Iterable[object], captions: Iterable[object], wrong: bool | None = None
) -> Markup:
    """Return an example with what is said of it below.

    Args:
        content: What is shown.
        captions: Lines.
        wrong: Whether an answer is wrong; `None` where there is none.
    """
    kind = "tile" if wrong is None else "tile wrong" if wrong else "tile right"
    lines = [tag("span", line) for line in captions]
    return tag("div", tag("div", *content, class_="shown"), *lines, class_=kind)
