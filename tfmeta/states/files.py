"""Files of states: written whole or not at all, and read only if they are whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfmeta.bounded_json import parsed
from tfmeta.files import replacing
from tfmeta.states.facts import array_bytes, check_facts
from tfmeta.types import Array

FORMAT = 1
_HEADER = re.compile(rb"tfmeta-state (\d{1,9}) ([0-9a-f]{64})\n")
_NAME = re.compile(r"state-\d{12,18}")
# The line of facts grows with the number of variables and of epochs; this is some 50,000 of each.
_LONGEST = 2**25


class Damaged(Exception):  # noqa: N818
    """A file is not whole; the message says how that is known."""


def files_in(folder: Path) -> list[Path]:
    """Return the states in a folder, the newest last."""
    return sorted(path for path in folder.glob("state-*") if _NAME.fullmatch(path.name))


def write(path: Path, facts: dict[str, Any], arrays: list[Array]) -> None:
    """Write a state.

    Raises:
        OSError: If it cannot be written; the older ones are whole.
    """
    parts = [json.dumps(facts).encode() + b"\n", *(array.tobytes() for array in arrays)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    try:
        with replacing(path) as beside, beside.open("wb") as file:
            file.write(f"tfmeta-state {FORMAT} {digest.hexdigest()}\n".encode())
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or the new name might be lost with the power
        finally:
            os.close(folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The state '{path}' cannot be written ({error.strerror}); those before are whole",
        ) from error


def read(path: Path) -> tuple[dict[str, Any], list[Array]]:
    """Return the facts and the numbers of a state.

    Nothing is read before it is known how much there is to be read.

    Raises:
        Damaged: If the file is not whole, or no file.
        ValueError: If it is of another version of this package, or none that `write` wrote.
    """
    with _opened(path) as file:
        header = _HEADER.match(file.readline(100))
        if header is None:
            raise Damaged("it does not begin as a state does")
        if int(header[1]) != FORMAT:
            if _sum(file) != header[2].decode():
                raise Damaged("its SHA-256 is wrong")
            raise ValueError(
                f"'{path}' must be a state of format {FORMAT}, which this version of tfmeta reads. "
                f"Received: format {int(header[1])}, of another version"
            )
        line = file.readline(_LONGEST)
        if not line.endswith(b"\n"):
            raise Damaged("its first lines are cut, or too long")
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        facts, wrong = _facts(line)
        # Where the facts are wrong the sum tells whether that is damage, and needs no memory.
        if wrong is None and size - start != sum(map(array_bytes, facts["arrays"])):
            raise Damaged(f"it has {size - start} bytes of numbers, which is not what it says")
        if wrong is not None:
            file.seek(header.end())
            if _sum(file) == header[2].decode():
                raise ValueError(f"'{path}' must be a state as SaveState writes them. {wrong}")
            raise Damaged("its SHA-256 is wrong")
        try:
            numbers = file.read()
        except MemoryError as error:
            raise ValueError(f"'{path}' must fit in memory. Received: {size} bytes") from error
    if hashlib.sha256(line + numbers).hexdigest() != header[2].decode():
        raise Damaged("its SHA-256 is wrong")
    arrays, end = [], 0
    for shape, name in facts["arrays"]:
        count = array_bytes((shape, name)) // np.dtype(name).itemsize
        arrays.append(np.frombuffer(numbers, name, count, end).reshape(shape))
        end += array_bytes((shape, name))
    return facts, arrays


def _facts(line: bytes) -> tuple[dict[str, Any], str | None]:
    """Return the facts, and what is wrong with them if something is."""
    try:
        facts = parsed(line, longest=_LONGEST)
        check_facts(facts)
    except ValueError as error:
        return {}, str(error)
    return facts, None


def _opened(path: Path) -> BinaryIO:
    """Open a file, which must be one: neither a link nor a pipe, which would be waited for."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(descriptor, "rb")
    if path.is_symlink() or not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise Damaged("it is a link, or no file")
    return file


def _sum(file: BinaryIO) -> str:
    """Return the SHA-256 of what is left of a file."""
    digest = hashlib.sha256()
    while part := file.read(2**20):
        digest.update(part)
    return digest.hexdigest()
