"""Where an export is a single file: it is written whole, and over nothing that was not meant."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tfmeta.export.writable import writable
from tfmeta.files import replacing


def check_free_file(
    path: str | os.PathLike[str], overwrite: bool, kind: str, begins: re.Pattern[bytes]
) -> None:
    """Raise unless a file may be written to `path`.

    Args:
        path: The file.
        overwrite: Whether a file of the same kind may be replaced.
        kind: What to call that.
        begins: How each of that kind begins.

    Raises:
        FileExistsError: If there is something, and it is no such file or `overwrite` is false. A
            link is never replaced.
        OSError: If there is no folder for it.
    """
    found = Path(path)
    own = found.is_file() and not found.is_symlink() and _is(found, begins)
    if os.path.lexists(found) and not (overwrite and own):
        raise FileExistsError(
            f"`path` must be free; overwrite=True replaces {kind}, and nothing else and no link. "
            f"Received: path='{path}'"
        )
    if not found.absolute().parent.is_dir():
        raise NotADirectoryError(
            f"`path` must lie in a folder that exists. Received: path='{path}'"
        )


def _is(file: Path, begins: re.Pattern[bytes]) -> bool:
    """Whether a file is of a kind, or empty."""
    with file.open("rb") as content:
        first = content.read(64)
    return not first or begins.match(first) is not None


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file beside `path` and rename it.

    Raises:
        OSError: If `path` cannot be written.
    """
    with writable(path), replacing(path) as beside:
        beside.write_bytes(content)
