"""SHA-256 of files, so that what is not what was written is known before it is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


def digests(path: Path, base: Path) -> dict[str, str]:
    """Return the SHA-256 of a file, or of all files below a folder.

    Args:
        path: The file or folder.
        base: A folder above.

    Returns:
        Hexadecimal digests by paths relative to `base`, with `/` between.
    """
    return {file.relative_to(base).as_posix(): sha256(file) for file in files_below(path)}


def files_below(path: Path) -> Iterator[Path]:
    """Return a file, or all files and links below a folder, in order."""
    if not path.is_dir():
        yield path
        return
    for folder, names, files in os.walk(path):
        names.sort()
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        yield from (Path(folder, name) for name in sorted([*files, *links]))


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()
