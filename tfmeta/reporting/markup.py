"""HTML in which every text is escaped, but what is HTML already."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from typing import TypeAlias

# Elements that have no end.
_VOID = ("img", "meta", "br")


class Markup(str):
    """Text that is HTML, and is not escaped again."""

    __slots__ = ()


Child: TypeAlias = object
"""A `Markup`, anything else by its text, `None` for nothing, or a list of such."""


def visible(text: object) -> str:
    """Return a text with characters that have no shape, or that UTF-8 cannot spell, spelt out.

    Names of classes and files may hold control characters, marks that turn the direction of
    writing, and bytes that are no text; any of them would make a page say what it does not mean.

    Example:
        >>> visible("a\\x1bb")
        'a\\\\x1bb'
    """
    return "".join(c if _has_shape(c) else c.encode("unicode_escape").decode() for c in str(text))


def _has_shape(c: str) -> bool:
    # Spaces of other scripts, and what joins letters in some of them or keeps them apart.
    return c.isprintable() or c in "\n\t\u200c\u200d" or unicodedata.category(c) == "Zs"


def escape(text: object) -> Markup:
    """Return a text as HTML that shows it, safe in an element and in a quoted attribute."""
    return Markup(html.escape(visible(text), quote=True))


def join(*children: Child) -> Markup:
    """Return children one after another; see `Child`."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, list | tuple):
            parts.append(join(*child))
        elif child is not None:
            parts.append(escape(child))
    return Markup("".join(parts))


def tag(name: str, *children: Child, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: Of the element.
        *children: What is in it.
        **attributes: `None` leaves one out. A trailing underscore is dropped, as of `class_`, and
            others become hyphens.

    Example:
        >>> tag("p", "1 < 2", class_="note")
        '<p class="note">1 &lt; 2</p>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    start = f"<{name}{written}>"
    return Markup(start if name in _VOID else f"{start}{join(*children)}</{name}>")


def table(head: Sequence[Child], rows: Sequence[Sequence[Child]], **attributes: object) -> Markup:
    """Return a table that scrolls by itself where it is too wide; the first cell heads its row."""
    top = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head]))
    body = [
        tag("tr", tag("th", first, scope="row"), [tag("td", cell) for cell in rest])
        for first, *rest in rows
    ]
    return tag("div", tag("table", top, tag("tbody", body), **attributes), class_="scroll")
