"""`train` and `tune` that are killed end as if they had not been, and leave nothing behind."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import CLASSES, write_images

ROOT = Path(__file__).parents[1]
TRAIN = (
    *("--image-size", "12", "--downsample", "stride", "--filters", "4", "--ways", "2"),
    *("--queries", "2", "--steps", "6", "--meta-batch-size", "2", "--validation-episodes", "2"),
    *("--epochs", "4", "--save-every", "1"),
)
TUNE = (
    *("--image-size", "12", "--downsample", "stride", "--ways", "2", "--queries", "2"),
    *("--steps", "2", "--validation-episodes", "2", "--epochs", "2", "--trials", "4"),
    *("--search", "filters=2,4", "--search", "learning-rate=0.001:0.1:log"),
)


class Commands:
    """Runs commands in forked processes, and kills them after a while."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.killed", str(self.log)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, *arguments: object, after: float | None = None) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = json.dumps([after, [str(argument) for argument in arguments]])
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    pytest.importorskip("optuna", reason="needs Optuna")
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.process.communicate()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "photos", CLASSES)


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder; of a model, without the time of saving and objects' addresses."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = None
        elif path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                names = [each for each in archive.namelist() if each != "metadata.json"]
                found[name] = {
                    each: re.sub(rb'"shared_object_id": \d+', b"", archive.read(each))
                    for each in names
                }
        elif path.suffix == ".db":
            found[name] = "trials"  # with the times of each, and those that were interrupted
        else:
            found[name] = path.read_bytes()
    return found


def check_killed(
    commands: Commands, whole: tuple[Any, ...], folder: Path, moments: int, seed: int
) -> tuple[int, int]:
    """Kill a command at random moments and go on, until it has ended as often as is needed.

    Returns:
        At how many moments it was killed, and how often it had ended by then.
    """
    command, expected = whole[:-1], whole[-1]
    rng = random.Random(seed)
    arguments = [*command, "-o", folder]
    began = time.monotonic()
    undisturbed = expected.parent / f"again-{command[0]}"
    assert commands(*command, "-o", undisturbed) == 0, commands.said()
    lasts = time.monotonic() - began
    shutil.rmtree(undisturbed)
    kills = ends = 0
    resume: list[str] = []
    while kills < moments or not ends:
        # Most within the first part, of which there would else be little left to see.
        status = commands(*arguments, *resume, after=rng.uniform(0, 0.8) * lasts)
        if status == -9:
            kills += 1
        elif status == 0:
            ends += 1
            assert_same(contents(folder), contents(expected))
            shutil.rmtree(folder)
        else:
            pytest.fail(commands.said())
        # Where nothing was begun there is nothing to resume, and the same command begins.
        begun = ("settings.json", "trials.db")[command[0] == "tune"]
        resume = ["--resume"] if (folder / begun).exists() else []
    if folder.exists():
        assert commands(*arguments, *resume) == 0, commands.said()
        assert_same(contents(folder), contents(expected))
    return kills, ends


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert found[name].keys() == value.keys()
            for part, data in value.items():
                assert found[name][part] == data, (name, part)
        else:
            assert found[name] == value, name


@pytest.fixture(scope="module")
def train(commands: Commands, photos: Path) -> tuple[Any, ...]:
    """The command, and what it leaves when nothing happens to it."""
    path = photos.parent / "train"
    assert commands("train", photos, *TRAIN, "-o", path) == 0, commands.said()
    return ("train", photos, *TRAIN, path)


@pytest.fixture(scope="module")
def tune(commands: Commands, photos: Path) -> tuple[Any, ...]:
    path = photos.parent / "tune"
    assert commands("tune", photos, *TUNE, "-o", path) == 0, commands.said()
    return ("tune", photos, *TUNE, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "tune"])
def test_killed_at_50_random_moments(
    name: str,
    commands: Commands,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = request.getfixturevalue(name)
    kills, ends = check_killed(commands, whole, tmp_path / "run", 50, seed=1)
    with capsys.disabled():
        print(f"\n{name}: killed at {kills} moments, ended {ends} times among them")
