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


def check(shim: Path, folder: Path, name: str, *moments: int) -> dict[str, Any]:
    if name.startswith(("search", "tune")):
        pytest.importorskip("optuna", reason="needs Optuna")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.disk_faults", shim, folder, name]
        + [str(number) for number in moments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": str(shim)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    assert found.pop("wrong") == []
    assert found["calls"] > 20
    assert found["tried"] > 3 * min([*moments, found["calls"]]) - 1
    return found


@pytest.mark.parametrize(("name", "moments"), [("train", 1), ("search", 4), ("adapted", 1)])
def test_some_calls_fail(name: str, moments: int, shim: Path, tmp_path: Path) -> None:
    found = check(shim, tmp_path, name, moments)
    assert found["failed"] > found["tried"] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, *EXPORTS])
def test_every_call_fails(
    name: str, shim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(shim, tmp_path, name)
    assert found["failed"] > found["tried"] / 2
    errors = found.pop("errors")
    with capsys.disabled():
        print(f"\n{name}: {found}", *errors, sep="\n")
