"""Does a threshold for "unknown", fitted on validation classes, keep its rate on test classes?

A Prototypical Network with the strided network of four blocks, trained for some minutes on Omniglot
or CIFAR-FS. Episodes of ten ways, five of which are shown: the threshold is fitted on those of
validation classes, and both rates are measured on those of test classes. Usage:

    TFMETA_DATA_DIR=... python benchmarks/unknown.py --data omniglot --json RESULTS.json

With `--learner FILE` the trained learner is kept there, and read from there the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmeta
from tfmeta.calibration import auroc
from tfmeta.evaluation import logits_of_queries
from tfmeta.threshold import SCORES, scores

# Ways and shots of training, steps and rate.
TRAINING = {"omniglot": (20, 1, 800, 2e-3), "cifar_fs": (10, 5, 3000, 1e-3)}
SHOWN, WAYS, QUERIES = 5, 10, 15
RATES = [(name, rate) for name in ("false_acceptance", "false_rejection") for rate in (0.05, 0.1)]


def trained(data: str, part: Any, filters: int) -> keras.Model:
    ways, shots, steps, rate = TRAINING[data]
    keras.utils.set_random_seed(0)
    network = tfmeta.models.conv4(part.example_shape, filters=filters, downsample="stride")
    learner = tfmeta.PrototypicalNetwork(network)
    learner.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    sampler = tfmeta.data.EpisodeSampler(part, ways, shots, 5, seed=0)
    begin = time.perf_counter()
    learner.fit(sampler.dataset(), steps_per_epoch=steps, verbose=0)
    print(f"trained for {time.perf_counter() - begin:.0f} s", flush=True)
    return learner


def differences(learner: Any, threshold: Any, drawn: Any, unknown: Any, episodes: int) -> int:
    """Return for how many queries an exported learner says otherwise than `unknown` does."""
    with tempfile.TemporaryDirectory() as folder:
        learner.export(folder + "/learner", unknown=threshold)
        served = tf.saved_model.load(folder + "/learner")
    said = []
    for step in range(episodes):
        inputs, _ = drawn.batch(step)
        x, y, q = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
        x, y = x[y < SHOWN], y[y < SHOWN].astype(np.int64)
        said.append(served.adapt_and_predict(support_x=x, support_y=y, query_x=q)["unknown"])
    found = np.concatenate(said)
    return int(np.sum(found != unknown[: len(found)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=TRAINING, default="omniglot")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--learner", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    data_dir = os.environ.get("TFMETA_DATA_DIR")
    data_dir = data_dir and pathlib.Path(data_dir) / "tfds"
    train, *others = tfmeta.data.load(arguments.data, data_dir=data_dir)
    if arguments.learner and arguments.learner.exists():
        learner = keras.models.load_model(arguments.learner)
    else:
        learner = trained(arguments.data, train, arguments.filters)
        if arguments.learner:
            learner.save(arguments.learner)
    rows = []
    for shots in (1, 5):
        validation, test = (
            tfmeta.data.EpisodeSampler(part, WAYS, shots, QUERIES, seed=1000) for part in others
        )
        (fitted, of_fitted), (z, y) = (
            logits_of_queries(learner, drawn, arguments.episodes, SHOWN, verbose=False)
            for drawn in (validation, test)
        )
        shown = y < SHOWN
        right = np.mean(z[shown].argmax(1) == y[shown])
        for score in SCORES:
            area = auroc(scores(z, score).numpy(), shown)
            for name, rate in RATES:
                threshold = tfmeta.unknown.fit_predictions(
                    fitted, of_fitted < SHOWN, score=score, **{name: rate}
                )
                unknown = threshold(z)
                row = {
                    "data": arguments.data,
                    "shots": shots,
                    "accuracy": round(100 * float(right), 1),
                    "score": score,
                    "auroc": round(100 * area, 1),
                    "asked": f"{name} {rate}",
                    "false_acceptance": round(100 * float(np.mean(~unknown[~shown])), 1),
                    "false_rejection": round(100 * float(np.mean(unknown[shown])), 1),
                }
                if (name, rate, score) == ("false_acceptance", 0.05, SCORES[-1]):
                    row["exported_otherwise"] = differences(learner, threshold, test, unknown, 20)
                rows.append(row)
                print(json.dumps(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
