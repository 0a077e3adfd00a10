"""Published divisions into classes, by the names of the classes.

The names are facts, kept in `class_splits.json` with the paper that they are of. A folder of one's
own may spell them another way: case, blanks, hyphens and underscores, a number in front
(`001.Black_footed_Albatross`) and what is in brackets do not count.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfmeta.checks import did_you_mean

PARTS = ("train", "validation", "test")
_NAMED_AT_MOST = 8

ClassLists = dict[str, list[str]]


def class_lists(name: str, split: str) -> ClassLists:
    """Return the classes of each part.

    Args:
        name: That of the data set.
        split: That of the division.
    """
    of = _tables()[name][split]
    return {part: list(of[part]) for part in PARTS}


def source_of(name: str, split: str) -> str:
    """Return whose division it is, in words."""
    return str(_tables()[name][split]["of"])


def check_split(name: str, split: Any, known: Sequence[str]) -> str:
    """Return a division by name, the first known one for `None`, or raise an error.

    Raises:
        ValueError: If the data set has no such division.
    """
    if split is None:
        return known[0]
    if split not in known:
        raise ValueError(
            f"`split` must be one of {', '.join(map(repr, known))} for {name!r}. "
            f"Received: split={split!r}.{did_you_mean(split, known)}"
        )
    return str(split)


def plain(name: str) -> str:
    """Return a name of a class without what may be spelled in several ways.

    Example:
        >>> plain("001.Black_footed_Albatross") == plain("black-footed albatross")
        True
    """
    name = re.sub(r"\(.*?\)", "", name.casefold()).strip()
    if name.isdecimal():
        return str(int(name))
    return "".join(c for c in re.sub(r"^\d+\.", "", name) if c.isalnum())


def published_names(found: Sequence[str], lists: ClassLists, where: str) -> dict[str, str]:
    """Return which class of a division each name is that was found, for those that are one.

    Args:
        found: Names of classes, as a folder or TensorFlow Datasets spells them.
        lists: The classes of each part.
        where: What they were found in and of what, for the error.

    Raises:
        ValueError: If a class of the division is missing, or is there twice.
    """
    classes = [name for part in PARTS for name in lists[part]]
    # Of classes that are numbers a folder may say in words what they are: `00.Speed limit`.
    key_of = _number if all(name.isdecimal() for name in classes) else plain
    wanted = {key_of(name): name for name in classes}
    known: dict[str, str] = {}
    for name in found:
        key = key_of(name)
        other = known.setdefault(key, name)
        if other != name and key in wanted:
            raise ValueError(
                f"{where} must have each class once. Received: {other!r} and {name!r}, which are "
                f"both {wanted[key]!r}"
            )
    missing = [name for key, name in wanted.items() if key not in known]
    if missing:
        others = [name for key, name in known.items() if key not in wanted]
        unknown = f"; unknown to it are {some(others)}" if others else ""
        raise ValueError(
            f"{where} must have all {len(wanted)} classes of the split. Received: "
            f"{len(missing)} are missing, {some(missing)}{unknown}"
        )
    return {known[key]: name for key, name in wanted.items()}


def _number(name: str) -> str:
    number = re.match(r"\d+", name)
    return str(int(number[0])) if number else plain(name)


def some(names: Sequence[str]) -> str:
    """Return the first of many names, and how many more there are."""
    rest = len(names) - _NAMED_AT_MOST
    text = ", ".join(map(repr, names[:_NAMED_AT_MOST]))
    return text + (f" and {rest} more" if rest > 0 else "")


@functools.cache
def _tables() -> dict[str, Any]:
    text = Path(__file__).with_name("class_splits.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables
