"""JSON that may be a stranger's: not longer, and not deeper, than what was written."""

from __future__ import annotations

import json
from typing import Any

# Deeper than anything that is written, and nothing that a reader of it could stumble over.
DEPTH = 64


def parsed(text: str | bytes, *, longest: int) -> Any:
    """Return what JSON says.

    Args:
        text: The JSON.
        longest: How long it may be.

    Raises:
        ValueError: If it is no JSON, longer, or nested deeper than `DEPTH`.

    Example:
        >>> parsed('{"ways": 5}', longest=100)
        {'ways': 5}
    """
    if len(text) > longest:
        raise ValueError(
            f"it must have at most {longest} characters of JSON. Received: {len(text)}"
        )
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it must be nested at most {DEPTH} deep. Received: deeper") from None
    level, depth = [value], 0
    while level:
        if depth > DEPTH:
            raise ValueError(f"it must be nested at most {DEPTH} deep. Received: deeper")
        inner = [x for each in level for x in _parts(each)]
        level, depth = [x for x in inner if isinstance(x, dict | list)], depth + 1
    return value


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def shown(value: Any) -> str:
    """Return a value for a message: escaped, and short however long it is."""
    text = ascii(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
