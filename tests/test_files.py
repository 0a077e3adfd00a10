"""Files are whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfmeta import files
from tfmeta.files import SCRATCH, replacing, replacing_folder


def test_the_file_appears_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as beside:
        beside.write_text("new")
        assert beside.suffix == ".txt"
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    def run_out_of_disk() -> None:
        with replacing(tmp_path / "a.txt") as beside:
            beside.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_out_of_disk()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("old", [True, False])
def test_a_folder_appears_whole(old: bool, tmp_path: Path) -> None:
    if old:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "old.txt").write_text("old")
    with replacing_folder(tmp_path / "a") as beside:
        (beside / "new.txt").write_text("new")
        assert (tmp_path / "a" / "old.txt").exists() == old
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "new.txt"]


@pytest.mark.parametrize("moment", ["filling", "renaming"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_older_folder(
    moment: str, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old.txt").write_text("old")
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if self.name.startswith("new."):
            raise error("no")
        return rename(self, target)

    def fill() -> None:
        with replacing_folder(tmp_path / "a") as beside:
            (beside / "new.txt").write_text("half")
            if moment == "filling":
                raise error("no")

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(error, match="no"):
        fill()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "old.txt"]


# Writes `a.txt` and the folder `b`, and is killed before the call of `os` that is asked for; the
# calls are counted from the first one that writes.
KILLED = """
import os, pathlib, runpy, signal, sys
files = runpy.run_path(sys.argv[4])
replacing, replacing_folder = files["replacing"], files["replacing_folder"]
folder, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def counted(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
for name in ("mkdir", "open", "rename", "replace", "rmdir", "unlink", "listdir", "write"):
    setattr(os, name, counted(getattr(os, name)))
with replacing(folder / "a.txt") as beside:
    beside.write_text(sys.argv[3])
with replacing_folder(folder / "b") as beside:
    (beside / "c.txt").write_text(sys.argv[3])
"""


def writes(folder: Path, last: int, words: str) -> int:
    """Return how the process above ended."""
    # The module alone, for the package takes seconds to import.
    command = [sys.executable, "-c", KILLED, str(folder), str(last), words, files.__file__]
    return subprocess.run(command, check=False).returncode


def there(folder: Path) -> dict[str, str]:
    return {str(x.relative_to(folder)): x.read_text() for x in folder.rglob("*") if x.is_file()}


@pytest.mark.parametrize("old", [True, False])
def test_whenever_it_is_killed_the_next_run_writes_and_leaves_nothing(
    old: bool, tmp_path: Path
) -> None:
    """At each call of the system; before, what is there is old or new, and after it all new."""
    ended, last = -signal.SIGKILL, 0
    while ended == -signal.SIGKILL:
        last += 1
        folder = tmp_path / str(last)
        folder.mkdir()
        if old:
            (folder / "a.txt").write_text("old")
            (folder / "b").mkdir()
            (folder / "b" / "c.txt").write_text("old")
            (folder / "b" / "d.txt").write_text("old")
        ended = writes(folder, last, "new")
        found = {k: v for k, v in there(folder).items() if not k.startswith(".")}
        assert set(found.values()) <= {"old", "new"}
        # Within one call of the system the folder is in neither place; whole, it is in the scratch.
        whole = {v for k, v in there(folder).items() if k.endswith("b/c.txt")}
        assert old <= ("old" in whole or "new" in whole)
        with replacing(folder / "a.txt") as beside:
            after = {k: v for k, v in there(folder).items() if not k.startswith(".")}
            assert not old or after["b/c.txt"] in ("old", "new")
            beside.write_text("new")
        with replacing_folder(folder / "b") as beside:
            (beside / "c.txt").write_text("new")
        assert there(folder) == {"a.txt": "new", "b/c.txt": "new"}
        assert sorted(os.listdir(folder)) == ["a.txt", "b"]
    assert ended == 0
    assert last > 10


def test_names_of_the_living_do_not_collide_and_stay(tmp_path: Path) -> None:
    """Also of one process, whose number is the same in each container."""
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        assert one != other
        one.write_text("one")
        with replacing_folder(tmp_path / "b"):
            assert one.exists()
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_what_only_looks_like_a_leftover_stays(tmp_path: Path) -> None:
    """Links are not followed, files are not folders, and other names are the user's."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "old.notes").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".tfmeta-aaaaaaaa").symlink_to("../mine")
    (tmp_path / "folder" / ".tfmeta-bbbbbbbb").write_text("a file")
    (tmp_path / "folder" / ".tfmeta-notes").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with replacing(tmp_path / "folder" / "a") as beside:
        assert SCRATCH.fullmatch(beside.parent.name)
        beside.write_text("a")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "folder" / "a"])


@pytest.mark.parametrize("write", [replacing, replacing_folder])
def test_where_nothing_can_be_made_the_error_names_the_path(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "/a/temporary/name")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with (
        pytest.raises(OSError, match=r"No space left on device.*/a'") as caught,
        write(tmp_path / "a"),
    ):
        pass
    assert caught.value.errno == 28
    assert not list(tmp_path.iterdir())
