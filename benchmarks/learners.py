"""How much processor time does an outer step take, of each learner?

Run `python benchmarks/learners.py --json benchmarks/results/learners.json`. Omniglot's shape, 5-way
5-shot with 5 queries a class, four tasks a step, a strided Conv4 of 32 filters, five inner steps
where there are such. Processor time, both cores added up, because it stays what it is while other
programs run; the least over steps behind the first two, which trace, because what runs beside it
takes its caches away.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmeta

WAYS, SHOTS, QUERIES, TASKS, STEPS = 5, 5, 5, 4, 5
RATE = 0.05


def network(outputs: int | None = WAYS) -> keras.Model:
    """Return the network, or without outputs the encoder."""
    return tfmeta.models.conv4((28, 28, 1), outputs, filters=32, downsample="stride")


def with_context() -> keras.Model:
    """Return a network that reads context parameters behind its encoder."""
    encoder = network(None)
    told = tfmeta.layers.Context(5)(encoder.outputs[0])
    return keras.Model(encoder.inputs, keras.layers.Dense(WAYS)(told))


def learners() -> dict[str, Any]:
    """Return what makes each learner that `fit` has something to train of."""
    of_network = "MAML FOMAML MAMLPlusPlus MetaSGD MetaCurvature ANIL BOIL ImplicitMAML Reptile"
    of_encoder = (
        "PrototypicalNetwork LogisticRegression R2D2 MetaOptNet BaselinePlusPlus MatchingNetwork "
        "RelationNetwork FEAT SoftKMeans LabelPropagation"
    )
    made: dict[str, Any] = {
        name: lambda name=name: getattr(tfmeta, name)(network(None)) for name in of_encoder.split()
    }
    made |= {
        name: lambda name=name: getattr(tfmeta, name)(network(), RATE, STEPS)
        for name in of_network.split()
    }
    made["ProtoMAML"] = lambda: tfmeta.ProtoMAML(network(None), 0.001, STEPS)
    made["CAVIA"] = lambda: tfmeta.CAVIA(with_context(), RATE, STEPS)
    made["BayesianMAML"] = lambda: tfmeta.BayesianMAML(network(), RATE, STEPS, particles=5)
    made["AmortizedBayesianMAML"] = lambda: tfmeta.AmortizedBayesianMAML(
        network(), RATE, STEPS, samples=5
    )
    return made


def milliseconds(learner: Any, seconds: float) -> dict[str, float]:
    """Return the processor time of an outer step, and of the two that trace it."""
    rng = np.random.default_rng(0)

    def part(number: int) -> tuple[Any, Any]:
        x = rng.random((TASKS, WAYS * number, 28, 28, 1), np.float32)
        return x, np.tile(np.repeat(np.arange(WAYS), number), (TASKS, 1))

    (support_x, support_y), (query_x, targets) = part(SHOTS), part(QUERIES)
    inputs = {"support_x": support_x, "support_y": support_y, "query_x": query_x}
    learner.compile(
        keras.optimizers.Adam(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    begun = time.process_time()
    for _ in range(2):
        learner.train_on_batch(inputs, targets)
    tracing, times = time.process_time() - begun, []
    until = time.process_time() + seconds
    while len(times) < 5 or time.process_time() < until:
        start = time.process_time()
        learner.train_on_batch(inputs, targets)
        times.append(1000 * (time.process_time() - start))
    return {
        "milliseconds": min(times),
        "median": statistics.median(times),
        "steps": len(times),
        "tracing": tracing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of processor time, each")
    parser.add_argument("--learners", nargs="+", default=list(learners()))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = []
    for name in chosen.learners:
        keras.utils.set_random_seed(0)
        row = {"learner": name, **milliseconds(learners()[name](), chosen.seconds)}
        print(f"{name:24} {row['milliseconds']:8.1f} ms, {row['tracing']:5.1f} s of tracing")
        rows.append(row)
        tf.keras.backend.clear_session()
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    result = {"cores": os.cpu_count(), "machine": platform.machine(), "versions": versions}
    if chosen.json:
        chosen.json.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
