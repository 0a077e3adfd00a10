"""The folder of a cache: whose it is, who may write to it, and whether its files are whole.

Nothing in it is believed because it is there. A folder is a cache by a mark with a content of its
own; a note has a digest of itself, and tells lengths and digests of the other files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tfmeta.types import Array

FORMAT = 2
HEADER = 256  # bytes in front of the numbers of an array; its shape is only known in the end
_MARK = b"What is beside this file is a cache of tfmeta, which removes it and makes it anew.\n"
_SMALL = 64 << 20  # bytes that are quick to read each time
_BLOCK = 1 << 20


class CacheFiles:
    """The files of a cache.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder / ".tfmeta-cache"
        self.examples = folder / "examples.npy"
        self.labels = folder / "labels.npy"
        self.about = folder / "cache.json"  # the last one to be written
        # Of a cache that is not finished.
        self.spelled = folder / "labels.jsonl"
        self.progress = folder / "progress.json"

    def refuse_others(self) -> None:
        """Raise a `FileExistsError` if what is there is no cache."""
        if os.path.lexists(self.folder) and not self._ours():
            raise FileExistsError(
                f"'{self.folder}' exists and is no cache; nothing is changed. Choose another path, "
                "or delete it yourself, also where it is the cache of an older version"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all others from writing; a process that dies lets go by that."""
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            with _open(self.mark, "r+b", os.O_CREAT) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _is(self.mark, file):
                    continue  # the folder was deleted while this process waited
                self.refuse_others()
                if file.read() != _MARK:
                    self._put_mark()
                yield
                return

    def _put_mark(self) -> None:
        with naming(self.mark), _open(self.mark, "r+b") as file:
            file.write(_MARK)
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Remove what caches write, the note that makes it a cache first."""
        for file in (self.about, self.progress, self.spelled, self.labels, self.examples):
            file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a process left behind that was killed."""
        for file in self.leftovers():
            file.unlink(missing_ok=True)

    def leftovers(self) -> list[Path]:
        """What is of no use any more."""
        left = [_beside(file) for file in (self.about, self.progress, self.labels)]
        if self.about.exists():
            left += [self.progress, self.spelled]
        return [file for file in left if os.path.lexists(file)]

    def _ours(self) -> bool:
        if not self.folder.is_dir():
            return False
        beside = [name for name in os.listdir(self.folder) if name != self.mark.name]
        if not os.path.lexists(self.mark):
            return not beside
        try:
            content = read_whole(self.mark, len(_MARK) + 1)
        except (ValueError, OSError):
            return False
        # One that was killed when it had just begun left a part of the mark, and nothing else.
        return content == _MARK or (_MARK.startswith(content) and not beside)


class DamagedError(ValueError):
    """A file is not as it was written."""

    def __init__(self, file: Path, reason: object) -> None:
        super().__init__(f"'{file}' is damaged ({reason}); overwrite=True makes the cache anew")
        self.file = file
        self.reason = reason


def put(file: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all; only one process may do so at once."""
    beside = _beside(file)
    beside.unlink(missing_ok=True)
    with naming(file), beside.open("xb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(beside, file)


def put_note(file: Path, content: dict[str, Any]) -> None:
    """Write a note with a digest of itself."""
    put(file, json.dumps({"sha256": _digest(content), **content}).encode())


def read_note(file: Path) -> dict[str, Any]:
    """Return what `put_note` has written, or raise a `DamagedError`."""
    try:
        note = json.loads(read_whole(file))
        if not isinstance(note, dict):
            raise ValueError(f"a {type(note).__name__}")
        if note.get("format") != FORMAT:
            raise ValueError(
                f"or of another version: format {note.get('format')!r}, this version has {FORMAT}"
            )
        if note.pop("sha256", None) != _digest(note):
            raise ValueError("its digest is another")
    except (ValueError, RecursionError) as error:
        raise DamagedError(file, error) from error
    return note


def read_whole(file: Path, most: int = -1) -> bytes:
    """Return what is in a file, at most so many bytes; a link or a pipe is a `ValueError`."""
    with _open(file, "rb") as opened:
        content: bytes = opened.read(most)
    return content


def array_bytes(values: Array) -> bytes:
    """Return an array as the content of a file of NumPy."""
    return header(values.shape, values.dtype.str) + values.tobytes()


def header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return what is in front of the numbers in a file of NumPy, of a length that is always one."""
    fields = str({"descr": dtype, "fortran_order": False, "shape": shape})
    length = HEADER - 10
    return (
        b"\x93NUMPY\x01\x00"
        + length.to_bytes(2, "little")
        + fields.ljust(length - 1).encode()
        + b"\n"
    )


def read_array(file: Path, shape: tuple[int, ...], dtype: str, digest: str) -> Array:
    """Return a memory map of an array that is as it was written, or raise a `DamagedError`.

    Args:
        file: The file.
        shape, dtype: What it was.
        digest: The SHA-256 of its numbers.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        with _open(file, "rb") as opened:
            found = os.fstat(opened.fileno())
            if found.st_size != HEADER + size:
                raise ValueError(f"{found.st_size} bytes, where {HEADER + size} were written")
            if opened.read(HEADER) != header(shape, dtype):
                raise ValueError(f"its header is not that of {dtype} {shape}")
            sealed = found.st_mtime_ns == _seal(digest)
            if size <= _SMALL or not sealed:
                if hash_of(opened, size).hexdigest() != digest:
                    raise ValueError("its numbers have changed")
                # A copy is not read as a whole again, where its time can be set.
                with contextlib.suppress(OSError):
                    if not sealed:
                        os.utime(file, ns=(found.st_atime_ns, _seal(digest)))
            # Of the file that was looked at, whatever has that name by now.
            return np.memmap(opened, dtype, "r", HEADER, shape)
    except (ValueError, OSError) as error:
        raise DamagedError(file, error) from error


class Appended:
    """A file that grows; what is in it is known by a length and a digest.

    Args:
        file: The file.
        start: How many bytes in front are left free.
        noted: What `note` returned last; `None` begins a new file.

    Raises:
        DamagedError: The file does not begin with what was noted.
    """

    def __init__(self, file: Path, start: int, noted: dict[str, Any] | None) -> None:
        self.path = file
        self.start = start
        self.size = 0
        self.digest = hashlib.sha256()
        if noted is None:
            file.unlink(missing_ok=True)
            self.file: BinaryIO = file.open("xb")
            with naming(file):
                self.file.write(bytes(start))
            return
        try:
            self.file = _open(file, "r+b")
            try:
                self._go_on(noted)
            except BaseException:
                self.file.close()
                raise
        except (ValueError, OSError) as error:
            raise DamagedError(file, error) from error

    def _go_on(self, noted: dict[str, Any]) -> None:
        size, digest = noted["bytes"], noted["sha256"]
        there = os.fstat(self.file.fileno()).st_size
        # Cut off what came after the note, but never put zeros in the place of what is missing.
        if there < self.start + size:
            raise ValueError(f"{there} bytes, where {self.start + size} were written")
        self.file.seek(self.start)
        self.digest = hash_of(self.file, size)
        if self.digest.hexdigest() != digest:
            raise ValueError("what was written has changed")
        self.file.truncate(self.start + size)
        self.file.seek(self.start + size)
        self.size = size

    def write(self, content: bytes) -> None:
        """Append."""
        with naming(self.path):
            self.file.write(content)
        self.digest.update(content)
        self.size += len(content)

    def note(self) -> dict[str, Any]:
        """Return length and digest of what is safely on the disk."""
        with naming(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
        return {"bytes": self.size, "sha256": self.digest.hexdigest()}

    def finish(self, front: bytes) -> str:
        """Write what comes in front, seal the file, and return the digest of what comes after."""
        digest = self.digest.hexdigest()
        with naming(self.path):
            self.file.flush()
            if os.pwrite(self.file.fileno(), front, 0) < len(front):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self.file.fileno())
            os.utime(self.file.fileno(), ns=(time.time_ns(), _seal(digest)))
        return digest

    def __enter__(self) -> Appended:
        return self

    def __exit__(self, *_: object) -> None:
        with naming(self.path):
            self.file.close()


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Have an error of the disk tell the file, which that of a write does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def hash_of(file: BinaryIO, size: int) -> Any:
    """Return the SHA-256 of the next bytes of a file."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest


def sha256(content: bytes) -> str:
    """Return a digest as it stands in notes."""
    return hashlib.sha256(content).hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())


def _seal(digest: str) -> int:
    """Return the time that a large file of this digest is given, in nanoseconds.

    Whoever writes to it, or puts another file in its place, changes the time; as long as it is
    this one, the file need not be read to know it. It is told by the content, so that a cache is
    the same whenever it is made, and in whole pairs of seconds, which all file systems keep.
    """
    return int(digest[:7], 16) * 2 * 10**9


def _beside(file: Path) -> Path:
    return file.with_name(file.name + ".new")


def _is(file: Path, opened: Any) -> bool:
    try:
        return os.path.samestat(os.lstat(file), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False


def _open(file: Path, mode: str, flags: int = 0) -> Any:
    """Open a file of this folder only: no link, which leads out of it, and no pipe, which waits."""

    def open_file(path: str, given: int) -> int:
        if os.path.islink(path):
            raise ValueError(f"'{path}' is a link")
        descriptor = os.open(path, given | flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ValueError(f"'{path}' is no file")
        return descriptor

    return open(file, mode, opener=open_file)
