"""Caching images and embeddings while the disk fails, and while the process is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_cache import ROOT, write_images
from tests.rows import rows

# In a process of its own, which forks others, so that what is slow to import is imported once.
COMMON = """
import ctypes, errno, filecmp, json, os, pathlib, random, shutil, signal, sys, time, warnings
import keras
import numpy as np
from tfmeta.data import ClassDataset, cache, caching, features, images
here = pathlib.Path(sys.argv[1])
photos, whole, made = here / "photos", here / "whole", here / "made"
caching.CHUNK = images.CHUNK = 4
warnings.simplefilter("error")

def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}

class Encoder:
    weights = [np.arange(15.0, dtype="float32").reshape(5, 3)]
    def to_json(self):
        return "{}"
    def __call__(self, x, training):
        return x.reshape(len(x), -1)[:, :5] @ self.weights[0]

if sys.argv[2] == "features":
    dataset = ClassDataset.from_directory(photos)

def run(folder=made):
    if sys.argv[2] == "features":
        return features(Encoder(), dataset, folder, 3, verbose=False)
    return cache(photos, folder, verbose=False)

run(whole)
expected = contents(whole)

def check():
    # Nothing half-written is taken for whole: what is there is right, or is not taken.
    before = made.exists() and (made / "cache.json").exists()
    dataset = run()
    assert contents(made) == expected, (sorted(contents(made)), before)
    assert (dataset.examples == run(whole).examples).all()
    shutil.rmtree(made)
"""

KILLS = """
killed = done = 0
random.seed(int(sys.argv[4]))
begun = time.monotonic()
run()
seconds = time.monotonic() - begun
shutil.rmtree(made)
while killed < int(sys.argv[3]):
    for _ in range(random.randint(1, 3)):  # also the one that goes on
        child = os.fork()
        if child == 0:
            run()
            os._exit(0)
        time.sleep(random.uniform(0, seconds * 1.2))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        killed += os.WIFSIGNALED(status)
        done += not os.WIFSIGNALED(status)
    check()
print(json.dumps({"killed": killed, "done before": done, "seconds of one": seconds}))
"""

FAULTS = """
shim = ctypes.CDLL(sys.argv[3])
ctypes.memmove(ctypes.addressof((ctypes.c_char * 4096).in_dll(shim, "faults_below")),
               os.fsencode(made) + b"\\0", len(os.fsencode(made)) + 1)

def arm(at, last, number):
    for name, value in (("count", 0), ("at", at), ("last", last), ("errno", number)):
        ctypes.c_int.in_dll(shim, "faults_" + name).value = value

arm(-1, -1, 0)
run()
calls = ctypes.c_int.in_dll(shim, "faults_count").value
shutil.rmtree(made)
every = int(sys.argv[4])
tried = failed = 0
for at in range(0, calls + 3, every):
    # A disk that is full stays so; one that fails may do so once; a process ends where it stands.
    for last, number in ((1 << 30, errno.ENOSPC), (at, errno.EIO), (1 << 30, errno.EIO), (at, 0)):
        tried += 1
        if number == 0:
            child = os.fork()
            if child == 0:
                arm(at, last, number)
                run()
                os._exit(0)
            failed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        else:
            arm(at, last, number)
            try:
                run()
            except OSError as error:
                failed += 1
                arm(-1, -1, 0)
                assert error.errno == number, (at, error)
                assert str(made) in str(error.filename), (at, error, error.filename)
            arm(-1, -1, 0)
        check()

# A disk that cannot be written.
shutil.copytree(whole, made)
arm(0, 1 << 30, errno.EROFS)
assert (run().examples == run(whole).examples).all()
arm(-1, -1, 0)
(made / "labels.npy").write_bytes(b"")
arm(0, 1 << 30, errno.EROFS)
try:
    run()
    raise AssertionError
except ValueError as error:
    assert "labels.npy' is damaged" in str(error), error
try:
    run(made / "new")
    raise AssertionError
except OSError as error:
    assert error.errno == errno.EROFS and str(made) in str(error.filename), error
print(json.dumps({"calls": calls, "tried": tried, "failed": failed}))
"""

# Embeddings are kept by the same lines.
OF = ["images", pytest.param("features", marks=pytest.mark.slow)]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD and /proc")


def run(
    program: str, *arguments: Any, environment: dict[str, str] | None = None
) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMON + program, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize(("times", "seed"), rows([(8, 0), (50, 1)], [(8, 0), (50, 1)]))
def test_killed_at_random_moments(
    times: int, seed: int, of: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "photos", 4, 30, side=60)
    counted = run(KILLS, tmp_path, of, times, seed)
    assert counted["killed"] >= times
    if times > 10:
        with capsys.disabled():
            print(f"\n{counted}")


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_faults_of_the_disk(
    every: int, of: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, cc, for the calls that fail")
    library = tmp_path / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    write_images(tmp_path / "photos", 3, 4)
    counted = run(FAULTS, tmp_path, of, library, every, environment={"LD_PRELOAD": str(library)})
    assert counted["calls"] > 30
    assert counted["failed"] > counted["tried"] * 0.8
    if every == 1:
        with capsys.disabled():
            print(f"\n{counted}")
