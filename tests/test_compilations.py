"""Under XLA nothing is compiled twice, whatever the images, the labels and the weights are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.learners import LEARNERS, TASKS

# Learners whose number of outputs an export finds in the labels: XLA, which must know it, has a
# program for each way in which the labels are ordered, and here there are two.
BY_LABELS = {"ProtoMAML", "PrototypicalNetwork", "PrototypicalNetwork-cosine"}
QUICK = {("FOMAML", TASKS)}


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        pytest.param(name, chunk, marks=[] if (name, chunk) in QUICK else pytest.mark.slow)
        for name in LEARNERS
        for chunk in (TASKS, TASKS // 2)
    ],
)
def test_each_is_compiled_once(name: str, chunk: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.compilations", str(tmp_path), name, str(chunk)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    expected = dict.fromkeys(("fit", "evaluate", "predict", "tfmeta.evaluate"), 1)
    expected |= {"fit again": 0, "exported": 2 if name in BY_LABELS else 1}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
