"""Exports that are killed, damaged, or written without room: whole, or an error in words."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tfmeta.classifier import Classifier
from tfmeta.formats import FORMATS

pytestmark = pytest.mark.filterwarnings("ignore")


def ran(*command: str) -> Any:
    """Return what a program printed last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("moments", "names"), [(2, ["adapted"]), pytest.param(50, [], marks=pytest.mark.slow)]
)
def test_whenever_an_export_is_killed_nothing_is_half_and_nothing_stays(
    moments: int, names: list[str], tmp_path: Path
) -> None:
    """The same command then gives the same, and takes away what the dead one left."""
    if not names:
        pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
        pytest.importorskip("tf2onnx", reason="needs tf2onnx")
        pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    found = ran("-m", "tests.killed_exports", str(tmp_path), str(moments), *names)
    print(found)
    assert found["half"] == []
    assert found["after"] == []


# Writes into a folder, where no file may be longer than some bytes.
NO_ROOM = """
import json, os, resource, sys
from pathlib import Path
from tests.killed_exports import WRITERS, files
folder, found = Path(sys.argv[1]), []
for name in sys.argv[2:]:
    path = folder / name
    for over in (False, True):
        if over:
            WRITERS[name](path)
        for room in (0, 1, 100, 1000, 3000):
            before = {x: (folder / x).read_bytes() for x in files(folder) if (folder / x).is_file()}
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            words = None
            try:
                WRITERS[name](path)
            except OSError as error:
                words = str(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            now = {x: (folder / x).read_bytes() for x in files(folder) if (folder / x).is_file()}
            found.append([name, over, room, words, now == before])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_where_there_is_no_room_nothing_changes_and_the_path_is_said(tmp_path: Path) -> None:
    names = ["learner", "adapted", "adapted.tflite", "adapted.onnx"]
    if not all(map(installed, ("ai_edge_litert", "tf2onnx"))):
        names = names[:2]
    found = ran("-c", NO_ROOM, str(tmp_path), *names)
    assert len(found) == 10 * len(names)
    for name, _, room, words, same in found:
        if words is None:
            assert room >= 1000  # that is enough for a small file
            continue
        assert same, (name, room)
        assert "`path` must be writable (" in words, (name, room, words)
        assert f"Received: path='{tmp_path / name}'" in words
    assert sum(words is not None for *_, words, _ in found) >= 6 * len(names)
    assert not any(x.startswith(".") for x in os.listdir(tmp_path))


def installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in each format."""
    folder = tmp_path_factory.mktemp("classifiers")
    model = keras.Sequential(
        [keras.Input([2, 2, 3]), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    for kind in FORMATS:
        if kind != "tflite" or installed("ai_edge_litert"):
            Classifier(model, ("a", "b"), {"invert": True}, format=kind).save(folder / kind)
    return folder


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Return other bytes: with bits flipped, cut, longer, or pieces swapped."""
    way, made = random.integers(4), bytearray(content)
    at, until = sorted(int(x) for x in random.integers(0, len(made) + 1, 2))
    if way == 0:
        for place in random.integers(0, len(made), random.integers(1, 4)):
            made[place] ^= 1 << int(random.integers(8))
    elif way == 1:
        del made[at:]
    elif way == 2:
        made[at:at] = random.bytes(5)
    else:
        made = made[until:] + made[at:until] + made[:at]
    return bytes(made)


@pytest.mark.parametrize("times", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_damaged_file_of_an_adapted_model_is_named(
    times: int, classifiers: Path, tmp_path: Path
) -> None:
    """Any of the files: a network that computes something else would not be noticed."""
    random = np.random.default_rng(0)
    for kind in classifiers.iterdir():
        shutil.copytree(kind, tmp_path / kind.name)
    files = sorted(x for x in tmp_path.rglob("*") if x.is_file())
    refused = 0
    for _ in range(times):
        file = files[random.integers(len(files))]
        folder = tmp_path / file.relative_to(tmp_path).parts[0]
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, random))
        if file.read_bytes() != whole:
            refused += 1
            with pytest.raises(ValueError, match=r"is damaged or of another version") as caught:
                Classifier.load(folder)
            assert str(caught.value).startswith(f"'{file}'")
        file.write_bytes(whole)
    assert refused > 0.9 * times
    for kind in classifiers.iterdir():
        assert Classifier.load(tmp_path / kind.name).class_names == ("a", "b")


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [],
        3,
        {},
        {"files": 3},
        {"class_names": 3},
        {"class_names": [1, 2]},
        {"class_names": []},
        {"images": []},
        {"images": {"size": "big"}},
        {"images": {"path": "/"}},
        {"images": {"grayscale": 2}},
        {"format": "pickle"},
        {"format": ["keras"]},
        {"transductive": "no"},
        {"model": "another"},
        {"__class__": "another"},
    ],
)
def test_facts_that_are_none_are_refused_though_their_digest_is_right(
    facts: Any, classifiers: Path, tmp_path: Path
) -> None:
    shutil.copytree(classifiers / "keras", tmp_path / "keras")
    file = tmp_path / "keras" / "classifier.json"
    if facts:
        whole = json.loads(file.read_text())
        del whole["sha256"]
        facts = {**whole, **facts} if isinstance(facts, dict) else facts
    if isinstance(facts, dict):
        from tfmeta.classifier import _digest

        facts["sha256"] = _digest(facts)
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"classifier\.json' is damaged or of another version"):
        Classifier.load(tmp_path / "keras")


def test_deep_json_is_damage_too(classifiers: Path, tmp_path: Path) -> None:
    shutil.copytree(classifiers / "keras", tmp_path / "keras")
    (tmp_path / "keras" / "classifier.json").write_text("[" * 10**5)
    with pytest.raises(ValueError, match=r"classifier\.json' is damaged .*RecursionError"):
        Classifier.load(tmp_path / "keras")


def test_what_tensorflow_says_of_a_disk_is_an_error_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "/hidden; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(2)])
    with pytest.raises(
        OSError, match=r"`path` must be writable \(No space left on device\)\. Received: path="
    ) as caught:
        tfmeta.export.saved_model(model, tmp_path / "model")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())
