"""What ten particles of Bayesian MAML cost beside one: milliseconds of an outer step.

The network for sine waves (three layers of 40 units, 5 shots, 10 queries, ten tasks in flight) and
the strided Conv4 (5-way 1-shot, one query a class, four tasks, two in flight), each with one
particle and with ten, in one process and by turns. Beside them ten times as many tasks for MAML,
which is the same arithmetic without what particles have in common. Usage:

    python benchmarks/particles.py --json RESULTS.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmeta


def sinusoid(times: int) -> tuple[Any, Any, Any, Any]:
    """Return network, keyword arguments, a batch of `times` as many tasks, and the loss."""
    network = tfmeta.models.mlp((1,), 1, units=(40, 40, 40))
    batch = tfmeta.data.Sinusoids(5, 10, seed=0).batch(0, 10 * times)
    options = {"inner_learning_rate": 0.01, "task_chunk": 10 * times}
    return network, options, batch, "mean_squared_error"


def conv4(times: int) -> tuple[Any, Any, Any, Any]:
    """The same of images."""
    rng = np.random.default_rng(0)
    images = tfmeta.data.ClassDataset(
        rng.random((200, 28, 28, 1), np.float32), np.arange(200) // 10
    )
    network = tfmeta.models.conv4((28, 28, 1), 5, filters=64, downsample="stride")
    batch = tfmeta.data.EpisodeSampler(images, 5, 1, 1).batch(0, 4 * times)
    options = {"inner_learning_rate": 0.1, "task_chunk": 2 * times}
    return network, options, batch, keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def milliseconds(contestants: dict[str, Any], rounds: int) -> dict[str, float]:
    """Return the median time of a step, by turns; the first ones, which compile, left out."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, (learner, x, y) in contestants.items():
            for _ in range(4):
                begin = time.perf_counter()
                learner.train_on_batch(x, y)
                if turn:
                    taken[name].append(1e3 * (time.perf_counter() - begin))
    return {name: float(np.median(each)) for name, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["sinusoid", "conv4"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--outer-losses", nargs="+", default=["chaser", "query"])
    parser.add_argument("--xla", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    rows = []
    settings = itertools.product(arguments.networks, arguments.outer_losses, arguments.steps)
    for network, outer_loss, steps in settings:
        contestants = {}
        for name, times, particles in (
            ("one", 1, 1),
            ("ten", 1, 10),
            ("maml", 1, None),
            ("maml_ten_times_the_tasks", 10, None),
        ):
            model, options, batch, loss = {"sinusoid": sinusoid, "conv4": conv4}[network](times)
            options["inner_steps"] = steps
            if particles is None:
                learner = tfmeta.MAML(model, **options)
            else:
                learner = tfmeta.BayesianMAML(
                    model, particles=particles, outer_loss=outer_loss, **options
                )
            learner.compile("adam", loss, jit_compile=arguments.xla)
            contestants[name] = learner, *tf.nest.map_structure(tf.convert_to_tensor, batch)
        taken = milliseconds(contestants, arguments.rounds)
        row = {"network": network, "outer_loss": outer_loss, "inner_steps": steps}
        row |= {name: round(each, 2) for name, each in taken.items()}
        row["ratio"] = round(taken["ten"] / taken["one"], 2)
        row["ratio_of_tasks"] = round(taken["maml_ten_times_the_tasks"] / taken["maml"], 2)
        rows.append(row)
        print(json.dumps(row), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
