"""Checks of single arguments, for errors that say what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfmeta.choices import did_you_mean as did_you_mean


def check_positive(name: str, value: Any) -> None:
    """Raise unless `value` is a positive, finite number.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is zero, negative, infinite or NaN.
    """
    if not isinstance(value, int | float | np.number) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"`{name}` must be positive and finite. Received: {name}={value!r}")


def check_rates(name: str, value: Any) -> float | tuple[float, ...]:
    """Return step sizes as a number, or a tuple of one for each inner step.

    Raises:
        TypeError: If there is something else than numbers.
        ValueError: If there are none, or one is zero, negative, infinite or NaN.
    """
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
        check_positive(name, value)
        return float(value)
    if len(value) == 0:
        raise ValueError(f"`{name}` must have at least one number. Received: {name}={value!r}")
    for number in value:
        check_positive(name, number)
    return tuple(float(number) for number in value)


def check_at_least_zero(name: str, value: Any) -> None:
    """Raise unless `value` is a finite number that is not negative.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"`{name}` must be at least 0 and finite. Received: {name}={value!r}")


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return an integer of at least `least`, or raise an error that names it.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is less.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r}")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value!r}")
    return int(value)


def check_dict(name: str, value: Any, of: str, one: str) -> None:
    """Raise unless a value is a dict with something in it.

    Args:
        name: Name of the argument.
        value: Its value.
        of: What the dict holds, as in `"names and samplers"`.
        one: One of its values, as in `"sampler"`.

    Raises:
        TypeError: If it is no dict.
        ValueError: If it is empty.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"`{name}` must be a dict of {of}. Received: {name}={type(value).__name__}")
    if not value:
        raise ValueError(f"`{name}` must have at least one {one}. Received: {name}={{}}")


def check_size(size: Any) -> tuple[int, int] | None:
    """Return the size of images as `(height, width)`, and `None` where they keep their own.

    Raises:
        TypeError: If it is neither an integer nor a pair of them.
        ValueError: If a side is less than 1, or there are more or fewer than two.
    """
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    whole = all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in sides)
    if not whole or len(sides) != 2 or min(sides) < 1:
        error = ValueError if whole else TypeError
        raise error(
            f"`size` must be a positive integer or a pair (height, width). Received: size={size!r}"
        )
    return int(sides[0]), int(sides[1])
