"""On a disk that fails, commands and exports end in words, and can be done again as if it had not.

Whatever call fails that changes a file, nothing half-written is taken for whole, and nothing is
left over when the same has been done again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("train", "train-resume", "search", "search-resume", "tune", "tune-resume")
EXPORTS = ("learner", "learner-over", "adapted", "adapted-over")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD and /proc")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, cc, for the calls that fail")
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    source = ROOT / "tests" / "data" / "faults.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def check(shim: Path, folder: Path, moments: int, *names: str) -> dict[str, Any]:
    if any(name.startswith(("search", "tune")) for name in names):
        pytest.importorskip("optuna", reason="needs Optuna")
    program = [sys.executable, "-W", "ignore", "-m", "tests.disk_faults"]
    done = subprocess.run(
        [*program, shim, folder, str(moments), *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(shim)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    assert list(found) == list(names)
    for name, of in found.items():
        assert of.pop("wrong") == [], name
        assert of["calls"] > 20
        assert of["tried"] >= 3 * (moments or of["calls"])
        assert of["failed"] > of["tried"] / 2
    return found


def test_some_calls_fail(shim: Path, tmp_path: Path) -> None:
    check(shim, tmp_path, 1, "search-resume")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *EXPORTS])
def test_every_call_fails(
    name: str, shim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = check(shim, tmp_path, 0, name).values()
    errors = found.pop("errors")
    with capsys.disabled():
        print(f"\n{name}: {found}", *errors, sep="\n")
