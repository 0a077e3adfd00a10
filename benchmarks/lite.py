"""What do LiteRT files of adapted models and of learners cost, and what do 8-bit integers lose?

A Prototypical Network and a MAML, each the four-block network, are trained on Omniglot for a few
minutes. Then, over 5-way 5-shot episodes of test classes with 15 queries a class: the accuracy of
the adapted model, of the float32 file that adapts, and of an int8 file of the adapted model,
quantised with the support set; the files' sizes; and the time of a call, contestants taking turns.
Usage:

    python benchmarks/lite.py --data-dir DIR --train lite-learners
    python benchmarks/lite.py --data-dir DIR --learners lite-learners \
        --json benchmarks/results/lite.json
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

import tfmeta

WAYS, SHOTS, QUERIES = 5, 5, 15
FILTERS = 32


def learners() -> dict[str, Any]:
    """Return compiled learners that have learnt nothing yet."""

    keras.utils.set_random_seed(0)

    def network(outputs: int | None = None) -> keras.Model:
        return tfmeta.models.conv4((28, 28, 1), outputs, filters=FILTERS, downsample="stride")

    made = {
        "PrototypicalNetwork": tfmeta.PrototypicalNetwork(network()),
        "MAML": tfmeta.MAML(network(WAYS), 0.4, 1),
    }
    for learner in made.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        learner.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    return made


def file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.weights.h5"


def train(data_dir: str, folder: Path, steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    classes, _, _ = tfmeta.data.load("omniglot", data_dir=data_dir)
    for name, learner in learners().items():
        keras.utils.set_random_seed(0)
        sampler = tfmeta.data.EpisodeSampler(classes, WAYS, SHOTS, QUERIES, seed=0)
        learner.fit(sampler.dataset(8), steps_per_epoch=steps, epochs=1, verbose=2)
        learner.save_weights(file_of(folder, name))


class Task:
    """One episode: the learner adapted to it, and its files as interpreters."""

    def __init__(
        self,
        learner: Any,
        sampler: Any,
        episode: int,
        folder: Path,
        kinds: tuple[str, ...] = ("float32", "int8"),
    ) -> None:
        inputs, targets = sampler.batch(episode)
        x, y, self.query = (inputs[k][0] for k in ("support_x", "support_y", "query_x"))
        self.support = {"support_x": x, "support_y": y.astype(np.int64)}
        self.targets = targets[0]
        self.adapted = learner.adapt(x, y)
        self.sizes, self.runs = {}, {}
        for kind in kinds:
            path = folder / f"{kind}.tflite"
            images = x if kind == "int8" else None
            tfmeta.export.lite(self.adapted, path, representative=images, overwrite=True)
            self.sizes[kind] = path.stat().st_size
            self.runs[kind] = Interpreter(str(path), num_threads=1).get_signature_runner()

    def predict(self, kind: str) -> Any:
        return self.runs[kind](query_x=self.query)["predictions"]


def accuracies(name: str, learner: Any, sampler: Any, episodes: int, folder: Path) -> Any:
    """Return accuracies with 95 % intervals, and how often int8 and float32 agree."""
    path = folder / "learner.tflite"
    tfmeta.export.lite(learner, path, ways=WAYS, shots=SHOTS, overwrite=True)
    on_device = Interpreter(str(path), num_threads=1)
    adapt, predict = map(on_device.get_signature_runner, ("adapt", "predict"))
    right: dict[str, list[float]] = {k: [] for k in ("Python", "float32", "int8")}
    same = []
    for episode in range(episodes):
        # What is adapted in float32 is so by the file that adapts: one file less to write.
        task = Task(learner, sampler, episode, folder, ("int8",))
        logits = {
            "Python": np.asarray(task.adapted(task.query)),
            "float32": predict(query_x=task.query, **adapt(**task.support))["predictions"],
            "int8": task.predict("int8"),
        }
        found = {kind: x.argmax(axis=1) for kind, x in logits.items()}
        for kind, classes in found.items():
            right[kind].append(float(np.mean(classes == task.targets)))
        same.append(float(np.mean(found["int8"] == found["float32"])))
        if episode % 20 == 19:
            print(name, episode + 1, {k: round(float(np.mean(v)), 4) for k, v in right.items()})
    return {
        "accuracy": {k: float(np.mean(v)) for k, v in right.items()},
        "ci95": {k: float(1.96 * np.std(v) / len(v) ** 0.5) for k, v in right.items()},
        "int8 chooses as float32": float(np.mean(same)),
    }


def latencies(learner: Any, sampler: Any, calls: int, folder: Path) -> Any:
    """Return sizes of files, and milliseconds of calls by turns, on one thread in LiteRT."""
    path = folder / "learner.tflite"
    tfmeta.export.lite(learner, path, ways=WAYS, shots=SHOTS, overwrite=True)
    on_device = Interpreter(str(path), num_threads=1)
    adapt, predict = map(on_device.get_signature_runner, ("adapt", "predict"))
    task = Task(learner, sampler, 0, folder)
    learnt = adapt(**task.support)
    contestants: dict[str, Callable[[], Any]] = {
        "adapt, file that adapts": lambda: adapt(**task.support),
        "adapt, Python": lambda: learner.adapt(*task.support.values()),
        "predict, file that adapts": lambda: predict(query_x=task.query, **learnt),
        "predict, float32 file": lambda: task.predict("float32"),
        "predict, int8 file": lambda: task.predict("int8"),
        "predict, Python": lambda: np.asarray(task.adapted(task.query)),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(calls + 3):
        for name, contestant in contestants.items():
            if name == "adapt, Python" and turn % 5:  # takes as long as all others together
                continue
            begin = time.perf_counter()
            contestant()
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - begin))
    found = {
        name: {"median": float(np.median(x)), "p99": float(np.quantile(x, 0.99)), "calls": len(x)}
        for name, x in times.items()
    }
    return {
        "bytes": {"file that adapts": path.stat().st_size, **task.sizes},
        "milliseconds": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--train", type=Path, help="train, and write weights to this folder")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learners", type=Path, help="read weights from this folder")
    parser.add_argument("--only", help="the name of one learner")
    parser.add_argument("--episodes", type=int, default=200, help="0 leaves accuracies out")
    parser.add_argument("--calls", type=int, default=200, help="0 leaves latencies out")
    parser.add_argument("--json", type=Path, help="put what was measured into this file")
    options = parser.parse_args()
    if options.train:
        train(options.data_dir, options.train, options.steps)
        return
    _, _, test = tfmeta.data.load("omniglot", data_dir=options.data_dir)
    sampler = tfmeta.data.EpisodeSampler(test, WAYS, SHOTS, QUERIES, seed=1)
    known = options.json is not None and options.json.exists()
    results = json.loads(options.json.read_text()) if known else {}
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        for name, learner in learners().items():
            if options.only not in (None, name):
                continue
            learner(sampler.batch(0)[0])
            learner.load_weights(file_of(options.learners, name))
            found = results.setdefault(name, {})
            if options.episodes:
                found |= accuracies(name, learner, sampler, options.episodes, folder)
            if options.calls:
                found |= latencies(learner, sampler, options.calls, folder)
            print(name, json.dumps(found, indent=2), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
