"""Several arrays that are seen as one, such as the files of a folder."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tfmeta.data.maps import packed, unpacked
from tfmeta.digests import digests
from tfmeta.types import Array

# The list that `sha256sum *.npy > SHA256SUMS` writes. A line is a digest, a mark of how the file
# was read, and its name; this is some 100,000 of them.
_LIST, _LONGEST = "SHA256SUMS", 2**24
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/]+)")


class Shards:
    """Arrays one after another along the first axis, each where it lies.

    A `ClassDataset` takes it in the place of one array; examples are gathered from the shards
    themselves, which are never put together.

    Args:
        source: A folder, whose files `*.npy` are mapped into memory in sorted order of their names;
            or arrays, `np.memmap` among them, `[n_i, ...]`.
        verify: Whether the files are read once as a whole, to compare them with their SHA-256 in
            the folder's file `SHA256SUMS`, as `sha256sum *.npy > SHA256SUMS` writes it. A file of
            NumPy has no sum of its own: without this, its length and type are all that is checked.

    Attributes:
        arrays: A tuple.
        shape: `(n, ...)` with n the sum of all `n_i`.
        dtype: The type of the numbers.

    Raises:
        FileNotFoundError: A folder is not there or has no such files, or none of their digests.
        TypeError: There are other things than arrays of numbers.
        ValueError: A file is not what its digest is of, is missing, is damaged, or longer or
            shorter than it says; shards are empty, not contiguous, have no axis for what makes up
            an example, or differ in type or shape.

    Example:
        >>> import numpy as np
        >>> Shards([np.zeros([2, 9, 9], np.uint8), np.ones([3, 9, 9], np.uint8)])
        Shards(2 arrays, shape=(5, 9, 9), dtype=uint8)
    """

    def __init__(
        self, source: str | os.PathLike[str] | Iterable[Array], verify: bool = False
    ) -> None:
        if isinstance(source, str | os.PathLike):
            files = sorted(Path(source).glob("*.npy"))
            if not files:
                raise FileNotFoundError(
                    f"`source` must be a folder with files *.npy. Received: source={str(source)!r}"
                )
            if verify:
                _check_sums(Path(source), {file.name for file in files})
            self.arrays: tuple[Array, ...] = tuple(map(_mapped, files))
            names = [repr(str(file)) for file in files]
        elif verify:
            raise ValueError(
                "`source` must be a folder where verify=True. Received: "
                f"source of type {type(source).__name__}"
            )
        else:
            self.arrays = tuple(source)
            names = [f"source[{i}]" for i in range(len(self.arrays))]
        for name, array in zip(names, self.arrays, strict=True):
            _check(name, array, names[0], self.arrays[0])
        if not self.arrays:
            raise ValueError("`source` must hold at least one array. Received: none")
        self._offsets = np.cumsum([0, *map(len, self.arrays)])
        self.dtype = self.arrays[0].dtype
        self.shape: tuple[int, ...] = (int(self._offsets[-1]), *self.arrays[0].shape[1:])

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all numbers."""
        return sum(array.nbytes for array in self.arrays)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        """Returns a copy of some examples.

        Args:
            index: An integer, a slice or an array of integers; negative ones count from the end.
        """
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        numbers = np.asarray(index)
        if numbers.dtype.kind not in "iu":
            raise TypeError(f"`index` must be integers or a slice. Received: {index!r}")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if ((numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"`index` must be within {len(self)} examples. Received: {index!r}")
        taken = np.empty([*numbers.shape, *self.shape[1:]], self.dtype)
        shards = np.searchsorted(self._offsets, numbers, "right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            taken[here] = self.arrays[shard][numbers[here] - self._offsets[shard]]
        return taken

    def __getstate__(self) -> dict[str, Any]:
        """In a pickle a memory map is the name of its file."""
        return {**self.__dict__, "arrays": tuple(map(packed, self.arrays))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "arrays": tuple(map(unpacked, state["arrays"]))})

    def __repr__(self) -> str:
        return f"Shards({len(self.arrays)} arrays, shape={self.shape}, dtype={self.dtype})"


def _mapped(file: Path) -> Array:
    """Return a file of NumPy as a memory map, if it holds as much as it says."""
    try:
        if not file.is_file():
            raise ValueError("it is no file")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a header that is not as NumPy writes it
            array = np.lib.format.open_memmap(file, mode="r")
        said = array.offset + array.nbytes
        if said != file.stat().st_size:
            raise ValueError(f"{file.stat().st_size} bytes, where its header says {said}")
    # What reads the header raises a dozen types (ValueError, SyntaxError, EOFError, ...).
    except Exception as error:
        raise ValueError(
            f"`source` must hold whole files *.npy. Received: {str(file)!r} ({error})"
        ) from error
    return array


def _check_sums(folder: Path, names: set[str]) -> None:
    """Raise unless a folder has the files of its list and no others, with the same digests."""
    file = folder / _LIST
    if not file.is_file():
        raise FileNotFoundError(
            f"`source` must hold the file {_LIST} where verify=True; `sha256sum *.npy > {_LIST}` "
            f"in the folder writes it. Received: source='{folder}'"
        )
    text = file.read_bytes()[:_LONGEST].decode(errors="surrogateescape")
    lines = [_LINE.fullmatch(line) for line in text.splitlines()]
    listed = {line[2]: line[1] for line in lines if line is not None}
    if len(listed) != len(lines) or file.stat().st_size > _LONGEST:
        raise ValueError(
            f"`source` must hold a list of digests as sha256sum writes it. Received: '{file}' with "
            f"{len(lines)} lines, of which {len(listed)} are a digest and a name of their own"
        )
    for name in sorted({*listed, *names}):
        if name not in names:
            wrong = "it is in the list, and not among the files *.npy"
        elif name not in listed:
            wrong = "it is not in the list"
        elif listed[name] != digests(folder / name, folder)[name]:
            wrong = "its SHA-256 is another one: it is damaged, or was changed"
        else:
            continue
        raise ValueError(
            f"`source` must hold the files of its list {_LIST}. Received: "
            f"{str(folder / name)!r} ({wrong})"
        )


def _check(name: str, array: Any, of_first: str, first: Any) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        received = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"`source` must be arrays of numbers. Received: {name} of type {received}")
    if array.ndim < 2 or 0 in array.shape or not array.flags.c_contiguous:
        raise ValueError(
            "`source` must be contiguous arrays [examples, ...] of at least one example each. "
            f"Received: {name} of shape {array.shape}, strides {array.strides}"
        )
    if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
        raise ValueError(
            "`source` must be arrays of one type, whose examples have one shape. Received: "
            f"{of_first} of {first.dtype} {first.shape} and {name} of {array.dtype} {array.shape}"
        )
