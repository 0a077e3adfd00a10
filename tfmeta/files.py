"""Writing files so that none is ever seen half-written."""

from __future__ import annotations

import os
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
