"""What a block of code does outside of a folder: files written or removed, and programs started."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHANGES = ("os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree")
_TWO = ("os.rename", "os.link", "os.symlink")
_CODE = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
)

_inside: list[str] = []
_seen: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event in (*_CODE, "socket.connect", "ctypes.dlopen", "marshal.loads"):
        _note(event, arguments, "", always=event in _CODE)
    elif event == "open":
        path, mode, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or any(x in (mode or "") for x in "wax+"):
            follows = not (isinstance(flags, int) and flags & os.O_NOFOLLOW)
            _note(event, arguments, path, follows=follows)
    elif event in _CHANGES:
        _note(event, arguments, _below(arguments[0], arguments[-1]))
    elif event in _TWO:
        _note(event, arguments, _below(arguments[0], arguments[-1]))
        _note(event, arguments, _below(arguments[1], arguments[-1]))


def _below(path: Any, folder: Any) -> Any:
    """Return a path that may be relative to an open folder."""
    if not isinstance(folder, int) or folder < 0 or os.path.isabs(path):
        return path
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)


def _note(
    event: str, arguments: Any, path: Any, always: bool = False, follows: bool = False
) -> None:
    if not always:
        if not isinstance(path, str | bytes | os.PathLike) or not path:
            return
        # What holds a link is changed where it is removed, and what it leads to where it is opened.
        real = os.path.realpath if follows else os.path.abspath
        place = str(real(os.fsdecode(path)))
        if os.path.commonpath([place, _inside[0]]) == _inside[0] or place == os.devnull:
            return
    _seen.append(f"{event}{arguments}")


_added: list[bool] = []


@contextmanager
def nothing_outside(folder: Path) -> Iterator[None]:
    """Fail if the block writes or removes a file outside of a folder, or starts a program."""
    if not _added:  # there is no way to take it away again
        _added.append(True)
        sys.addaudithook(_hook)
    del _seen[:]
    _inside.append(os.path.realpath(folder))
    try:
        yield
    finally:
        _inside.pop()
    assert not _seen, _seen
