"""Writing files so that none is ever seen half-written, and nothing half-written stays."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a folder of something unfinished is called, and nothing else: `tempfile` adds 8 characters.
_PREFIX = ".tfmeta-"
SCRATCH = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")
# What is written is called so in there, and what it replaces, while it does.
_NEW, _OLD = "new.", "old."


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, and rename it to `path` when the block ends well.

    Args:
        path: The file to write. Its suffix is kept, because Keras and matplotlib read the format
            from it.

    Yields:
        The path to write to, on the same disk.

    Raises:
        OSError: If there cannot be a file at `path`; the file that the error names is that one.

    Example:
        >>> with replacing("notes.txt") as beside:
        ...     beside.write_text("whole or not at all")
    """
    path = Path(path)
    with scratch(path) as folder:
        beside = folder / f"{_NEW}{path.name}"
        try:
            yield beside
            os.replace(beside, path)
        except OSError as error:
            # What fails in the middle of a file has no name, and the other is nobody's.
            if error.errno is None or str(error.filename or beside) != str(beside):
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder to fill, and rename it to `path` when the block ends well.

    What was at `path` is whole until then, and gone afterwards.

    Args:
        path: The folder to write; folders above it are made.

    Yields:
        The folder to fill, on the same disk.

    Raises:
        OSError: If there cannot be a folder at `path`.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with _writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(scratch(path))
            new = folder / f"{_NEW}{path.name}"
            new.mkdir()
        yield new
        with _writable(path):
            if os.path.lexists(path):
                path.rename(folder / f"{_OLD}{path.name}")
            new.rename(path)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(path, error.errno, error.strerror or str(error)) from error


def unwritable(path: str | os.PathLike[str], number: int | None, reason: str) -> OSError:
    """Return the error of an argument `path` that cannot be written.

    Args:
        path: The argument.
        number: The `errno`, if it is known.
        reason: What the system said.
    """
    words = f"`path` must be writable ({reason}). Received: path='{path}'"
    return OSError(words) if number is None else OSError(number, words)


@contextmanager
def scratch(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder beside `path` that is gone afterwards, whatever happens.

    Its name is no other's, and it is locked by this process for as long as that lives: the next one
    that writes there takes away what dead processes left, and what living ones write it lets be.

    Args:
        path: What is going to be written, on the same disk therefore.

    Yields:
        The folder.

    Raises:
        OSError: If it cannot be made; the file that the error names is `path`.
    """
    parent = Path(path).absolute().parent
    try:
        _clear(parent)
        folder, lock = _locked_folder(parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        yield folder
    finally:
        _remove(folder, lock)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        # Between the two another process may take it for a dead one's, and away.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            # Some network disks have no locks; there the dead are not told from the living.
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _clear(parent: Path) -> None:
    """Take away what dead processes left in a folder; where that is not allowed, let it be."""
    with contextlib.suppress(OSError):
        for name in filter(SCRATCH.fullmatch, os.listdir(parent)):
            with contextlib.suppress(OSError):
                lock = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os.close(lock)
                    continue
                _remove(parent / name, lock)


def _remove(folder: Path, lock: int) -> None:
    """Remove such a folder, after what was replaced is back where nothing has replaced it."""
    try:
        for name in os.listdir(folder) if folder.exists() else []:
            place = folder.parent / name.removeprefix(_OLD)
            if name.startswith(_OLD) and not os.path.lexists(place):
                try:
                    (folder / name).rename(place)
                except OSError as error:
                    kept = f"what was there is whole in '{folder / name}', and the next writer"
                    reason = f"{error.strerror or error}; {kept} puts it back"
                    raise unwritable(place, error.errno, reason) from error
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
