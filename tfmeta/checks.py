"""Checks of single arguments, for errors that say what was expected and what came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


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


def check_count(name: str, value: Any) -> None:
    """Raise unless `value` is an integer of at least 1.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is less than 1.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1. Received: {name}={value!r}")
