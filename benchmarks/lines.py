"""Results in a file, a line of JSON each, written as they come: a program can go on from them."""

from __future__ import annotations

import json
import pathlib
from typing import Any


def read(file: pathlib.Path) -> list[dict[str, Any]]:
    """Return the results so far; a line that was cut off is none."""
    if not file.exists():
        return []
    results = []
    for line in file.read_text().splitlines():
        try:
            results.append(json.loads(line))
        except ValueError:
            continue
    return results


def add(file: pathlib.Path, result: dict[str, Any]) -> None:
    """Write one more, on a line of its own whatever the file ended with."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
    with file.open("a") as end:
        end.write(("" if whole else "\n") + json.dumps(result) + "\n")


def table(head: str, rows: list[list[str]]) -> None:
    """Print a table in Markdown, under names that are parted by bars."""
    if rows:
        names = head.split("|")
        print(f"\n|{head}|\n|{' --- |' * len(names)}")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows))
