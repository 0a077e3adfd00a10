"""How fast is an outer step on a GPU, with XLA and without, and is it right?

    python benchmarks/gpu.py --output benchmarks/results/gpu.json

The settings are those of `meta_step.py`: MAML on 5-way 1-shot tasks, `conv4` of 64 filters, 32
tasks a meta-batch. Each runs in a process of its own, in single precision and with the policies
`mixed_float16` and `mixed_bfloat16`. The table has the median of milliseconds a task and the peak
of the device's memory as TensorFlow counts it. Then the outer gradients of single precision, with
and without XLA and with TensorFloat-32 off, are compared with a CPU's: of each, the largest
difference over the largest entry of all.

`--try-on-cpu` runs all of it on a CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import meta_step
import numpy as np
import rivals
from rivals import Problem

WARM_UP = 3
POLICIES = ("float32", "mixed_float16", "mixed_bfloat16")


def one(task: dict[str, Any]) -> dict[str, Any]:
    """Measure one setting, or keep its gradients: what a process does."""
    import keras
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if task["gradients"]:
        tf.config.experimental.enable_tensor_float_32_execution(False)
    problem = Problem(**task["problem"])
    learner, data = meta_step.our_learner(
        problem,
        rivals.initial_weights(problem),
        rivals.meta_batch(problem),
        policy=task["policy"],
        jit_compile=task["xla"],
    )
    start = time.perf_counter()
    learner.train_function(data)
    first = time.perf_counter() - start
    if task["gradients"]:
        np.savez(task["gradients"], *meta_step.first_moments(learner))
        return {"device": "GPU" if gpus else "CPU"}
    for _ in range(WARM_UP):
        learner.train_function(data)
    times = []
    for _ in range(task["repeats"]):
        start = time.perf_counter()
        logs = learner.train_function(data)
        float(keras.tree.flatten(logs)[0])  # until it is there
        times.append(time.perf_counter() - start)
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20 if gpus else None
    return {
        "device": gpus[0].name if gpus else "CPU",
        "ms_per_task": 1000 * statistics.median(times) / problem.tasks,
        "first_step_seconds": first,
        "memory_mb": peak,
    }


def in_process(task: dict[str, Any], gpu: bool) -> dict[str, Any]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(task)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def check(problem: Problem) -> dict[str, Any]:
    """Return how far the gradients of a GPU are from those of a CPU."""
    gradients, results = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, gpu, xla in (("CPU", False, False), ("GPU", True, False), ("XLA", True, True)):
            file = pathlib.Path(folder) / f"{name}.npz"
            task = {"problem": problem._asdict(), "policy": "float32", "xla": xla}
            results[name] = in_process({**task, "gradients": str(file)}, gpu)
            if file.exists():
                with np.load(file) as arrays:
                    gradients[name] = [arrays[key] for key in arrays.files]
    if "CPU" not in gradients:
        return {"CPU": results["CPU"]}
    largest = max(np.abs(g).max() for g in gradients["CPU"])
    for name in gradients.keys() - {"CPU"}:
        pairs = zip(gradients[name], gradients["CPU"], strict=True)
        results[name]["difference"] = float(max(np.abs(a - b).max() for a, b in pairs) / largest)
    return {name: result for name, result in results.items() if name != "CPU"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", type=int, default=32)
    add("--steps", type=int, nargs="+", default=[1, 5])
    add("--networks", nargs="+", choices=["strided", "pooled"], default=["strided", "pooled"])
    add("--orders", nargs="+", choices=["second", "first"], default=["second", "first"])
    add("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    add("--repeats", type=int, default=10)
    add("--try-on-cpu", action="store_true")
    add("--output", type=pathlib.Path)
    add("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(json.loads(arguments.one))))
        return
    seen = subprocess.run(
        [sys.executable, "-c", "import tensorflow as tf; print(tf.config.list_physical_devices())"],
        capture_output=True,
        text=True,
    ).stdout
    if "GPU" not in seen and not arguments.try_on_cpu:
        raise SystemExit("TensorFlow sees no GPU here; --try-on-cpu runs the same on a CPU.")
    rows = []
    every = itertools.product(
        arguments.networks, arguments.orders, arguments.steps, arguments.policies, (True, False)
    )
    print("| setting | policy | XLA | ms a task | first step, s | memory, MB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for network, order, steps, policy, xla in every:
        problem = Problem("maml", network, steps, order == "first", arguments.tasks)
        task = {"problem": problem._asdict(), "policy": policy, "xla": xla, "gradients": ""}
        result = in_process({**task, "repeats": arguments.repeats}, gpu=True)
        rows.append({**task, **result})
        numbers = [result.get("failed", "")]
        if "ms_per_task" in result:
            memory = result["memory_mb"]
            numbers = [f"{result['ms_per_task']:.2f}", f"{result['first_step_seconds']:.1f}"]
            numbers.append("–" if memory is None else f"{memory:.0f}")
        cells = [meta_step.describe(problem), policy, "yes" if xla else "no", *numbers]
        print(f"| {' | '.join(cells)} |", flush=True)
    checks = []
    for network in arguments.networks:
        problem = Problem("maml", network, 1, False, 4)
        checks.append({"problem": problem._asdict(), **check(problem)})
        print(f"\n{meta_step.describe(problem)}, difference from a CPU: {checks[-1]}", flush=True)
    if arguments.output:
        result = {**meta_step.machine(os.cpu_count() or 1), "rows": rows, "checks": checks}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
