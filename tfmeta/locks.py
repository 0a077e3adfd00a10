"""One writer a folder: a lock that the living process holds, and that ends with it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".tfmeta.lock"
# By which a process that is started by the writer knows the lock that it has inherited.
INHERITED = "TFMETA_LOCK"
_HOLDER = re.compile(r"\d{1,10} on [\w.\-]{1,255}")


class Writer:
    """The one writer of a folder.

    Args:
        file: The lock's.
        descriptor: Of that file, open.
    """

    def __init__(self, file: Path, descriptor: int) -> None:
        self.folder = file.parent
        self._file = file
        self._descriptor = descriptor

    def check(self) -> None:
        """Raise unless the folder is still the one that this process writes to.

        Raises:
            FileNotFoundError: If it was removed, also where there is another of its name.
        """
        if not _same(self._descriptor, self._file):
            raise FileNotFoundError(
                f"'{self.folder}' was removed or replaced while this process wrote to it. Nothing "
                "more is saved there: put it back and use --resume, or start anew"
            )

    def environment(self) -> dict[str, str]:
        """Return the variable by which a process that inherits the descriptor may write too."""
        return {INHERITED: str(self._descriptor)}


@contextmanager
def one_writer(folder: str | os.PathLike[str], name: str = NAME) -> Iterator[Writer]:
    """Be the only process that writes to a folder, until the block ends or the process does.

    The lock is the operating system's, on a file in the folder, so that a process that was killed
    blocks nobody. The folder is made; where it was, and is empty at the end, it goes again.

    Args:
        folder: The folder.
        name: The lock's file, which goes at the end; another one for a single file of a folder.

    Yields:
        The writer, which can tell whether the folder is still there.

    Raises:
        BlockingIOError: If another process writes to the folder, or this one does already.
        OSError: If the folder cannot be written to.

    Example:
        ```python
        with one_writer("runs/glyphs") as writer:
            ...
            writer.check()
        ```
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    inherited = os.environ.get(INHERITED, "")
    file = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if inherited.isdigit() and _same(int(inherited), file):
            yield Writer(file, int(inherited))
            return
        descriptor = _locked(file)
        try:
            yield Writer(file, descriptor)
        finally:
            if _same(descriptor, file):
                with contextlib.suppress(OSError):
                    file.unlink()
            os.close(descriptor)
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # there is something in it
                path.rmdir()


def _same(descriptor: int, path: Path) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def _locked(path: Path) -> int:
    # Never through a link, nor waiting for the other end of a pipe, which a stranger's may be.
    how = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    while True:
        try:
            descriptor = os.open(path, how, 0o644)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _strange(path) from error
            raise OSError(
                error.errno, f"'{path.parent}' must be writable ({error.strerror})"
            ) from error
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
                raise _strange(path)
            _lock(descriptor, path.parent)
            # Who held it until now may have removed it.
            if _same(descriptor, path):
                # A disk that is full has no room for a name: to others it is "another process".
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, 0)
                    os.lseek(descriptor, 0, os.SEEK_SET)
                    os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _strange(path: Path) -> OSError:
    return OSError(
        f"'{path}' must be the file of a lock, which tfmeta makes. Received: a link, or no file; "
        "remove it"
    )


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            # Some disks of a network have no locks.
            logging.getLogger("tfmeta").warning(
                "'%s' cannot be locked (%s): that no other process writes there is not checked.",
                folder,
                error.strerror,
            )
            return
        os.lseek(descriptor, 0, os.SEEK_SET)
        held = os.read(descriptor, 300).decode(errors="replace")
        by = f"process {held}" if _HOLDER.fullmatch(held) else "another process"
        raise BlockingIOError(
            f"'{folder}' is being written to by {by}: wait for its end, or choose another folder"
        ) from error
