"""What comes of faults of the disk: `python -m tests.disk_faults SHIM FOLDER MOMENTS NAME ...`.

The shim is `tests/data/faults.c`, compiled and loaded before the C library. For so many of the
calls that change a file, or for each if the number is 0, it is tried what comes of a disk that is
full from there on, of one where that call alone fails, and of one that cannot be written from there
on. Then the same is done again on a disk without faults, by the same process, which must hold
nothing back. Prints as JSON how much was tried, and what was wrong, of each name.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from click.testing import CliRunner

from tests.killed_exports import WRITERS, answers, files
from tests.test_cli import CLASSES, write_images
from tests.test_killed import contents
from tfmeta import tuning
from tfmeta.cli import main

TINY = (
    *("--image-size", "12", "--downsample", "stride", "--ways", "2", "--queries", "1"),
    *("--meta-batch-size", "1", "--validation-episodes", "1", "--epochs", "2"),
)
OPTIONS = {
    "train": (*TINY, "--filters", "2", "--steps", "2", "--save-every", "1"),
    "tune": (*TINY, "--steps", "1", "--trials", "2", "--search", "filters=2,3"),
}
FOREVER = 2**31 - 1
FAULTS = {"full": errno.ENOSPC, "fails once": errno.EIO, "read-only": errno.EROFS}
# What SQLite makes of these.
SQLITE = ("database or disk is full", "disk I/O error", "unable to open database", "readonly")


class Disk:
    """The shim: which of the calls below a folder fail."""

    def __init__(self, shim: str, below: Path) -> None:
        self._shim = ctypes.CDLL(shim)
        name = os.fsencode(below) + b"\0"
        place = (ctypes.c_char * 4096).in_dll(self._shim, "faults_below")
        ctypes.memmove(ctypes.addressof(place), name, len(name))

    def arm(self, at: int = -1, last: int = -1, number: int = 0) -> None:
        values = {"count": 0, "failed": 0, "at": at, "last": last, "errno": number}
        for name, value in values.items():
            ctypes.c_int.in_dll(self._shim, f"faults_{name}").value = value

    def counted(self, name: str) -> int:
        return ctypes.c_int.in_dll(self._shim, f"faults_{name}").value


class Command:
    """A command of `tfmeta`, which goes on where something was begun."""

    def __init__(self, folder: Path, name: str) -> None:
        self.made = folder / "made"
        photos = write_images(folder / "photos", CLASSES)
        self._arguments = [name, str(photos), *OPTIONS[name], "-o", str(self.made)]
        self._begun = self.made / ("settings.json" if name == "train" else "trials.db")

    def __call__(self) -> str | None:
        """Do it, and return the error if there is one."""
        keras.utils.clear_session()
        more = ["--resume"] if self._begun.exists() else []
        tf.config.run_functions_eagerly(True)  # a graph costs seconds, for a few steps
        done = CliRunner().invoke(main, [*self._arguments, *more])
        tf.config.run_functions_eagerly(False)
        if done.exit_code == 0:
            return None
        if not isinstance(done.exception, SystemExit):
            return f"Not in words: {done.exception!r}"
        return done.output[done.output.rfind("Error: ") :]

    def found(self) -> Any:
        """Return what is there."""
        return found_in(self.made)

    def half(self, whole: Any, over: bool) -> str | None:
        """Return what is wrong with what a fault has left; here only going on tells."""
        return None


class Search(Command):
    """A search that trains nothing."""

    def __init__(self, folder: Path, name: str) -> None:
        self.made = folder / "made"

    def __call__(self) -> str | None:
        file = self.made / "trials.db"
        try:
            tuning.search(lambda values, _: values["x"], {"x": "0.0:1.0"}, file, 3, verbose=False)
        except OSError as error:
            return f"Error: {error}"
        return None


class Export:
    """An export."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name, self.made = name, folder / "made"

    def __call__(self) -> str | None:
        try:
            self.made.mkdir(exist_ok=True)
            WRITERS[self._name](self.made / self._name)
        except OSError as error:
            return f"Error: {error}"
        return None

    def found(self) -> Any:
        return {"files": files(self.made), **answers(self.made, [self._name])}

    def half(self, whole: Any, over: bool) -> str | None:
        if (self.made / self._name).exists():
            there = self.found()[self._name]
            return None if there == whole[self._name] else f"half: {there}"
        lost = over and not list(self.made.glob(f".tfmeta-*/old.{self._name}"))
        return "what was there is lost" if lost else None


def run(shim: str, folder: Path, name: str, moments: int) -> dict[str, Any]:
    began = time.process_time()
    folder.mkdir()
    kind, _, part = name.partition("-")
    of: Any = Command if kind in OPTIONS else Search if kind == "search" else Export
    tried = of(folder, kind)
    made, begun = tried.made, folder / "begun"
    disk, wrong = Disk(shim, made), []

    def attempt(at: int = -1, last: int = -1, number: int = 0) -> tuple[str | None, int, int]:
        disk.arm(at, last, number)
        error = tried()
        counted = disk.counted("count"), disk.counted("failed")
        disk.arm()
        return error, *counted

    error, calls, _ = attempt()
    assert error is None, error
    whole = tried.found()
    if part:  # of a command, what half of it has left; of an export, one that is there
        if part == "resume":
            shutil.rmtree(made)
            attempt(calls // 2, FOREVER, errno.EIO)
        made.rename(begun)
        shutil.copytree(begun, made)
        error, calls, _ = attempt()
        if error is not None or tried.found() != whole:
            wrong.append(["undisturbed", error or difference(tried.found(), whole)])
    total, errors = {"calls": calls, "tried": 0, "failed": 0}, set()
    step = -(-calls // (moments or calls))
    for at in range(step // 2, calls, step):
        for fault, number in FAULTS.items():
            shutil.rmtree(made, ignore_errors=True)
            if part:
                shutil.copytree(begun, made)
            error, _, failed = attempt(at, at if fault == "fails once" else FOREVER, number)
            case = [at, fault]
            total["tried"] += 1
            total["failed"] += error is not None
            errors.add(error)
            if error is None and not failed:
                wrong.append([*case, "no call failed"])
            said = (os.strerror(number), *(SQLITE if kind in ("tune", "search") else ()))
            if error is not None and not (
                "Error: " in error and str(made) in error and any(x in error for x in said)
            ):
                wrong.append([*case, "unclear", error])
            if (half := tried.half(whole, part == "over")) is not None:
                wrong.append([*case, half])
            if (error := attempt()[0]) is not None:
                wrong.append([*case, "again", error])
            elif (there := tried.found()) != whole:
                wrong.append([*case, "differs", difference(there, whole)])
    seconds = round(time.process_time() - began, 1)
    return {**total, "seconds": seconds, "errors": sorted(filter(None, errors)), "wrong": wrong}


def found_in(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder; of a search the values and scores of finished trials."""
    there = contents(folder)
    if "trials.db" in there:
        with contextlib.closing(sqlite3.connect(folder / "trials.db")) as database:
            there["trials.db"] = database.execute(
                "SELECT param_value, value FROM trial_params JOIN trial_values USING (trial_id)"
                " ORDER BY trial_id"
            ).fetchall()
    return there


def difference(found: Any, whole: Any) -> list[str]:
    return [x for x in sorted({*found, *whole}) if found.get(x, "") != whole.get(x, "")]


if __name__ == "__main__":
    shim, folder, moments, *names = sys.argv[1:]
    print(json.dumps({x: run(shim, Path(folder) / x, x, int(moments)) for x in names}))
