"""Does implicit MAML's memory stay level, and does its gradient become exact?

Memory: the growth of a process over what it holds once TensorFlow, the data and the learner are
there, after ten outer steps on the strided four-block network, each number of inner steps in a
process of its own; MAML of second order beside it.

Gradient: on a small network in float64, whose Hessian is small enough to write down, the outer
gradient against the exact one, `(I + H/λ)⁻¹ ∇L_Q(φ*)`, as the steps of conjugate gradients grow.
Usage:

    python benchmarks/implicit_maml.py --json benchmarks/results/implicit_maml.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import tfmeta

STEPS = (5, 10, 20, 50)


def resident() -> float:
    """Return the largest resident size of this process so far, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return float(line.split()[1]) / 1024
    raise RuntimeError("VmHWM is not in /proc/self/status")


def tasks(number: int, size: int, queries: int, dtype: str) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(0)
    inputs = {
        "support_x": rng.random((number, 5, size, size, 1)).astype(dtype),
        "support_y": np.tile(np.arange(5, dtype=np.int32), (number, 1)),
        "query_x": rng.random((number, 5 * queries, size, size, 1)).astype(dtype),
    }
    return inputs, np.tile(np.repeat(np.arange(5, dtype=np.int32), queries), (number, 1))


def growth(method: str, steps: int) -> float:
    """Return by how many MB ten outer steps of four tasks make this process larger."""
    network = tfmeta.models.conv4((28, 28, 1), 5, downsample="stride")
    learner: tfmeta.MetaLearner
    if method == "implicit":
        learner = tfmeta.ImplicitMAML(network, 0.01, steps, cg_steps=5, task_chunk=1)
    else:
        learner = tfmeta.MAML(network, 0.01, steps, task_chunk=1)
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, targets = tasks(4, 28, 15, "float32")
    learner.build({name: x.shape for name, x in inputs.items()})
    before = resident()
    for _ in range(10):
        learner.train_on_batch(inputs, targets)
    return resident() - before


def gradient_errors(proximal: float = 2.0) -> list[dict[str, float]]:
    """Return residual and error of the outer gradient for growing steps of conjugate gradients."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, 2, activation="tanh"),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    inputs, targets = tasks(1, 6, 3, "float64")
    rows = []
    for cg_steps in (1, 2, 3, 5, 8, 12, 20):
        learner = tfmeta.ImplicitMAML(model, 0.2, 200, proximal=proximal, cg_steps=cg_steps)
        learner.compile(keras.optimizers.SGD(1.0), loss)
        start = [w.copy() for w in model.get_weights()]
        support = (tf.constant(inputs["support_x"][0]), tf.constant(inputs["support_y"][0]))
        learner.build({name: x.shape for name, x in inputs.items()})
        weights, _ = learner.adapt_task(*support, training=False)
        exact = exact_gradient(learner, weights.model, inputs, targets, proximal)
        logs = learner.train_on_batch(inputs, targets, return_dict=True)
        moved = [s - w for s, w in zip(start, model.get_weights(), strict=True)]
        model.set_weights(start)
        found = np.concatenate([m.ravel() for m in moved])
        rows.append(
            {
                "cg_steps": cg_steps,
                "residual": float(logs["cg_residual"]),
                "error": float(np.linalg.norm(found - exact) / np.linalg.norm(exact)),
            }
        )
    return rows


def exact_gradient(learner: Any, solution: Any, inputs: Any, targets: Any, proximal: float) -> Any:
    """Solve the dense system with the whole Hessian of the support loss at the solution."""
    variables = learner.model.trainable_variables
    start = [v.numpy() for v in variables]
    for variable, value in zip(variables, solution, strict=True):
        variable.assign(value)
    tensors = [v.value for v in variables]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            support = learner.loss(inputs["support_y"][0], learner.model(inputs["support_x"][0]))
        flat = tf.concat([tf.reshape(g, [-1]) for g in inner.gradient(support, tensors)], 0)
    blocks = outer.jacobian(flat, tensors)
    hessian = np.concatenate([np.reshape(b, (len(flat), -1)) for b in blocks], axis=1)
    with tf.GradientTape() as tape:
        query = learner.loss(targets[0], learner.model(inputs["query_x"][0]))
    direct = np.concatenate([np.ravel(g) for g in tape.gradient(query, tensors)])
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    return np.linalg.solve(np.eye(len(direct)) + hessian / proximal, direct)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--growth", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.growth:
        print(growth(arguments.growth[0], int(arguments.growth[1])))
        return
    result: dict[str, Any] = {"memory_mb": {}, "gradient": gradient_errors()}
    print("| CG steps | residual | error against the exact gradient |\n| --- | --- | --- |")
    for row in result["gradient"]:
        print(f"| {row['cg_steps']} | {row['residual']:.1e} | {row['error']:.1e} |")
    print("\n| inner steps | ImplicitMAML | MAML |\n| --- | --- | --- |", flush=True)
    for steps in STEPS:
        sizes = {}
        for method in ("implicit", "MAML"):
            command = [sys.executable, __file__, "--growth", method, str(steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            sizes[method] = float(done.stdout.split()[-1])
        result["memory_mb"][steps] = sizes
        print(f"| {steps} | {sizes['implicit']:.0f} MB | {sizes['MAML']:.0f} MB |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
