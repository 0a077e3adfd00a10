"""How far can the probabilities of MAML and of its Bayesian kin be believed, at equal budget?

5-way 1-shot tasks of CIFAR-FS or 20-way ones of Omniglot, the strided network of four blocks, the
same meta-batches and outer steps for all; 600 test episodes, the same for all. Beside each learner
as it is, the same after a temperature that was fitted on validation episodes. Usage:

    TFMETA_DATA_DIR=... python benchmarks/calibration.py --data omniglot --json RESULTS.json
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import tfmeta

SHOTS, QUERIES = 1, 15
SCORES = ("accuracy", "negative_log_likelihood", "brier_score")


class Problem(NamedTuple):
    ways: int
    # A class; fewer than in the test give almost the gradient, and take less time.
    training_queries: int
    inner_learning_rate: float
    inner_steps: int


PROBLEMS = {"cifar_fs": Problem(5, 5, 0.05, 3), "omniglot": Problem(20, 2, 0.4, 1)}


def learners(problem: Problem, shape: tuple[int, ...], filters: int) -> dict[str, Any]:
    ways, _, rate, steps = problem

    def network() -> keras.Model:
        return tfmeta.models.conv4(shape, ways, filters=filters, downsample="stride")

    # The kernel of M particles divides the inner step by M and, where they are far apart, gives
    # little of it back: a larger rate makes up for it.
    particles = {"particles": 5, "repulsion": 1 / (ways * SHOTS)}
    return {
        "MAML": lambda: tfmeta.MAML(network(), rate, steps),
        "BayesianMAML, 5 particles, query": lambda: tfmeta.BayesianMAML(
            network(), 3 * rate, steps, outer_loss="query", **particles
        ),
        "BayesianMAML, 5 particles, chaser": lambda: tfmeta.BayesianMAML(
            network(), 3 * rate, steps, **particles
        ),
        "AmortizedBayesianMAML, 3 samples": lambda: tfmeta.AmortizedBayesianMAML(
            network(), rate, steps, samples=3, initial_std=0.02, kl_weight=1e-3
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=PROBLEMS, default="cifar_fs")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--meta-batch-size", type=int, default=4)
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learners", nargs="+", help="beginnings of their names")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    data_dir = os.environ.get("TFMETA_DATA_DIR")
    problem = PROBLEMS[arguments.data]
    parts = tfmeta.data.load(arguments.data, data_dir=data_dir and pathlib.Path(data_dir) / "tfds")
    rows = []
    for seed in arguments.seeds:
        train, validation, test = (
            tfmeta.data.EpisodeSampler(part, problem.ways, SHOTS, queries, seed=number)
            for part, queries, number in zip(
                parts, (problem.training_queries, QUERIES, QUERIES), (seed, 1000, 1000), strict=True
            )
        )
        made = learners(problem, parts[0].example_shape, arguments.filters)
        for name, make in made.items():
            if arguments.learners and not name.startswith(tuple(arguments.learners)):
                continue
            keras.utils.set_random_seed(seed)
            learner = make()
            learner.compile(
                keras.optimizers.Adam(1e-3),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
            begin = time.perf_counter()
            learner.fit(
                train.dataset(arguments.meta_batch_size),
                steps_per_epoch=arguments.steps,
                verbose=0,
            )
            seconds = time.perf_counter() - begin
            for temperature in (1.0, validation):
                result = tfmeta.uncertainty(
                    learner, test, arguments.episodes, temperature, verbose=False
                )
                scores = {"expected_calibration_error": result.expected_calibration_error()}
                scores |= {key: getattr(result, key) for key in SCORES}
                rows.append(
                    {
                        "learner": name,
                        "seed": seed,
                        "temperature": result.temperature,
                        "seconds": round(seconds),
                        **scores,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
