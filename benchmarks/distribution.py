"""What several workers exchange in a step, and how long it takes on the loopback interface.

    python benchmarks/distribution.py --json benchmarks/results/distribution.json

Each worker is a process with one thread for an operation and, as far as they suffice, a core of its
own. Measured are medians over repetitions, as the first worker sees them:

exchange    one all-reduce of n numbers in single precision, through the strategy
step        a step of `fit`'s train function: MAML with five inner steps, second order, on 5-way
            1-shot tasks with five queries a class of 28×28 images; as many tasks for each worker
            however many workers there are
draw        drawing and cutting a worker's part out of a whole meta-batch

From these follows on paper, by the formula in docs/distributed.md, up to how many workers doubling
their number shortens a step of 32 tasks, and up to how many half of their time is arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmeta
from tfmeta.distribution import shared_out, strategy_of_environment, summed, workers_of
from tfmeta.workers import free_ports

SIZES = (1_000, 10_000, 100_000, 1_000_000, 4_000_000, 12_500_000)
TASKS = 4  # of a worker


def median_of(call: Any, repeats: int) -> float:
    """Return the median of some seconds that a call takes; the first two do not count."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def sampler() -> tfmeta.data.EpisodeSampler:
    """Return a sampler of noise; what is drawn does not matter here."""
    images = np.random.default_rng(0).integers(0, 256, (1000, 28, 28, 1), np.uint8)
    data = tfmeta.data.ClassDataset(images, np.arange(1000) // 20)
    return tfmeta.data.EpisodeSampler(data, ways=5, shots=1, queries=5)


def exchanges(strategy: Any) -> dict[int, float]:
    """Return the seconds of an all-reduce, by how many numbers it is of."""

    @tf.function(autograph=False)
    def once(n: int) -> Any:
        def ours() -> Any:
            values = tf.fill([n], tf.random.uniform(()))
            return tf.reduce_sum(summed([values])[0][:1])

        return strategy.experimental_local_results(strategy.run(ours))[0]

    return {n: median_of(lambda n=n: once(n).numpy(), 30 if n < 10**6 else 12) for n in SIZES}


def steps(strategy: Any, downsample: str, tasks: int) -> dict[str, float]:
    """Return the seconds of a step of MAML and of drawing, and the bytes of its gradient."""
    with strategy.scope():
        network = tfmeta.models.conv4((28, 28, 1), 5, downsample=downsample)
        learner = tfmeta.MAML(network, inner_learning_rate=0.1, inner_steps=5)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = sampler().dataset(tasks * strategy.num_replicas_in_sync)
    learner.fit(data, steps_per_epoch=1, verbose=0)
    batches = iter(shared_out(data, strategy))
    draw = median_of(lambda: next(batches), 20)
    step = median_of(lambda: float(learner.train_function(batches)["loss"]), 15)
    numbers = sum(int(np.prod(v.shape)) for v in learner.trainable_variables)
    return {"step": step, "draw": draw, "gradient_bytes": 4 * numbers}


def worker(output: Path) -> None:
    """Measure as one of the workers, and have the first one write it down."""
    cores = sorted(os.sched_getaffinity(0))
    index = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
    os.sched_setaffinity(0, {cores[index % len(cores)]})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    strategy = strategy_of_environment()
    workers = strategy.num_replicas_in_sync
    found: dict[str, Any] = {"workers": workers}
    if workers > 1:
        found["exchange"] = exchanges(strategy)
    if workers <= len(cores):
        found["step"] = {name: steps(strategy, name, TASKS) for name in ("stride", "pool")}
    if workers_of(strategy)[0] == 0:
        output.write_text(json.dumps(found))


def measure(count: int, output: Path) -> dict[str, Any]:
    """Start workers, and return what they have measured."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    processes = []
    try:
        for i in range(count):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}}
            config = {"TF_CONFIG": json.dumps(task)} if count > 1 else {}
            command = [sys.executable, __file__, "--worker", str(output)]
            processes.append(subprocess.Popen(command, env={**os.environ, **config}))
        for process in processes:
            if process.wait():
                raise RuntimeError(f"a worker ended with {process.returncode}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    result: dict[str, Any] = json.loads(output.read_text())
    output.unlink()
    return result


def seconds(workers: float, tasks: int, task: float, gradient: float, link: Any) -> Any:
    """Return a step's arithmetic and exchange in a ring of workers, in seconds."""
    latency, bandwidth = link
    exchange = 2 * (workers - 1) * (latency + gradient / workers / bandwidth)
    return tasks * task / workers, exchange


def on_paper(results: list[Any]) -> list[Any]:
    """Return how many workers are worth having, from what was measured."""
    measured = {result["workers"]: result for result in results}
    exchange = measured[2]["exchange"]
    latency = exchange[str(SIZES[0])] / 2
    bandwidth = 4 * SIZES[-1] / (exchange[str(SIZES[-1])] - exchange[str(SIZES[0])])
    # Multiply-adds of a task's images, forwards, and bytes of its gradient.
    networks = {
        "Conv4, pooled, 28x28": (491e6, 0.449e6),
        "Conv4, pooled, 84x84": (4.86e9, 0.484e6),
        "ResNet-12, 84x84": (175e9, 49.7e6),
    }
    rate = TASKS * networks["Conv4, pooled, 28x28"][0] / measured[1]["step"]["pool"]["step"]
    places = {
        "cores here, loopback": (rate, (latency, bandwidth)),
        "cores here, 10 Gbit/s": (rate, (latency, 1.25e9)),
        "100 times as fast, 10 Gbit/s": (100 * rate, (latency, 1.25e9)),
        "1000 times as fast, 100 Gbit/s": (1000 * rate, (latency, 12.5e9)),
    }
    rows = []
    for network, (operations, gradient) in networks.items():
        for place, (speed, link) in places.items():
            tasks, task, counts = 32, operations / speed, [2**k for k in range(6)]
            steps = [seconds(n, tasks, task, gradient, link) for n in counts]
            total = [sum(parts) for parts in steps]
            best = next(
                (n for n, a, b in zip(counts, total, total[1:], strict=False) if b >= a), counts[-1]
            )
            half = max(n for n, (a, e) in zip(counts, steps, strict=True) if a >= e)
            row = {"network": network, "place": place, "task": task, "doubling_pays_to": best}
            rows.append({**row, "half_arithmetic_to": half, "speed_up": total[0] / min(total)})
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    results = [measure(n, options.json.with_suffix(".part")) for n in options.workers]
    machine = {"cpus": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    paper = on_paper(results) if {1, 2} <= set(options.workers) else []
    found = {
        "machine": machine,
        "load": os.getloadavg(),
        "paper": paper,
        "versions": versions,
        "tasks": TASKS,
        "results": results,
    }
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    for result in [*results, *paper]:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]))
    else:
        main()
