"""Checks that failed in a graph, in words."""

from __future__ import annotations

import re
from typing import Any


def readable(error: Any, where: str = "") -> Any:
    """Return a failed check of a graph as a `ValueError` with its words, if it is known."""
    for line in error.message.splitlines():
        # An assertion's data stand between brackets.
        words = line.strip().replace("[", "").replace("]", "")
        for beginning in (
            "The support loss must be finite",
            "The quadratic program of each task must be solved",
            "`ways` must be at most",
        ):
            if beginning in words:
                return ValueError(beginning + words.split(beginning, 1)[1] + where)
    if found := re.search(r"= (-?\d+) is not in \[0, (\d+)\)", error.message):
        return ValueError(
            f"Ids must be from 0 to {int(found[2]) - 1}, where what they are looked up in (the "
            f"table of an Embedding, class weights) has {found[2]} rows. Received: {found[1]}"
            f"{where}"
        )
    if found := re.search(r"label value of (-?\d+) .* valid range of \[0, (\d+)\)", error.message):
        return ValueError(
            f"Labels must be the class numbers 0..{int(found[2]) - 1}. Received: {found[1]}{where}"
        )
    if "Cholesky decomposition was not successful" in error.message:
        return ValueError(
            "`encoder` must return finite numbers, for what is computed of them is no matrix that "
            f"can be solved with. Received: NaN, infinite or too large numbers{where}"
        )
    return error
