"""Training that is killed while it runs, and while it writes, ends as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import resumed_training
from tfmeta.files import SCRATCH
from tfmeta.states import newest

ROOT = Path(__file__).parents[1]


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.resumed_training", str(folder), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def half_written(folder: Path) -> list[str]:
    return (
        [name for name in os.listdir(folder) if SCRATCH.fullmatch(name)] if folder.exists() else []
    )


def assert_same_end(one: Path, other: Path) -> None:
    with np.load(one / "end.npz") as a, np.load(other / "end.npz") as b:
        assert len(a.files) == len(b.files) > 20
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes()
    assert (one / "end.json").read_bytes() == (other / "end.json").read_bytes()


@pytest.mark.slow
def test_killed_while_a_state_is_written(tmp_path: Path) -> None:
    """Of MAML++ with all parts on, in the second epoch."""
    sizes = (3, 3, 1)
    # Two flushes a state, of the file and of its folder: the fifth state is not in its place.
    killed = start(tmp_path / "killed", 0, 9, *sizes)
    (tmp_path / "whole").mkdir()
    resumed_training.train(tmp_path / "whole", *sizes)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    names = sorted(file.name for file in (tmp_path / "killed" / "states").iterdir())
    assert SCRATCH.fullmatch(names[0])
    assert names[1] == ".tfmeta.lock"
    assert names[2:] == [f"state-{step:012d}" for step in (2, 3, 4)]
    resumed_training.train(tmp_path / "killed", *sizes)
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    assert len(list((tmp_path / "killed" / "states").iterdir())) == 3


@pytest.mark.slow
def test_killed_at_20_random_moments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of them while a file is being written; figures are printed for benchmarks/results."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, 0.02)
    _, said = process.communicate()
    assert process.returncode == 0, said
    random = np.random.default_rng(0)
    states = killed / "states"
    rows, fallbacks = [], 0
    for kill in range(20):
        known = {*states.glob("state-*")}
        process = start(killed, 0.02)
        if kill % 5 == 4:  # at any moment, mostly while TensorFlow is loaded or traces
            time.sleep(random.uniform(0, 15))
        else:
            while not {*states.glob("state-*")} - known and process.poll() is None:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.8))
            while kill % 5 < 3 and not half_written(states) and process.poll() is None:
                time.sleep(0.001)
        process.kill()
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        fallbacks += "Not used" in said
        state = newest(states)
        rows.append((state.step if state else 0, len(half_written(states))))
    process = start(killed, 0.02)
    _, said = process.communicate()
    assert process.returncode == 0, said
    fallbacks += "Not used" in said
    assert_same_end(killed, whole)
    assert fallbacks == 0
    with capsys.disabled():
        print("\nkill: newest step, files half-written:", rows)
    assert sum(half for _, half in rows) >= 8
    assert rows[-1][0] > rows[0][0]
