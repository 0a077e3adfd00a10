"""Bayesian MAML and MAML on sine waves of unknown amplitude, phase and frequency.

The tasks of Yoon et al. (2018): amplitudes from 0.1 to 5, phases from 0 to 2π, frequencies from 0.5
to 2, noise of a hundredth of the amplitude, ten tasks a meta-batch, three layers of 40 units. Both
learners take as many inner and outer steps, on the same meta-batches, and are scored on the same
600 waves of 100 points each: the mean squared error after adaptation, and of Bayesian MAML how many
points lie in the band that should hold 90 % of them. Usage:

    python benchmarks/sinusoid.py --json RESULTS.json
"""

from __future__ import annotations

import argparse
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

WAVES = {"amplitude": (0.1, 5.0), "phase": (0.0, 2 * np.pi), "frequency": (0.5, 2.0), "noise": 0.01}
INNER_STEPS = 5
LOSS = tfmeta.losses.GaussianNLL(squared_error=2.0, least_variance=0.3)


def network(outputs: int) -> keras.Model:
    return tfmeta.models.mlp((1,), outputs, units=(40, 40, 40))


def maml() -> tuple[Any, Any]:
    return tfmeta.MAML(network(1), 0.01, INNER_STEPS, task_chunk=10), "mean_squared_error"


def bayesian() -> tuple[Any, Any]:
    # Ten particles share the inner step, hence the larger rate.
    learner = tfmeta.BayesianMAML(
        network(2), 0.02, INNER_STEPS, particles=10, outer_loss="query", task_chunk=10
    )
    return learner, LOSS


def scores(learner: Any, inputs: Any, targets: Any) -> dict[str, float]:
    if not isinstance(learner, tfmeta.BayesianMAML):
        mean = learner.predict(inputs, batch_size=60, verbose=0)
        return {"mse": float(np.mean((mean - targets) ** 2))}
    parts = []
    for i in range(0, len(targets), 60):
        outputs, apart = learner.moments({k: v[i : i + 60] for k, v in inputs.items()})
        mean, variance = LOSS.mean_and_variance(outputs)
        parts.append((mean.numpy(), (variance + apart[..., :1]).numpy(), apart[..., :1].numpy()))
    mean, variance, apart = (np.concatenate(each) for each in zip(*parts, strict=True))
    inside = np.abs(targets - mean) <= 1.645 * np.sqrt(variance)
    return {
        "mse": float(np.mean((mean - targets) ** 2)),
        "within_90_band": float(inside.mean()),
        "variance": float(variance.mean()),
        "of_it_between_particles": float(apart.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=2e-3, help="Adam's, which falls to nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 10])
    parser.add_argument("--learners", nargs="+", default=["maml", "bayesian"])
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    rows = []
    for shots in arguments.shots:
        inputs, targets = tfmeta.data.Sinusoids(shots, 100, seed=1000, **WAVES).batch(0, 600)
        for seed in arguments.seeds:
            for name in arguments.learners:
                keras.utils.set_random_seed(seed)
                learner, loss = {"maml": maml, "bayesian": bayesian}[name]()
                rate = keras.optimizers.schedules.CosineDecay(arguments.rate, arguments.steps)
                optimizer = keras.optimizers.Adam(rate, global_clipnorm=10.0)
                learner.compile(optimizer, loss)
                waves = tfmeta.data.Sinusoids(shots, 10, seed=seed, **WAVES)
                begin = time.perf_counter()
                learner.fit(waves.dataset(10), steps_per_epoch=arguments.steps, verbose=0)
                row = {
                    "learner": name,
                    "shots": shots,
                    "seed": seed,
                    "steps": arguments.steps,
                    "seconds": round(time.perf_counter() - begin),
                    **scores(learner, inputs, targets),
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
