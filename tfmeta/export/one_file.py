"""Where an export is a single file: it is written whole, and over nothing that was not meant."""

from __future__ import annotations

import os
from pathlib import Path

from tfmeta.files import replacing


def check_free_file(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise unless a file may be written to `path`.

    Raises:
        FileExistsError: If there is something, and it is no file or `overwrite` is false.
        OSError: If there is no folder for it.
    """
    if os.path.lexists(path) and not (overwrite and Path(path).is_file()):
        raise FileExistsError(
            f"`path` must be free; overwrite=True replaces a file. Received: path='{path}'"
        )
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise NotADirectoryError(
            f"`path` must lie in a folder that exists. Received: path='{path}'"
        )


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file beside `path` and rename it.

    Raises:
        OSError: If `path` cannot be written.
    """
    try:
        with replacing(path) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise OSError(
            error.errno, f"`path` must be writable ({error.strerror}). Received: path='{path}'"
        ) from error
