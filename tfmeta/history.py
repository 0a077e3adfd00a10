"""What training has logged, an epoch a row: read so that what is damaged is said by its line."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmeta.bounded_json import shown

# Bytes of a file, columns, and characters of a value: some million epochs.
_LARGEST, _COLUMNS, _LONGEST = 2**28, 1000, 1000


def read_history(path: Path) -> list[dict[str, str]]:
    """Return the rows of a history: `epoch`, which counts from 1 as on the screen, and numbers.

    Files of before did so from 0, and are returned as those that do so from 1.

    Args:
        path: The CSV file.

    Raises:
        ValueError: If it is damaged; file and line are named.

    Example:
        >>> read_history(Path("runs/glyphs/history.csv"))[0]["epoch"]
        '1'
    """

    def damaged(line: int, expected: str, received: object) -> ValueError:
        return ValueError(
            f"'{path}' is damaged: line {line} must have {expected}. Received: {shown(received)}"
        )

    if (size := path.stat().st_size) > _LARGEST:
        raise damaged(1, f"an end, in a file of at most {_LARGEST} bytes", f"{size} bytes")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise damaged(line, "UTF-8", error.object[error.start : error.end]) from error
    if "\0" in text or (text and not text.endswith("\n")):
        line = 1 + (text.partition("\0")[0] if "\0" in text else text).count("\n")
        raise damaged(line, "numbers, up to the end of the line", text.splitlines()[line - 1])
    rows: list[dict[str, str]] = []
    names: list[str] | None = None
    first = 1
    for line, content in enumerate(text.splitlines(), 1):
        try:
            (cells,) = csv.reader([content], strict=True)
        except (csv.Error, ValueError) as error:
            raise damaged(line, "values between commas", content) from error
        if names is None:
            if not _are_names(cells):
                raise damaged(line, "the names of columns, `epoch` the first", content)
            names = cells
            continue
        if len(cells) != len(names):
            raise damaged(line, f"{len(names)} values", content)
        if not rows and cells[0] == "0":
            first = 0
        if cells[0] != str(len(rows) + first):
            raise damaged(line, f"the number {len(rows) + first} of an epoch first", content)
        if not all(map(_is_number, cells)):
            raise damaged(line, "numbers", content)
        rows.append({**dict(zip(names, cells, strict=True)), "epoch": str(len(rows) + 1)})
    if names is None:
        raise damaged(1, "the names of columns, `epoch` the first", "")
    return rows


def _are_names(cells: list[str]) -> bool:
    return (
        cells[:1] == ["epoch"]
        and len(set(cells)) == len(cells) <= _COLUMNS
        and all(0 < len(name) <= _LONGEST and name.isprintable() for name in cells)
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return len(cell) <= _LONGEST and cell.isascii() and cell == cell.strip() and "_" not in cell


def as_keras_has_it(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the rows of a history as series, and epochs counted from 0 as Keras's `History` does.

    Args:
        rows: As `read_history` returns them.
    """
    if not rows:
        return {}
    series = {name: [float(row[name]) for row in rows] for name in rows[0]}
    return {**series, "epoch": [epoch - 1 for epoch in series["epoch"]]}
