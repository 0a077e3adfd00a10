"""Memory maps of files, and how they go to another process: by the file's name, not its content."""

from __future__ import annotations

import os
from mmap import ALLOCATIONGRANULARITY
from typing import Any, Literal, NamedTuple

import numpy as np

from tfmeta.foreign.of_numpy import mapping_of
from tfmeta.types import Array

# What was written to maps of other modes is in no file.
_MODES: dict[str, Literal["r", "r+"]] = {"r": "r", "r+": "r+", "w+": "r+"}


def map_of(array: Any) -> Any:
    """Return the `np.memmap` that an array views and that shares its pages with a file, or `None`.

    Args:
        array: Any array.
    """
    while isinstance(array, np.ndarray):
        if mapping_of(array) is not None:
            return array if getattr(array, "mode", None) in _MODES else None
        array = array.base
    return None


class MappedFile(NamedTuple):
    """What stands for an array in a pickle that views a memory map."""

    path: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    mode: Literal["r", "r+"]
    size: int
    time: int | None  # in nanoseconds; of a map that nobody writes to


def packed(array: Any) -> Any:
    """Return what stands for an array in a pickle: a `MappedFile`, or the array itself.

    Args:
        array: Any array. One that is in memory, or in a file without a name, stands for itself.

    Raises:
        FileNotFoundError: The file of a memory map is gone.
    """
    map_ = map_of(array)
    if map_ is None or map_.filename is None:
        return array
    file = os.stat(map_.filename)
    # NumPy's `offset` is that of the map, also for a view of it; files are mapped in whole pages.
    begin = np.frombuffer(mapping_of(map_), np.uint8).ctypes.data
    offset = map_.offset - map_.offset % ALLOCATIONGRANULARITY + array.ctypes.data - begin
    time = file.st_mtime_ns if map_.mode == "r" else None
    path, mode = os.path.abspath(map_.filename), _MODES[map_.mode]
    return MappedFile(
        path, offset, array.shape, array.strides, array.dtype, mode, file.st_size, time
    )


def unpacked(stands: Any) -> Any:
    """Return the array that `packed` was given, mapped anew.

    Args:
        stands: What `packed` returned.

    Raises:
        FileNotFoundError: The file is not there.
        ValueError: The file has changed since.
    """
    if not isinstance(stands, MappedFile):
        return stands
    file = os.stat(stands.path)
    if file.st_size != stands.size or stands.time not in (None, file.st_mtime_ns):
        raise ValueError(
            "The file of a memory map must be as it was when the map was pickled, "
            f"{stands.size} bytes. Received: {stands.path!r}, which has changed since, with "
            f"{file.st_size} bytes"
        )
    whole = np.memmap(stands.path, np.uint8, stands.mode)
    array: Array = np.ndarray(stands.shape, stands.dtype, whole, stands.offset, stands.strides)
    return array.view(np.memmap)
