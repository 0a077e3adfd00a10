"""Errors of a disk, from Python or TensorFlow, in the words of this package."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

import tensorflow as tf

from tfmeta.files import unwritable


@contextlib.contextmanager
def writable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise what fails to be written while this is open as an `OSError` that names `path`.

    Raises:
        OSError: If something cannot be written.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if isinstance(error, OSError):
            number, reason = error.errno, error.strerror or str(error)
        else:
            number, reason = _said_by_system(error.message)
        raise unwritable(path, number, reason) from error


def _said_by_system(message: str) -> tuple[int | None, str]:
    """Return the number of an error and its words, of all that TensorFlow tells of itself too."""
    for number in errno.errorcode:
        if os.strerror(number) in message:
            return number, os.strerror(number)
    return None, message
