"""Files of states: written whole or not at all, and read only if they are whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from tfmeta.files import replacing
from tfmeta.types import Array

FORMAT = 1
_HEADER = re.compile(rb"tfmeta-state (\d{1,9}) ([0-9a-f]{64})\n")


class Damaged(Exception):  # noqa: N818
    """A file is not whole; the message says how that is known."""


def files_in(folder: Path) -> list[Path]:
    """Return the states in a folder, the newest last."""
    return sorted(folder.glob("state-*"))


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

    Raises:
        Damaged: If the file is not whole.
        ValueError: If it is of another version of this package.
    """
    data = path.read_bytes()
    header = _HEADER.match(data)
    if header is None:
        raise Damaged("it does not begin as a state does")
    body = memoryview(data)[header.end() :]
    if hashlib.sha256(body).hexdigest().encode() != header[2]:
        raise Damaged("its SHA-256 is wrong")
    if int(header[1]) != FORMAT:
        raise ValueError(
            f"'{path}' must be a state of format {FORMAT}, which this version of tfmeta reads. "
            f"Received: format {int(header[1])}, of another version"
        )
    end = data.index(b"\n", header.end()) + 1
    facts = json.loads(data[header.end() : end])
    arrays = []
    for shape, name in facts["arrays"]:
        dtype = np.dtype(name)
        count = math.prod(shape)
        arrays.append(np.frombuffer(data, dtype, count, end).reshape(shape))
        end += count * dtype.itemsize
    return facts, arrays
