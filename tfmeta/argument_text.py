"""Arguments of learners as text: a value of the type that a constructor's signature says.

What comes of it is in terms of JSON, so that the settings of a run can hold it: numbers, words,
`true`, `false`, `null`, lists of numbers or words; and for an inner optimizer an object as
`{"rule": "adam", "learning_rate": 0.01}`.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tfmeta.choices import did_you_mean
from tfmeta.inner_optimizers import RULES, UpdateRule

_RULE = "rule"


def parsed(name: str, text: str, kind: Any) -> Any:
    """Return the value that a text stands for.

    Args:
        name: Of the argument, for the message.
        text: As somebody wrote it.
        kind: The type in the signature.

    Raises:
        ValueError: If it is no value of that type.

    Example:
        >>> parsed("inner_optimizer", "adam:learning_rate=0.01", UpdateRule | None)
        {'rule': 'adam', 'learning_rate': 0.01}
    """
    text = text.strip()
    kinds = _alternatives(kind)
    for one in kinds:
        found = _read(name, text, one)
        if found is not _NOTHING:
            return found
    known = [str(word) for one in kinds for word in _words_of(one)]
    raise ValueError(
        f"`{name}` must be {in_words(kind)}. Received: {name}={text!r}.{did_you_mean(text, known)}"
    )


def can_be_text(kind: Any) -> bool:
    """Return whether values of a type can be written as text, other than that there is none."""
    return any(one is not types.NoneType for one in _alternatives(kind))


def in_words(kind: Any) -> str:
    """Say what values of a type look like as text."""
    return " or ".join(_in_words(one) for one in _alternatives(kind))


def as_text(value: Any) -> str:
    """Return a default of a signature as it would be written."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(as_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def made(value: Any) -> Any:
    """Return what a constructor takes for a value that `parsed` returned."""
    if not isinstance(value, dict):
        return value
    options = dict(value)
    return RULES[options.pop(_RULE)](**options)


_NOTHING = object()


def _alternatives(kind: Any) -> list[Any]:
    """Return the types of a union that text can be read as; those that take fewest texts first."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = list(typing.get_args(kind)) if union else [kind]
    order = (types.NoneType, bool, int, float, UpdateRule, Literal, tuple, Sequence, str)
    known = [one for one in kinds if _sort_of(one) in order]
    return sorted(known, key=lambda one: order.index(_sort_of(one)))


def _sort_of(kind: Any) -> Any:
    return typing.get_origin(kind) or kind


def _words_of(kind: Any) -> Sequence[Any]:
    if _sort_of(kind) is Literal:
        return typing.get_args(kind)
    return list(RULES) if kind is UpdateRule else []


def _in_words(kind: Any) -> str:
    sort = _sort_of(kind)
    if sort is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if sort in (tuple, Sequence):
        sorts = typing.get_args(kind)
        several = f"{len(sorts)} " if sort is tuple else ""
        return several + ("words" if sorts[0] is str else "numbers") + " with commas between"
    if sort is UpdateRule:
        return f"one of {', '.join(RULES)}, as in adam:learning_rate=0.01,beta_1=0"
    simple = {
        types.NoneType: "none",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a word",
    }
    return simple[sort]


def _read(name: str, text: str, kind: Any) -> Any:
    """Return the value, or `_NOTHING` if the text is none of that type."""
    sort = _sort_of(kind)
    if sort is types.NoneType:
        return None if text.lower() == "none" else _NOTHING
    if sort is bool:
        return {"true": True, "false": False}.get(text.lower(), _NOTHING)
    if sort in (int, float):
        return _number(text, sort)
    if sort is Literal:
        return text if text in typing.get_args(kind) else _NOTHING
    if sort in (tuple, Sequence):
        return _several(text, kind, sort)
    if sort is UpdateRule:
        return _rule(name, text)
    return text or _NOTHING


def _number(text: str, sort: Callable[[str], Any]) -> Any:
    try:
        number = sort(text)
    except ValueError:
        return _NOTHING
    return number if math.isfinite(number) else _NOTHING


def _several(text: str, kind: Any, sort: Any) -> Any:
    """Return a list; a single word is none, for it may be a word that is meant as such."""
    if "," not in text:
        return _NOTHING
    sorts = typing.get_args(kind)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if sort is tuple and len(parts) != len(sorts):
        return _NOTHING
    found = [part if sorts[0] is str else _number(part, float) for part in parts]
    return _NOTHING if _NOTHING in found or not found else found


def _rule(name: str, text: str) -> Any:
    """Return a rule of `tfmeta.inner_optimizers` and its arguments."""
    rule, _, rest = text.partition(":")
    if rule not in RULES:
        return _NOTHING
    takes = inspect.signature(RULES[rule]).parameters
    found: dict[str, Any] = {_RULE: rule}
    for part in rest.split(",") if rest else []:
        option, sign, number = (x.strip() for x in part.partition("="))
        if option not in takes:
            raise ValueError(
                f"`{name}` must be {rule} with {', '.join(takes)}. Received: {name}={text!r}."
                f"{did_you_mean(option, takes)}"
            )
        found[option] = _number(number, float) if sign else _NOTHING
        if found[option] is _NOTHING:
            raise ValueError(
                f"`{name}` must have a number for {option}, as in {rule}:{option}=0.01. "
                f"Received: {name}={text!r}"
            )
    return found
