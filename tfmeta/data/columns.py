"""Rows of numbers as they are given: arrays, data frames, sparse matrices; and as floats."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfmeta.data.gather import become_floats
from tfmeta.types import Array

_ROWS_AT_ONCE = 1 << 16  # of a table, that are looked at together
_OF_BYTES = {1: np.float32(1 / 255), 2: np.float32(1 / 65535)}


@dataclasses.dataclass(frozen=True)
class Rows:
    """One input of a table, or its targets.

    Attributes:
        values: An array `[rows, ...]`, or a matrix `[rows, columns]` of SciPy in CSR.
        columns: What its columns are called, or `None`.
    """

    values: Any
    columns: tuple[str, ...] | None

    def __len__(self) -> int:
        return int(self.values.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return tuple(self.values.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers."""
        dtype: np.dtype[Any] = self.values.dtype
        return dtype

    def take(self, rows: Array) -> Array:
        """Return some rows `[n, ...]`, dense."""
        taken = self.values[rows]
        return np.asarray(taken.toarray() if _is_sparse(taken) else taken)

    def column(self, place: tuple[int, ...]) -> str:
        """Return in words which number of a row is at a place."""
        if self.columns is not None and len(place) == 1:
            return f"column {self.columns[place[0]]!r}"
        return f"column {place[0] if len(place) == 1 else place}" if place else "its number"

    def not_finite(self) -> tuple[int, str] | None:
        """Return the first row with a NaN or an infinity and its column in words, if there is one.

        Files that are mapped into memory are not read for it.
        """
        values = self.values
        if self.dtype.kind != "f" or isinstance(values, np.memmap):
            return None
        if _is_sparse(values):
            stored = np.flatnonzero(~np.isfinite(values.data))
            if not stored.size:
                return None
            row = int(np.searchsorted(values.indptr, stored[0], "right")) - 1
            return row, self.column((int(values.indices[stored[0]]),))
        for start in range(0, len(self), _ROWS_AT_ONCE):
            bad = np.argwhere(~np.isfinite(values[start : start + _ROWS_AT_ONCE]))
            if len(bad):
                row, *place = map(int, bad[0])
                return start + row, self.column(tuple(place))
        return None


def rows_of(name: str, given: Any) -> Rows:
    """Return rows of numbers or texts, checked but for NaN.

    Args:
        name: What to call them.
        given: An array `[rows, ...]`, or what becomes one; `[rows]` is one number a row. Or a data
            frame, whose columns become floats, or a sparse matrix of SciPy.

    Raises:
        TypeError: They are neither numbers nor texts.
        ValueError: There are no rows, or nothing is in them.
    """
    columns = None
    if _is_sparse(given):
        values = given.tocsr()
    else:
        if hasattr(given, "columns") and hasattr(given, "to_numpy"):
            columns = tuple(str(column) for column in given.columns)
            given = _of_frame(name, given, columns)
        values = _array(name, given)
    if values.dtype.kind not in "biuf" and not _are_texts(values):
        raise TypeError(f"`{name}` must be numbers, or texts. Received: type {values.dtype}")
    if values.ndim == 1 and values.dtype.kind in "biuf":
        values = values[:, None]
    if 0 in values.shape:
        raise ValueError(
            f"`{name}` must have the shape [rows, ...], with one row at least and something in it. "
            f"Received: shape={tuple(values.shape)}"
        )
    return Rows(values, columns)


def targets_of(name: str, given: Any) -> Rows:
    """Return targets: float `[rows, outputs]`, or int32 `[rows]` for the numbers of classes.

    Args:
        name: What to call them.
        given: An array or a column of a data frame, `[rows]`, or for numbers `[rows, outputs]`.

    Raises:
        TypeError: They are no numbers.
        ValueError: Classes are negative, or there are several for a row.
    """
    columns = None
    if hasattr(given, "columns") and hasattr(given, "to_numpy"):
        columns = tuple(str(column) for column in given.columns)
    values = _array(name, given)
    if values.ndim == 0 or 0 in values.shape:
        raise ValueError(
            f"`{name}` must have a target for each row. Received: shape={values.shape}"
        )
    if values.dtype.kind == "f":
        return Rows(values[:, None] if values.ndim == 1 else values, columns)
    if values.dtype.kind not in "biu":
        raise TypeError(
            f"`{name}` must be floats, or integers for classes. Received: type {values.dtype}"
        )
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim > 1:
        raise ValueError(
            f"`{name}` must be one class for each row, or floats. Received: {values.dtype} of "
            f"shape {values.shape}"
        )
    if values.min() < 0 or values.max() >= 2**31:
        raise ValueError(
            f"`{name}` of integers must be the numbers of classes, 0 and on; numbers to predict "
            f"must be floats. Received: integers from {values.min()} to {values.max()}"
        )
    return Rows(values.astype(np.int32), columns)


def as_floats(taken: Array) -> Array:
    """Return floats as they are and images of integers between 0 and 1, as `EpisodeSampler` does.

    Args:
        taken: Rows `[n, ...]`.
    """
    if taken.dtype.kind != "f" and become_floats(taken):
        return taken.astype(np.float32) * _OF_BYTES[taken.dtype.itemsize]
    return taken


def _of_frame(name: str, frame: Any, columns: tuple[str, ...]) -> Array:
    values = _array(name, frame)
    if values.dtype.kind not in "biufO":  # dates, say, which NumPy would count without a word
        return values
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError):
        for number, column in enumerate(columns):
            try:
                values[:, number].astype(np.float64)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"`{name}` must be a data frame of numbers. Received: column {column!r}, where "
                    f"{error}"
                ) from None
        raise


def _array(name: str, given: Any) -> Array:
    if hasattr(given, "to_numpy"):
        given = given.to_numpy()
    try:
        values = given if isinstance(given, np.ndarray) else np.asarray(given)
    except ValueError as error:
        raise TypeError(
            f"`{name}` must be an array, or a list of rows of one shape. Received: a "
            f"{type(given).__name__} ({error})"
        ) from error
    if values.ndim == 0:
        raise TypeError(f"`{name}` must be an array of rows. Received: {name}={given!r}")
    return values


def _is_sparse(values: Any) -> bool:
    return hasattr(values, "tocsr") and hasattr(values, "toarray")


def _are_texts(values: Array) -> bool:
    if values.dtype.kind == "U":
        return True
    return values.dtype == object and all(isinstance(x, str) for x in values.ravel())
