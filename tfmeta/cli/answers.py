"""The answers of `tfmeta predict`: as text, as JSON or as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from tfmeta.classifier import Answer

    Writer: TypeAlias = Callable[[Sequence[Path], Sequence[Answer], bool], Iterator[str]]


def text(files: Sequence[Path], answers: Sequence[Answer], ranked: bool) -> Iterator[str]:
    """Yield a line for each image: file, class and probability, with tabs between.

    Args:
        files: The images.
        answers: One for each.
        ranked: Whether the likeliest classes and their probabilities follow.
    """
    for file, answer in zip(files, answers, strict=True):
        more = [(name, f"{p:.3f}") for name, p in answer.classes] if ranked else []
        cells = [str(file), answer.name, f"{answer.probability:.3f}", *(x for p in more for x in p)]
        yield "\t".join(cells)


def as_json(files: Sequence[Path], answers: Sequence[Answer], ranked: bool) -> Iterator[str]:
    """Yield the lines of an array with an object for each image.

    Args:
        files: The images.
        answers: One for each.
        ranked: Whether each has the likeliest classes and their probabilities.
    """
    last = len(files) - 1
    yield "["
    for i, (file, answer) in enumerate(zip(files, answers, strict=True)):
        found: dict[str, object] = {
            "file": str(file),
            "class": answer.name,
            "probability": answer.probability,
        }
        if ranked:
            found["classes"] = [{"class": name, "probability": p} for name, p in answer.classes]
        yield f"  {json.dumps(found)}{',' if i < last else ''}"
    yield "]"


def as_csv(files: Sequence[Path], answers: Sequence[Answer], ranked: bool) -> Iterator[str]:
    """Yield a line of names, and one for each image.

    Args:
        files: The images.
        answers: One for each.
        ranked: Whether the likeliest classes and their probabilities have columns.
    """
    most = len(answers[0].classes) if ranked else 0
    more = [f"{name}_{rank}" for rank in range(1, most + 1) for name in ("class", "probability")]
    yield _row(["file", "class", "probability", *more])
    for file, answer in zip(files, answers, strict=True):
        classes = [cell for pair in answer.classes[:most] for cell in pair]
        yield _row([str(file), answer.name, answer.probability, *classes])


WRITERS: Mapping[str, Writer] = {"text": text, "json": as_json, "csv": as_csv}


def _row(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
