"""How far are predictions in single precision from those in double precision, on real images?

Letters (drawn), Omniglot and CIFAR-FS, 5-way 1-shot, before and after a short training: the logits
of 200 test tasks side by side, in turn, and, of the first of them, those of `adapt` and of an
export, each against the same learner in double precision with the same weights. The error of a task
is the largest one of its logits. Each setting is kept in the file when it is done, and those that
are there are not run again. Usage:

    python benchmarks/single_precision.py DATA_DIR --json RESULTS.json
    python benchmarks/single_precision.py --json RESULTS.json --table > RESULTS.md
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmeta

WAYS, QUERIES, RATE = 5, 3, 0.1
# Tasks whose error is larger have a unit that was taken to be at the other side of its kink.
KINK = 1e-3

IMAGES = {(28, 28, 1): ("glyphs", "omniglot"), (32, 32, 3): ("cifar_fs",)}
# What is trained, and what predicts: first-order MAML's predictions are MAML's own.
METHODS = {
    "MAML": (tfmeta.MAML, tfmeta.MAML),
    "FOMAML": (tfmeta.FOMAML, tfmeta.MAML),
    "MAML++": (tfmeta.MAMLPlusPlus, tfmeta.MAMLPlusPlus),
    "Meta-SGD": (tfmeta.MetaSGD, tfmeta.MetaSGD),
}
PATHS = {"packed": "side by side", "loop": "in turn", "adapt": "`adapt`", "export": "export"}


class Learners:
    """Learners of one kind, traced once for all weights that they are given."""

    def __init__(self, shape: Any, downsample: str, steps: int, filters: int) -> None:
        self.shape, self.downsample, self.steps, self.filters = shape, downsample, steps, filters
        self._cached = functools.cache(self._made)

    def made(self, kind: Any, task_axis: str, dtype: str = "float32") -> tfmeta.MetaLearner:
        """Return a learner as it was when it was made."""
        learner, values = self._cached(kind, task_axis, dtype)
        variables = *learner.weights, *learner.optimizer.variables
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return learner

    def _made(self, kind: Any, task_axis: str, dtype: str) -> tuple[tfmeta.MetaLearner, list[Any]]:
        keras.utils.set_random_seed(0)
        with precision(dtype):
            network = tfmeta.models.conv4(self.shape, WAYS, self.filters, self.downsample)
            learner = kind(network, RATE, self.steps, task_axis=task_axis)
            learner.compile(
                keras.optimizers.Adam(1e-3),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
            learner.build({"support_x": (4, WAYS, *self.shape)})
        learner.optimizer.build(learner.trainable_variables)
        return learner, [v.numpy() for v in (*learner.weights, *learner.optimizer.variables)]

    def trained(self, name: str, sampler: Any, steps: int) -> list[Any]:
        """Return the weights after so many outer steps from those that all begin with."""
        learner = self.made(METHODS[name][0], "auto")
        if steps:
            learner.fit(sampler.dataset(meta_batch_size=4), steps_per_epoch=steps, verbose=0)
        return learner.get_weights()

    def logits(self, name: str, weights: Any, inputs: Any, few: int) -> Iterator[tuple[str, Any]]:
        """Yield each path's name and its logits, the exact ones first."""
        kind = METHODS[name][1]
        with precision("float64"):
            exact = given(self.made(kind, "loop", "float64"), weights)
            double = {
                k: v.astype("float64") if v.dtype.kind == "f" else v for k, v in inputs.items()
            }
            yield "exact", exact.predict(double, batch_size=40, verbose=0)
        for axis in ("auto", "loop"):
            learner = given(self.made(kind, axis), weights)
            yield (
                "packed" if axis == "auto" else axis,
                learner.predict(inputs, batch_size=40, verbose=0),
            )
        if few:
            tasks = [{k: v[i] for k, v in inputs.items()} for i in range(few)]
            adapted = [
                learner.adapt(t["support_x"], t["support_y"])(t["query_x"], training=False)
                for t in tasks
            ]
            yield "adapt", np.stack(adapted)
            with tempfile.TemporaryDirectory() as folder:
                learner.export(folder)
                export = tf.saved_model.load(folder).signatures["adapt_and_predict"]
                exported = [
                    export(
                        support_x=tf.constant(t["support_x"]),
                        support_y=tf.constant(t["support_y"], tf.int64),
                        query_x=tf.constant(t["query_x"]),
                    )
                    for t in tasks
                ]
            yield "export", np.stack([next(iter(out.values())) for out in exported])


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Have Keras make all of one type."""
    keras.config.set_floatx(dtype), keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx("float32"), keras.config.set_dtype_policy("float32")


def given(learner: tfmeta.MetaLearner, weights: Any) -> tfmeta.MetaLearner:
    learner.set_weights(weights)
    return learner


@functools.cache
def classes(data: str, data_dir: str | None) -> tuple[Any, Any]:
    train, _, test = tfmeta.data.load(data, data_dir=None if data == "glyphs" else data_dir)
    return train, test


def measured(logits: dict[str, Any], labels: Any) -> dict[str, Any]:
    """Return the errors of each path, and what they do to accuracy."""
    exact = logits.pop("exact")
    said = exact.argmax(-1)
    row: dict[str, Any] = {
        "tasks": len(exact),
        "logit": float(np.median(np.abs(exact).max((1, 2)))),
        "accuracy": float((said == labels).mean()),
    }
    for path, values in logits.items():
        n = len(values)
        errors = np.abs(values - exact[:n]).max((1, 2))
        far = errors > KINK
        of_path = {
            "tasks": n,
            "median": float(np.median(errors)),
            "95 %": float(np.quantile(errors, 0.95)),
            "kinked": float(far.mean()),
            "accuracy": float((values.argmax(-1) == labels[:n]).mean()),
            "other answers": float((values.argmax(-1) != said[:n]).mean()),
        }
        if path in ("adapt", "export"):
            apart = np.abs(values - logits["packed"][:n]).max((1, 2))
            of_path["from predict"] = {
                "median": float(np.median(apart)),
                "95 %": float(np.quantile(apart, 0.95)),
            }
        row[path] = of_path
    return row


def settings() -> Iterator[tuple[Any, ...]]:
    """Yield all settings, those that share graphs one after another."""
    groups = itertools.product(IMAGES, ("pool", "stride"), (1, 5), METHODS)
    for shape, downsample, steps, method in groups:
        for data, when in itertools.product(IMAGES[shape], ("before", "after")):
            if when == "before" and method == "FOMAML":
                continue  # MAML's
            yield shape, downsample, steps, method, data, when


NAMES = ("network", "inner steps", "method", "data", "training")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in NAMES)


def run(arguments: Any) -> None:
    rows = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    done = {key(row) for row in rows}
    group, learners = None, None
    everything = list(settings())
    for number, (shape, *setting) in enumerate(everything):
        downsample, steps, method, data, when = setting
        if tuple(setting) in done or data not in arguments.data:
            continue
        started = time.process_time()
        if group != (shape, downsample, steps):
            keras.backend.clear_session()
            group = (shape, downsample, steps)
            learners = Learners(*group, arguments.filters)
        train, test = classes(data, arguments.data_dir)
        sampler = tfmeta.data.EpisodeSampler(train, WAYS, 1, QUERIES, seed=0)
        outer = arguments.outer_steps if when == "after" else 0
        weights = learners.trained(method, sampler, outer)
        tasks = tfmeta.data.EpisodeSampler(test, WAYS, 1, QUERIES, seed=1)
        inputs, labels = tasks.batch(0, arguments.tasks)
        few = arguments.few if when == "after" else 0
        row = dict(zip(NAMES, setting, strict=True))
        row["filters"], row["outer steps"] = arguments.filters, outer
        row |= measured(dict(learners.logits(method, weights, inputs, few)), labels)
        row["processor seconds"] = time.process_time() - started
        rows.append(row)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
        print(
            f"{number + 1}/{len(everything)} {' '.join(map(str, setting))}: packed "
            f"{row['packed']['median']:.1e} {row['packed']['95 %']:.1e}, in turn "
            f"{row['loop']['median']:.1e} {row['loop']['95 %']:.1e}, "
            f"{row['processor seconds']:.0f} s",
            flush=True,
        )


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield (
        "| data | network | K | method | training | "
        + " | ".join(f"{path}: median, 95 %" for path in PATHS.values())
        + " | over 10⁻³: side by side, in turn | accuracy: double, side by side, in turn "
        "| other answers: side by side, in turn |"
    )
    yield "|" + " --- |" * (5 + len(PATHS) + 3)
    for row in sorted(
        rows, key=lambda row: (row["data"], *key(row)[:3], row["training"] == "after")
    ):
        cells = [row["data"], row["network"], row["inner steps"], row["method"], row["training"]]
        for path in PATHS:
            cells.append(
                f"{row[path]['median']:.0e}, {row[path]['95 %']:.0e}" if path in row else ""
            )
        both = [row["packed"], row["loop"]]
        cells.append(", ".join(f"{100 * path['kinked']:.1f} %" for path in both))
        cells.append(", ".join(f"{100 * path['accuracy']:.2f}" for path in (row, *both)))
        cells.append(", ".join(f"{100 * path['other answers']:.2f} %" for path in both))
        yield "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data_dir", nargs="?")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print what is in the file")
    every = [data for of_shape in IMAGES.values() for data in of_shape]
    parser.add_argument("--data", nargs="+", choices=every, default=every)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--few", type=int, default=10, help="tasks for `adapt` and the export")
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--outer-steps", type=int, default=30)
    arguments = parser.parse_args()
    if arguments.table:
        print("\n".join(table(json.loads(arguments.json.read_text()))))
    else:
        run(arguments)


if __name__ == "__main__":
    main()
