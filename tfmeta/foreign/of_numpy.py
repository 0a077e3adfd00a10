"""Private names of NumPy."""

from __future__ import annotations

from typing import Any


def mapping_of(array: Any) -> Any:
    """Return the mapped file that a `np.memmap` views, or `None`; NumPy tells its name alone."""
    return getattr(array, "_mmap", None)
