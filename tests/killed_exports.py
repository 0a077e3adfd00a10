"""Write every kind of export into a folder, again and again, and be killed; a program of its own.

    python -m tests.killed_exports FOLDER MOMENTS [NAME ...]

The names are those of exports, all by default. TensorFlow takes seconds to import, and forks of a
process that has only done that export at once.
Prints as JSON how often something was found that was neither whole nor absent, what was left over,
and how often what the next run wrote differs from what is written when nobody is killed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfmeta
from tfmeta.classifier import Classifier
from tfmeta.digests import digests
from tfmeta.export.contents import LIST


def small(learner: bool) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(4), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((2, 2, 3)), *layers])
    if not learner:
        return model
    made = tfmeta.PrototypicalNetwork(model)
    made.build({"support_x": (1, 4, 2, 2, 3)})
    return made


def _write_classifiers(path: Path) -> None:
    for kind in ("keras", "saved_model", "tflite"):
        _write_classifier(kind)(path)


def _write_classifier(kind: str) -> Callable[[Path], None]:
    return lambda path: Classifier(small(False), ("a", "b"), {}, format=kind).save(path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "learner": lambda path: small(True).export(path, overwrite=True),
    "adapted": lambda path: tfmeta.export.saved_model(small(False), path, overwrite=True),
    "adapted.tflite": lambda path: tfmeta.export.lite(small(False), path, overwrite=True),
    "adapted.onnx": lambda path: tfmeta.export.onnx(small(False), path, overwrite=True),
    "keras": _write_classifier("keras"),
    "saved_model": _write_classifier("saved_model"),
    "tflite": _write_classifier("tflite"),
    # One in the place of the other.
    "few": _write_classifiers,
}


X = np.random.default_rng(0).random((3, 2, 2, 3), np.float32)


def answers(folder: Path, names: list[str]) -> dict[str, Any]:
    """Return what each export computes; an error for one that its reader refuses."""
    return {name: _tried(READERS[name], folder) for name in names}


def _tried(read: Callable[[Path], Any], folder: Path) -> Any:
    try:
        return np.asarray(read(folder)).round(5).tolist()
    except (OSError, ValueError) as error:
        return f"refused: {type(error).__name__}"


def _learner(folder: Path) -> Any:
    _check(folder / "learner")
    loaded = tf.saved_model.load(folder / "learner")
    task = loaded.adapt(X[:2], np.arange(2))
    return loaded.predict(query_x=X, **task)["predictions"]


def _adapted(folder: Path) -> Any:
    _check(folder / "adapted")
    return tf.saved_model.load(folder / "adapted").predict(query_x=X)["predictions"]


def _check(folder: Path) -> None:
    listed = (folder / LIST).read_text().splitlines()
    found = {k: v for k, v in digests(folder, folder).items() if k != LIST.as_posix()}
    if {line[66:]: line[:64] for line in listed} != found:
        raise AssertionError(f"{folder} is half an export")


def _lite(folder: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    content = (folder / "adapted.tflite").read_bytes()
    run = Interpreter(model_content=content).get_signature_runner("serving_default")
    return run(query_x=X)["predictions"]


def _onnx(folder: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession((folder / "adapted.onnx").read_bytes())
    return session.run(["predictions"], {"query_x": X})[0]


def _classifier(kind: str) -> Callable[[Path], Any]:
    images = np.uint8(255 * X)

    def read(folder: Path) -> Any:
        classifier = Classifier.load(folder / kind)
        return classifier.model(images if classifier.format == "saved_model" else X)

    return read


READERS: dict[str, Callable[[Path], Any]] = {
    "learner": _learner,
    "adapted": _adapted,
    "adapted.tflite": _lite,
    "adapted.onnx": _onnx,
    **{kind: _classifier(kind) for kind in ("few", "keras", "saved_model", "tflite")},
}


def forked(work: Callable[[], Any], seconds: float | None = None) -> Any:
    """Return what a function returns in another process, or `None` if that was killed first."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as result:
            json.dump(work(), result)
            result.flush()
            os._exit(0)
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as result:
        said = result.read()
    _, status = os.waitpid(child, 0)
    if seconds is None and status != 0:
        raise RuntimeError(f"an export that nobody killed ended with {status}")
    return json.loads(said) if said else None


def files(folder: Path) -> list[str]:
    return sorted(str(x.relative_to(folder)) for x in folder.rglob("*"))


def main(folder: Path, moments: int, names: list[str]) -> dict[str, Any]:
    chance = random.Random(0)

    def write(there: Path, seconds: float | None = None) -> None:
        forked(lambda: [WRITERS[name](there / name) for name in names] and None, seconds)

    def read(there: Path) -> dict[str, Any]:
        return dict(forked(lambda: answers(there, names)))

    whole = folder / "whole"
    whole.mkdir()
    began = time.monotonic()
    write(whole)
    took = time.monotonic() - began
    expected, paths = read(whole), files(whole)
    found: dict[str, Any] = {"seconds": took, "left": 0, "refused": 0, "half": [], "after": []}
    for moment in range(moments):
        there = folder / str(moment)
        there.mkdir()
        # Over what is there in every other case.
        if over := bool(moment % 2):
            write(there)
        write(there, chance.uniform(0, took))
        found["left"] += any(".tfmeta-" in path for path in files(there))
        for name, answer in read(there).items():
            # A folder of a classifier has two files, and may be that of another format.
            several = name in ("few", "keras", "saved_model", "tflite")
            refused = str(answer).startswith("refused")
            found["refused"] += refused
            right = answer in expected.values() if name == "few" else answer == expected[name]
            if not (right or (refused and (several or not over))):
                found["half"].append([moment, name, answer])
        write(there)
        if read(there) != expected or files(there) != paths:
            found["after"].append([moment, sorted({*files(there)} ^ {*paths})])
    return found


if __name__ == "__main__":
    chosen = sys.argv[3:] or list(WRITERS)
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), chosen)))
