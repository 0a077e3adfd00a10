"""Which classes have too few examples, in words that stay short however many there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SHOWN = 20


def small_classes(
    names: Sequence[str], offsets: npt.NDArray[np.int64], least: int
) -> list[tuple[str, int]]:
    """Returns the names and sizes of the classes with fewer examples than `least`.

    Args:
        names: Of all classes.
        offsets: Where each begins, and the end, as `ClassDataset.class_offsets`.
        least: How many are enough.
    """
    sizes = np.diff(offsets).tolist()
    return [(name, size) for name, size in zip(names, sizes, strict=True) if size < least]


def listed(classes: Sequence[tuple[str, int]]) -> str:
    """Returns names with sizes, of many the smallest."""
    shown = list(classes)
    if len(shown) > _SHOWN:
        shown = sorted(shown, key=lambda pair: pair[1])[:_SHOWN]
    text = ", ".join(f"{name} ({size})" for name, size in shown)
    return text + (f", ... and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else "")


def left_out(classes: Sequence[tuple[str, int]], least: int, what: str = "examples") -> str:
    """Returns what is said of classes that are left out."""
    number = f"{len(classes)} class{'es' * (len(classes) > 1)}"
    return f"Left out {number} of fewer than {least} {what}: {listed(classes)}"
