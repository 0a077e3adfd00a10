"""How fast are squared Euclidean distances of queries to prototypes, and how exact?

    python benchmarks/distances.py

Of arrays, of eager tensors and in a `tf.function`, of tensors also with the gradients to both
inputs: once in a function that is called for it, and within a longer function, as in a training
step, where each of many distances depends on all of the one before. All contestants run in turn,
again and again, in one process with all cores; the median is taken.

NumPy       the fastest of three forms: differences, differences by `einsum`, the expanded form by
            a product of matrices.
cdist       `scipy.spatial.distance.cdist` for each task, which computes in float64.
composite   differences, squares and sum by TensorFlow's operations; XLA is the same under
            `jit_compile=True`, beside the eager ones as a function of its own. Where the
            differences take more than a gigabyte, only XLA can.
expanded    the expanded form by TensorFlow's operations: beside the others, for far from the origin
            it is wrong.

The errors are the largest relative ones to float64 of the same float32 inputs.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from scipy.spatial.distance import cdist

from tfmeta import kernels, ops

SIZES = [
    (1, 1, 5, 64),
    (1, 75, 5, 64),
    (4, 75, 5, 64),
    (4, 75, 5, 1600),
    (32, 75, 5, 64),
    (32, 300, 20, 64),
    (1, 2000, 1000, 640),
]
MOST_BYTES = 2**30
CHAINED = 32
PACKAGES = ("tfmeta", "numpy", "scipy", "tensorflow")

Contestants = dict[str, Callable[[], Any]]


def made(size: tuple[int, ...], mean: float = 0.0, spread: float = 1.0) -> tuple[Any, Any, Any]:
    """Return queries, prototypes and an adjoint of their distances."""
    tasks, queries, ways, depth = size
    rng = np.random.default_rng(0)
    middle = mean * rng.standard_normal((tasks, 1, depth))
    q = middle + spread * rng.standard_normal((tasks, queries, depth))
    c = middle + spread * rng.standard_normal((tasks, ways, depth))
    g = rng.standard_normal((tasks, queries, ways))
    return tuple(x.astype(np.float32) for x in (q, c, g))


def by_differences(q: Any, c: Any) -> Any:
    return ((q[:, :, None] - c[:, None]) ** 2).sum(-1)


def by_einsum(q: Any, c: Any) -> Any:
    difference = q[:, :, None] - c[:, None]
    return np.einsum("tqwd,tqwd->tqw", difference, difference)


def expanded(q: Any, c: Any) -> Any:
    squares = np.einsum("tqd,tqd->tq", q, q)[..., None] + np.einsum("twd,twd->tw", c, c)[:, None]
    return squares - 2 * (q @ c.transpose(0, 2, 1))


def tf_composite(q: Any, c: Any) -> Any:
    with kernels.avoided():
        return ops.squared_euclidean(q, c)


def tf_expanded(q: Any, c: Any) -> Any:
    squares = tf.reduce_sum(q**2, -1)[..., None] + tf.reduce_sum(c**2, -1)[:, None]
    return squares - 2 * tf.matmul(q, c, transpose_b=True)


def small(size: tuple[int, ...]) -> bool:
    """Return whether the differences of all pairs can be held."""
    return 4 * int(np.prod(size)) <= MOST_BYTES


def of_arrays(size: tuple[int, ...]) -> Contestants:
    q, c, _ = made(size)
    contestants: Contestants = {
        "ours": lambda: ops.squared_euclidean(q, c),
        "NumPy expanded": lambda: expanded(q, c),
        "cdist": lambda: np.stack([cdist(x, y, "sqeuclidean") for x, y in zip(q, c, strict=True)]),
    }
    if small(size):
        contestants["NumPy differences"] = lambda: by_differences(q, c)
        contestants["NumPy einsum"] = lambda: by_einsum(q, c)
    return contestants


def eager(size: tuple[int, ...], gradient: bool) -> Contestants:
    q, c, g = map(tf.constant, made(size))

    def with_gradient(measure: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([q, c])
            y = measure(q, c)
        return y, tape.gradient(y, [q, c], g)

    compute = with_gradient if gradient else lambda measure: measure(q, c)
    contestants: Contestants = {
        "ours": lambda: compute(ops.squared_euclidean),
        "expanded": lambda: compute(tf_expanded),
        "XLA": in_graph(size, gradient)["XLA"],
    }
    if small(size):
        contestants["composite"] = lambda: compute(tf_composite)
    return contestants


def in_graph(size: tuple[int, ...], gradient: bool) -> Contestants:
    def compute(measure: Any, q: Any, c: Any, g: Any) -> Any:
        y = measure(q, c)
        return [y, *tf.gradients(y, [q, c], g)] if gradient else y

    return compiled(size, compute)


def within_graph(size: tuple[int, ...], gradient: bool) -> Contestants:
    """Return functions of `CHAINED` distances one after another."""

    def compute(measure: Any, q: Any, c: Any, g: Any) -> Any:
        for _ in range(CHAINED):
            # What lies before is not to be differentiated too.
            q, c = tf.stop_gradient(q), tf.stop_gradient(c)
            y = measure(q, c)
            if gradient:
                to_q, to_c = tf.gradients(y, [q, c], g)
                q, c = q + 1e-9 * to_q, c + 1e-9 * to_c
            else:
                # Of all distances: XLA would leave out those that nobody asks for.
                c = c + 1e-9 * tf.reduce_sum(y, 1)[..., None]
        return q, c

    return compiled(size, compute)


def compiled(size: tuple[int, ...], compute: Any) -> Contestants:
    """Return a `tf.function` of `compute` for each way to measure."""
    inputs = [tf.constant(x) for x in made(size)]

    def function(measure: Any, **options: Any) -> Callable[[], Any]:
        traced = tf.function(functools.partial(compute, measure), **options)
        return lambda: traced(*inputs)

    contestants = {
        "ours": function(ops.squared_euclidean),
        "XLA": function(tf_composite, jit_compile=True),
        "expanded": function(tf_expanded),
    }
    if small(size):
        contestants["composite"] = function(tf_composite)
    return contestants


def measure(contestants: Contestants, repeats: int) -> dict[str, float]:
    """Return the median of seconds a call, the contestants taking turns."""
    calls, seconds = {}, {name: [] for name in contestants}
    for name, run in contestants.items():
        for _ in range(2):
            begin = time.perf_counter()
            run()
            once = time.perf_counter() - begin
        calls[name] = max(1, int(0.02 / once))
    for _ in range(repeats):
        for name, run in contestants.items():
            begin = time.perf_counter()
            for _ in range(calls[name]):
                run()
            seconds[name].append((time.perf_counter() - begin) / calls[name])
    return {name: statistics.median(times) for name, times in seconds.items()}


def errors(mean: float, spread: float) -> dict[str, float]:
    """Return the largest relative errors of float32."""
    q, c, _ = made((4, 75, 5, 640), mean, spread)
    exact = by_differences(q.astype(np.float64), c.astype(np.float64))
    found = {
        "ours, arrays": ops.squared_euclidean(q, c),
        "ours, tensors": ops.squared_euclidean(tf.constant(q), tf.constant(c)),
        "composite": tf_composite(tf.constant(q), tf.constant(c)),
        "expanded": expanded(q, c),
    }
    return {name: float(np.abs(np.asarray(x) / exact - 1).max()) for name, x in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="default: all")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "results" / "distances.json",
    )
    arguments = parser.parse_args()

    kinds: dict[str, Callable[[tuple[int, ...]], Contestants]] = {
        "arrays": of_arrays,
        "eager": lambda size: eager(size, gradient=False),
        "eager, gradient": lambda size: eager(size, gradient=True),
        "graph": lambda size: in_graph(size, gradient=False),
        "graph, gradient": lambda size: in_graph(size, gradient=True),
        "within a graph": lambda size: within_graph(size, gradient=False),
        "within a graph, gradient": lambda size: within_graph(size, gradient=True),
    }
    rivals = {"arrays": ("NumPy", "cdist")}
    rows = []
    print(f"{'tasks, queries, ways, depth':>28}  microseconds, and how many times ours")
    for kind, contestants_of in kinds.items():
        if arguments.kinds and kind not in arguments.kinds:
            continue
        print(kind)
        # The largest takes longer than any call, and many of it too long.
        for size in SIZES[: -1 if kind.startswith("within") else None]:
            times = measure(contestants_of(size), arguments.repeats)
            if kind.startswith("within"):
                times = {name: x / CHAINED for name, x in times.items()}
            if kind == "arrays":
                forms = [name for name in times if name.startswith("NumPy")]
                best = min(forms, key=times.__getitem__)
                times["NumPy"] = times[best]
            named = rivals.get(kind, ("composite", "XLA"))
            least = min((times[name] for name in named if name in times), default=None)
            times_ours = least / times["ours"] if least else None
            micros = {name: 1e6 * x for name, x in times.items()}
            rows.append({"kind": kind, "size": size, "us": micros, "times_ours": times_ours})
            print(
                f"{', '.join(map(str, size)):>28}  "
                + "  ".join(f"{name} {x:,.1f}" for name, x in micros.items())
                + (f"  |  {times_ours:.2f}" if times_ours else ""),
                flush=True,
            )

    found = {"around 0": errors(0.0, 1.0), "1e-3 apart around 1e3": errors(1e3, 1e-3)}
    for where, values in found.items():
        print(f"{where}: " + ", ".join(f"{name} {x:.1e}" for name, x in values.items()))

    result = {
        "question": "squared Euclidean distances, microseconds a call",
        "cores": os.cpu_count(),
        "repeats": arguments.repeats,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "rows": rows,
        "errors": found,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    beside = arguments.output.with_suffix(".tmp")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(beside, arguments.output)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
