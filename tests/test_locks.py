"""One writer a folder: the second one is refused, and a dead one blocks nobody."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfmeta import locks
from tfmeta.locks import INHERITED, NAME, one_writer

# Without the package, which takes long to import.
HOLDER = """
import runpy, sys, time
with runpy.run_path(sys.argv[1])["one_writer"](sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds a folder."""
    command = [sys.executable, "-c", HOLDER, locks.__file__, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_living_process_holds_a_folder_and_a_dead_one_does_not(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with (
            pytest.raises(BlockingIOError, match=r"is being written to by process \d+ on ") as e,
            one_writer(tmp_path),
        ):
            pass
        assert f"'{tmp_path}'" in str(e.value)
        assert f"process {process.pid} on" in str(e.value)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / NAME).exists()
    with one_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_the_same_process_is_another_writer_too(tmp_path: Path) -> None:
    with (
        one_writer(tmp_path),
        pytest.raises(BlockingIOError, match=f"by process {os.getpid()} on"),
        one_writer(tmp_path),
    ):
        pass


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    with one_writer(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with one_writer(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["mine"]


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_or_replaced_is_noticed(again: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with one_writer(folder) as writer:
        writer.check()
        (folder / NAME).unlink()
        folder.rmdir()
        if again:
            other = hold(folder)
        with pytest.raises(FileNotFoundError, match="was removed or replaced while this process"):
            writer.check()
    if again:
        assert (folder / NAME).exists()  # the other's
        other.kill()
        other.communicate()


def test_a_process_that_inherits_the_lock_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_writer(tmp_path) as writer:
        for name, value in writer.environment().items():
            monkeypatch.setenv(name, value)
        with one_writer(tmp_path) as inherited:
            inherited.check()
        writer.check()
        # Of another folder it is not.
        with one_writer(tmp_path / "other"):
            monkeypatch.setenv(INHERITED, "0")
            with pytest.raises(BlockingIOError, match="is being written to"), one_writer(tmp_path):
                pass


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe", "folder"])
def test_the_file_of_a_lock_is_written_to_only_if_it_is_one(kind: str, tmp_path: Path) -> None:
    mine, file = tmp_path / "mine.txt", tmp_path / "run" / NAME
    mine.write_text("mine")
    file.parent.mkdir()
    if kind == "link":
        file.symlink_to(mine)
    elif kind == "dangling":
        file.symlink_to(tmp_path / "none")
    elif kind == "hard link":
        os.link(mine, file)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    expected = r"\.tfmeta\.lock' must be the file of a lock"
    with pytest.raises(OSError, match=expected) as error, one_writer(file.parent):
        pass
    assert str(file) in str(error.value)
    assert mine.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "run"]


def test_a_held_lock_that_says_nothing_sensible(tmp_path: Path) -> None:
    with one_writer(tmp_path):
        (tmp_path / NAME).write_text("\x1b[2J1 on x; rm")
        with pytest.raises(BlockingIOError, match="by another process: "), one_writer(tmp_path):
            pass


def test_a_disk_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with one_writer(tmp_path) as writer:
        writer.check()
    assert f"'{tmp_path}' cannot be locked (No locks available)" in caplog.text


def test_a_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(locks.os, "open", refuse)
    with pytest.raises(OSError, match="must be writable") as error, one_writer(tmp_path):
        pass
    assert str(tmp_path) in str(error.value)
