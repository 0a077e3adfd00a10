"""Rows of a table, of which some are for the run that may take longer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def rows(values: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """Return the parameters of a test, those in `slow` for `pytest -m slow` alone.

    Args:
        values: What the test is run for; a tuple holds several parameters.
        slow: Kin of one that is checked each time, which go through the same lines.
    """
    values = list(values)
    unknown = [value for value in slow if value not in values]
    assert not unknown, unknown
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        if value in slow
        else value
        for value in values
    ]
