"""Errors of a disk, from Python or TensorFlow, in the words of this package."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf


@contextlib.contextmanager
def writable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise what fails to be written while this is open as an `OSError` that names `path`.

    Raises:
        OSError: If something cannot be written.
    """
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error.message
        raise OSError(
            getattr(error, "errno", None),
            f"`path` must be writable ({reason}). Received: path='{path}'",
        ) from error
