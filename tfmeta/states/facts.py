"""What a state says besides numbers, which may be a stranger's: every part is what it must be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tfmeta.bounded_json import shown

# All that variables and what callbacks count can be; with ml_dtypes NumPy knows `bfloat16`.
_TYPES = re.compile(
    r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)|bfloat16|float8_e4m3fn|float8_e5m2"
)
_PARTS = ("weights", "optimizer", "metrics")
_LARGEST = 2**53


def array_bytes(described: Any) -> int:
    """Return how many bytes an array has, of its shape and the name of its type."""
    shape, name = described
    size: int = math.prod(shape) * np.dtype(name).itemsize
    return size


def check_facts(facts: Any) -> None:
    """Raise a `ValueError` unless a state could say this."""
    if not isinstance(facts, dict):
        raise ValueError(f"It must say an object of JSON. Received: {shown(facts)}")
    for name, (check, expected) in _EXPECTED.items():
        if name not in facts or not check(facts[name]):
            raise ValueError(f"Its `{name}` must be {expected}. Received: {shown(facts.get(name))}")
    if unknown := facts.keys() - _EXPECTED.keys():
        raise ValueError(f"It must have no other fields. Received: {shown(sorted(unknown))}")
    epoch, done, steps = facts["epoch"], facts["step_of_epoch"], facts["steps"]
    if done > facts["step"] or (steps is not None and done >= steps and done):
        raise ValueError(
            f"Its `step_of_epoch` must be one of its `steps`. Received: {done} of {steps} in "
            f"epoch {epoch + 1}"
        )
    described = [of for part in facts["variables"].values() for of in part]
    for (_, shape, name), array in zip(described, facts["arrays"], strict=False):
        if array != [shape, name]:
            raise ValueError(
                "Its `arrays` must begin with those of `variables`. Received: "
                f"{shown(array)} for {shown([shape, name])}"
            )
    if len(facts["arrays"]) < len(described):
        raise ValueError(
            f"Its `arrays` must be at least {len(described)}, as many as `variables`. Received: "
            f"{len(facts['arrays'])}"
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 1000 and value.isprintable()


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(map(_is_count, value))
        and math.prod(value) < _LARGEST
        # NumPy refuses an array of nothing whose other axes are too long.
        and math.prod(x or 1 for x in value) < _LARGEST
    )


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and _TYPES.fullmatch(value) is not None


def _is_variable(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and _is_name(value[0])
        and _is_shape(value[1])
        and _is_type(value[2])
    )


def _are_variables(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and list(value) in (list(_PARTS), list(_PARTS[:2]))
        and all(isinstance(part, list) and all(map(_is_variable, part)) for part in value.values())
    )


def _are_callbacks(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(saved, dict)
        and saved.keys() == {"class", "changed"}
        and _is_name(saved["class"])
        and isinstance(saved["changed"], dict)
        and all(_is_name(name) for name in saved["changed"])
        for saved in value
    )


def _are_arrays(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(array, list) and len(array) == 2 and _is_shape(array[0]) and _is_type(array[1])
        for array in value
    )


_COUNT = f"an integer of at least 0 and less than {_LARGEST}"
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_is_count, _COUNT),
    "epoch": (_is_count, _COUNT),
    "step_of_epoch": (_is_count, _COUNT),
    "steps": (lambda x: x is None or (_is_count(x) and x > 0), f"{_COUNT} and not 0, or null"),
    "stopped": (lambda x: isinstance(x, bool), "true or false"),
    "settings": (
        lambda x: isinstance(x, dict) and all(map(_is_name, x)),
        "an object with names of settings",
    ),
    "variables": (
        _are_variables,
        f"an object of {', '.join(_PARTS)}, each a list of path, shape and type",
    ),
    "callbacks": (_are_callbacks, "a list of objects with `class` and `changed`"),
    "arrays": (_are_arrays, "a list of shape and type"),
}
