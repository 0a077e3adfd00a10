"""What tells that the files which something was made of have changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence

_SMALL = 64 << 20  # bytes of all files together that are quick to read each time


def fingerprint(files: Sequence[str], root: str | os.PathLike[str]) -> str:
    """Returns a digest of the names of files and of what is in them.

    Of files that are small together it is what they hold, so that it is the same wherever they
    lie; of others it is their sizes and times.

    Args:
        files: Their paths.
        root: The folder that names are relative to.

    Example:

    ```python
    before = fingerprint(["photos/cat/1.jpg"], "photos")
    ```
    """
    known = [_stat(file) for file in files]
    small = sum(found.st_size for found in known if found is not None) <= _SMALL
    digest = hashlib.sha256()
    for file, found in zip(files, known, strict=True):
        digest.update(os.fsencode(os.path.relpath(file, root)) + b"\0")
        if found is None:
            digest.update(b"unreadable\0")
            continue
        content = _content(file) if small else f"{found.st_mtime_ns}"
        digest.update(f"{found.st_size}\0{content}\0".encode())
    return digest.hexdigest()


def _stat(file: str) -> os.stat_result | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _content(file: str) -> str:
    try:
        with open(file, "rb") as opened:
            return hashlib.sha256(opened.read()).hexdigest()
    except OSError:
        return "unreadable"
