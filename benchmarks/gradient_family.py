"""How far does each gradient-based method get in the same few minutes? Omniglot, 5-way 1-shot.

Each method trains the strided four-block network for the same processor time, all cores added up
and tracing included, from the same seed, and is scored on the same test episodes. Processor time
and not that of the clock, so that other programs on the machine matter less. Adam's rate falls
along half a cosine over that time, Reptile's ε in a straight line, so that no method is cut off at
full speed. Usage:

    python benchmarks/gradient_family.py DATA_DIR --seconds 420 --json RESULTS.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import tfmeta
from tfmeta.inner_optimizers import Adam

WAYS = 5


def network() -> keras.Model:
    return tfmeta.models.conv4((28, 28, 1), WAYS, downsample="stride")


def encoder() -> keras.Model:
    return tfmeta.models.conv4((28, 28, 1), downsample="stride")


# name: (learner, outer rate, tasks a step, shots in training)
METHODS: dict[str, tuple[Any, float, int, int]] = {
    "MAML": (lambda: tfmeta.MAML(network(), 0.4, 1, evaluation_steps=3), 3e-3, 16, 1),
    "FOMAML": (lambda: tfmeta.FOMAML(network(), 0.4, 1, evaluation_steps=3), 3e-3, 16, 1),
    "MAML++": (
        lambda: tfmeta.MAMLPlusPlus(network(), 0.4, 2, multi_step_epochs=4, first_order_epochs=10),
        3e-3,
        16,
        1,
    ),
    "Reptile": (
        lambda: tfmeta.Reptile(
            network(),
            inner_steps=5,
            evaluation_steps=50,
            inner_batch_size=10,
            inner_optimizer=Adam(3e-3, beta_1=0.0),
            seed=0,
        ),
        1.0,
        5,
        10,
    ),
    "ANIL": (lambda: tfmeta.ANIL(network(), 0.4, 1, evaluation_steps=3), 3e-3, 16, 1),
    "Meta-SGD": (lambda: tfmeta.MetaSGD(network(), 0.4, 1), 3e-3, 16, 1),
    "ProtoMAML": (lambda: tfmeta.ProtoMAML(encoder(), 0.01, 1), 3e-3, 16, 1),
    "iMAML": (
        lambda: tfmeta.ImplicitMAML(network(), 0.02, 8, proximal=2.0, cg_steps=5, cg_damping=2.0),
        3e-3,
        16,
        1,
    ),
}


class Budget(keras.callbacks.Callback):
    """Let the outer rate fall over a time, and stop when it is over."""

    def __init__(self, seconds: float, rate: float, linear: bool) -> None:
        super().__init__()
        self.seconds, self.rate, self.linear = seconds, rate, linear
        self.start = time.process_time()
        self.steps = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        done = min((time.process_time() - self.start) / self.seconds, 1.0)
        left = 1 - done if self.linear else (1 + math.cos(math.pi * done)) / 2
        self.model.optimizer.learning_rate = self.rate * left

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        if time.process_time() - self.start > self.seconds:
            self.model.stop_training = True


def train(name: str, train_classes: Any, seconds: float) -> tuple[tfmeta.MetaLearner, int, float]:
    """Return a trained learner, its number of outer steps and the seconds by the clock."""
    make, rate, tasks, shots = METHODS[name]
    keras.utils.set_random_seed(0)
    start, start_of_budget = time.perf_counter(), time.process_time()
    learner = make()
    optimizer = keras.optimizers.SGD(rate) if name == "Reptile" else keras.optimizers.Adam(rate)
    learner.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    sampler = tfmeta.data.EpisodeSampler(train_classes, WAYS, shots, queries=5, seed=0)
    budget = Budget(seconds, rate, linear=name == "Reptile")
    budget.start = start_of_budget
    learner.fit(
        sampler.dataset(meta_batch_size=tasks),
        steps_per_epoch=100,
        epochs=10**6,
        callbacks=[budget],
        verbose=2,
    )
    return learner, budget.steps, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data_dir")
    parser.add_argument("--seconds", type=float, default=420, help="processor time for each")
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    parts = tfmeta.data.load("omniglot", data_dir=arguments.data_dir)
    scored = parts[1 if arguments.split == "validation" else 2]
    print(scored.description)
    episodes = tfmeta.data.EpisodeSampler(scored, WAYS, shots=1, queries=15, seed=0)
    rows = []
    for name in arguments.methods:
        learner, steps, seconds = train(name, parts[0], arguments.seconds)
        result = tfmeta.evaluate(learner, episodes, arguments.episodes, verbose=False)
        rows.append(
            {
                "method": name,
                "accuracy": 100 * result.mean,
                "ci95": 100 * result.ci95,
                "outer_steps": steps,
                "processor_seconds": arguments.seconds,
                "clock_seconds": seconds,
            }
        )
        print(
            f"| {name} | {100 * result.mean:.2f} ± {100 * result.ci95:.2f} | {steps} "
            f"| {seconds:.0f} s |",
            flush=True,
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
