"""Writing files so that none is ever seen half-written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path beside `path` to write to, and rename it to `path` when the block ends well.

    Args:
        path: The file to write. Its suffix is kept, because Keras and matplotlib read the format
            from it.

    Yields:
        The path to write to.

    Example:
        >>> with replacing("notes.txt") as beside:
        ...     beside.write_text("whole or not at all")
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder beside `path` to fill, and rename it to `path` when the block ends well.

    What was at `path` is whole until then, and gone afterwards.

    Args:
        path: The folder to write; folders above it are made.

    Yields:
        The folder to fill.

    Raises:
        OSError: If there cannot be a folder at `path`.
    """
    path = Path(path)
    beside, before = (path.with_name(f".{path.name}.{os.getpid()}.{x}") for x in ("new", "old"))
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise OSError(
            error.errno, f"`path` must be writable ({error.strerror}). Received: path='{path}'"
        ) from error
    try:
        yield beside
        if path.exists():
            path.rename(before)
        beside.rename(path)
    finally:
        if before.exists() and not path.exists():
            before.rename(path)
        for folder in (beside, before):
            shutil.rmtree(folder, ignore_errors=True)
