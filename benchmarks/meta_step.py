"""How long does a whole outer step take, and how much memory, beside other libraries?

    python benchmarks/meta_step.py --output benchmarks/results/meta_step.json

MAML on 5-way 1-shot tasks of Omniglot's size with one query a class, `conv4` of 64 filters, an
inner rate of 0.4, Adam outside; `strided` halves by strides, `pooled` by max-pools. Prototypical
Networks on one episode of 60 ways, 1 shot and 5 queries. The images are noise: only time matters.

Every contestant has a process of its own for each setting, with as many threads as there are cores;
`tfmeta` has one for each operation, and so as many operations at once, which `tfmeta-all-threads`
leaves to TensorFlow. After a warm-up of two steps they take turns, for a shared machine is slower
in one minute than in the next: while one runs, the others wait, and keep their memory. A turn is a
step that does not count, and then at least `--repeats` steps and a second, each by the clock.
The table has the median of milliseconds a task, with the least and the most. tfmeta's step is what
`fit` calls, the compiled `learner.train_function` on an iterator over a `tf.data.Dataset`. Memory
is how far the process's peak is above that behind the imports; tracing and compilation are in it.

`--check` compares the outer gradients instead, all contestants having the same weights and tasks:
for the worst tensor of weights, the largest difference from tfmeta's over the largest entry. The
biases in front of batch normalisation don't count, for their gradients are zero but for rounding.
In float32 an activation next to the kink of a ReLU may fall on either side, which with five images
can turn a gradient by a hundredth or a tenth; float64 tells whether the arithmetic is the same.

    python benchmarks/meta_step.py --contestants tfmeta --problems maml --tasks 8 32 128 256
    python benchmarks/meta_step.py --contestants tfmeta --problems maml --steps 1 2 3 5 10
    python benchmarks/meta_step.py --check --dtype float64

PyTorch, higher and JAX are `pip install torch higher jax`; those that are not there are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import rivals
from rivals import BETA_1, INNER_RATE, Arrays, Contestant, Problem

OPTIONS = ("task_axis", "task_chunk", "recompute")
WARM_UP, LEAST_SECONDS = 2, 1.0
# Some threads go on looking for work for a while.
PAUSE_SECONDS = 0.3
PACKAGES = ("tfmeta", "tensorflow", "keras", "torch", "higher", "jax", "jaxlib", "numpy")


def our_learner(
    problem: Problem,
    weights: Arrays,
    batch: Arrays,
    *,
    policy: str | None = None,
    jit_compile: bool = False,
    **options: Any,
) -> Any:
    """Return a compiled learner whose train function is made, and its data."""
    import keras
    import tensorflow as tf

    import tfmeta

    keras.config.set_floatx(problem.dtype)
    keras.config.set_dtype_policy(policy or problem.dtype)
    downsample = "stride" if problem.strided else "pool"
    shape = (problem.size, problem.size, problem.channels)
    network = tfmeta.models.conv4(shape, problem.outputs, rivals.FILTERS, downsample)
    learner: tfmeta.MetaLearner
    if problem.kind == "prototypical":
        learner = tfmeta.PrototypicalNetwork(network)
    else:
        options = {"batch_norm": "transductive", **options}
        learner = tfmeta.MAML(network, INNER_RATE, problem.steps, problem.first_order, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("adam", loss, jit_compile=jit_compile)
    inputs = dict(zip(("support_x", "support_y", "query_x"), batch, strict=False))
    learner.build({name: x.shape for name, x in inputs.items()})
    for variable, weight in zip(network.trainable_variables, weights, strict=True):
        variable.assign(weight)
    learner.make_train_function()
    return learner, iter(tf.data.Dataset.from_tensors((inputs, batch[-1])).repeat())


def first_moments(learner: Any) -> Arrays:
    return [v.numpy() for v in learner.optimizer.variables if v.path.endswith("_momentum")]


def ours(
    problem: Problem, weights: Arrays, batch: Arrays, one_thread: bool = False, **options: Any
) -> Contestant:
    if one_thread:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
    learner, data = our_learner(problem, weights, batch, **options)
    return lambda: learner.train_function(data), lambda: first_moments(learner)


# kind of problem: {contestant: (what it imports, its step, arguments of that)}
CONTESTANTS: dict[str, dict[str, tuple[str, Callable[..., Contestant], dict[str, bool]]]] = {
    "maml": {
        "tfmeta": ("tfmeta", ours, {"one_thread": True}),
        "tfmeta-all-threads": ("tfmeta", ours, {}),
        "higher": ("higher", rivals.higher, {}),
        "torch-loop": ("torch", rivals.torch_loop, {}),
        "torch-vmap": ("torch", rivals.torch_vmap, {}),
        "torch-vmap-layers": ("torch", rivals.torch_vmap, {"batch_norm_layers": True}),
        "jax-vmap": ("jax", rivals.jax_vmap, {}),
        "jax-vmap-products": ("jax", rivals.jax_vmap, {"products": True}),
        "jax-map-products": ("jax", rivals.jax_vmap, {"products": True, "one_by_one": True}),
    },
    "prototypical": {
        "tfmeta": ("tfmeta", ours, {}),
        "torch": ("torch", rivals.torch_prototypical, {}),
        "torch-channels-last": ("torch", rivals.torch_prototypical, {"channels_last": True}),
    },
}


def peak() -> float:
    """Return the most memory that this process has had so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def use_threads(number: int) -> None:
    """Have as many threads in the frameworks that are imported; JAX reads NPROC."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)
    if "tensorflow" in sys.modules:
        config = sys.modules["tensorflow"].config
        config.threading.set_intra_op_parallelism_threads(number)
        config.threading.set_inter_op_parallelism_threads(number)


def one(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure one contestant in one setting, a turn at a time, or keep its gradients."""
    problem = Problem(**task["problem"])
    module, contestant, options = CONTESTANTS[problem.kind][task["contestant"]]
    try:
        importlib.import_module(module)
    except ImportError as error:
        yield {"absent": str(error)}
        return
    use_threads(task["threads"])
    before = peak()
    weights, batch = rivals.initial_weights(problem), rivals.meta_batch(problem)
    step, first_moments = contestant(problem, weights, batch, **options, **task["options"])
    if task["gradients"]:
        step()
        np.savez(task["gradients"], *[m / (1 - BETA_1) for m in first_moments()])
        yield {}
        return
    start = time.perf_counter()
    for _ in range(WARM_UP):
        step()
    yield {"warm_up_seconds": time.perf_counter() - start}
    while True:
        step()
        times: list[float] = []
        while len(times) < task["repeats"] or sum(times) < LEAST_SECONDS:
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        each = [1000 * seconds / problem.tasks for seconds in times]
        yield {"each": each, "memory_mb": peak() - before}


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what one contestant said at its start and in its turns, in few numbers."""
    start, *rest = turns
    if "absent" in turns[-1] or not rest:
        return turns[-1]
    each = [milliseconds for turn in rest for milliseconds in turn["each"]]
    return {
        "ms_per_task": statistics.median(each),
        "ms_per_task_least": min(each),
        "ms_per_task_most": max(each),
        "repeats": len(each),
        "warm_up_seconds": start["warm_up_seconds"],
        "memory_mb": rest[-1]["memory_mb"],
    }


class Process:
    """A process that measures one contestant when it is asked, in `turns`."""

    def __init__(
        self, arguments: argparse.Namespace, problem: Problem, contestant: str, gradients: str = ""
    ) -> None:
        given = {name: getattr(arguments, name) for name in OPTIONS}
        is_maml = contestant.startswith("tfmeta") and problem.kind == "maml"
        task = {
            "problem": problem._asdict(),
            "contestant": contestant,
            "options": {k: v for k, v in given.items() if is_maml and v is not None},
            "threads": arguments.threads,
            "repeats": arguments.repeats,
            "gradients": gradients,
        }
        threads = str(arguments.threads)
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",
            "NPROC": threads,
            "OMP_NUM_THREADS": threads,
        }
        self.name = f"{contestant}, {describe(problem)}"
        self.timeout = arguments.timeout
        self.turns: list[dict[str, Any]] = []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (a pipe would fill up)
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--one", json.dumps(task)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def turn(self) -> None:
        """Have the process go on to its next result, and wait for it."""
        if self.turns and "absent" in self.turns[-1]:
            return
        print(f"{self.name} ...", end=" ", file=sys.stderr, flush=True)
        assert self.process.stdin
        assert self.process.stdout
        timer = threading.Timer(self.timeout, self.process.kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write("\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
            late = not timer.is_alive()
        finally:
            timer.cancel()
        if line:
            result = json.loads(line)
        elif late:
            result = {"absent": f"it took more than {self.timeout:.0f} s"}
        else:
            status = self.process.wait()
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or [f"exit status {status}"])[-1]
            result = {"absent": last}
        self.turns.append(result)
        said = " ".join(f"{milliseconds:.1f}" for milliseconds in result.get("each", []))
        print(result.get("absent") or said or "ready", file=sys.stderr, flush=True)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def describe(problem: Problem) -> str:
    if problem.kind == "prototypical":
        return f"Prototypical Network, {problem.ways} ways"
    order = "first" if problem.first_order else "second"
    return f"{problem.network}, K={problem.steps}, {order} order, {problem.tasks} tasks"


def cell(result: dict[str, Any]) -> str:
    if "ms_per_task" not in result:
        return ""
    least, most = result["ms_per_task_least"], result["ms_per_task_most"]
    return f"{result['ms_per_task']:.1f} ({least:.1f}–{most:.1f})"


def memory(result: dict[str, Any]) -> str:
    return f"{result['memory_mb']:.0f}" if "memory_mb" in result else ""


def difference(result: dict[str, Any]) -> str:
    return f"{result['difference']:.1e}" if "difference" in result else ""


def worst(ours: Arrays, theirs: Arrays) -> float:
    """Return the largest relative difference of two lists of gradients, but for dead biases."""
    dead = range(1, 16, 4)
    differences = [
        np.abs(a - b).max() / np.abs(a).max()
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
        if i not in dead
    ]
    return float(np.max(differences))


def measure(
    arguments: argparse.Namespace, problem: Problem, names: list[str]
) -> dict[str, dict[str, Any]]:
    """Return how long each contestant's steps take, and how much memory."""
    processes: dict[str, Process] = {}
    try:
        for name in names:
            processes[name] = Process(arguments, problem, name)
            processes[name].turn()
        for _ in range(arguments.rounds):
            for process in processes.values():
                time.sleep(PAUSE_SECONDS)
                process.turn()
    finally:
        for process in processes.values():
            process.end()
    return {name: summary(process.turns) for name, process in processes.items()}


def compare(
    arguments: argparse.Namespace, problem: Problem, names: list[str]
) -> dict[str, dict[str, Any]]:
    """Return how far each contestant's outer gradients are from tfmeta's."""
    results, gradients = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ["tfmeta", *(n for n in names if n != "tfmeta")]:
            file = pathlib.Path(folder) / f"{name}.npz"
            process = Process(arguments, problem, name, str(file))
            try:
                process.turn()
            finally:
                process.end()
            results[name] = summary(process.turns)
            if file.exists():
                with np.load(file) as arrays:
                    gradients[name] = [arrays[key] for key in arrays.files]
    for name in gradients:
        if name != "tfmeta" and "tfmeta" in gradients:
            results[name]["difference"] = worst(gradients["tfmeta"], gradients[name])
    return results


def table(
    title: str, rows: list[dict[str, Any]], kind: str, show: Callable[[dict[str, Any]], str]
) -> None:
    """Print the results of one kind of problem, a setting a line, as Markdown."""
    rows = [row for row in rows if row["problem"].kind == kind]
    names = list(dict.fromkeys(name for row in rows for name in row["results"]))
    if not names:
        return
    print(f"\n{title}\n\n| | {' | '.join(names)} |\n|{' --- |' * (1 + len(names))}")
    for row in rows:
        cells = [show(row["results"][name]) or "–" for name in names]
        print(f"| {describe(row['problem'])} | {' | '.join(cells)} |")
    absent = {
        f"{name}: {result['absent']}"
        for row in rows
        for name, result in row["results"].items()
        if "absent" in result
    }
    for line in sorted(absent):
        print(f"\n{line}")


def machine(threads: int) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        **versions,
    }


def problems(arguments: argparse.Namespace) -> list[Problem]:
    settings = itertools.product(
        arguments.networks, arguments.orders, arguments.tasks, arguments.steps
    )
    every = [
        Problem("maml", network, steps, order == "first", tasks, dtype=arguments.dtype)
        for network, order, tasks, steps in settings
    ]
    every.append(Problem("prototypical", ways=60, queries=5, dtype=arguments.dtype))
    return [problem for problem in every if problem.kind in arguments.problems]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = list(dict.fromkeys(name for names in CONTESTANTS.values() for name in names))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add = parser.add_argument
    add("--problems", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    add("--contestants", nargs="+", choices=every, default=every)
    add("--networks", nargs="+", choices=["strided", "pooled"], default=["strided", "pooled"])
    add("--orders", nargs="+", choices=["second", "first"], default=["second", "first"])
    add("--tasks", type=int, nargs="+", default=[32])
    add("--steps", type=int, nargs="+", default=[1, 5])
    add("--task-axis", help="an argument of tfmeta.MAML, not handed on unless given")
    add("--task-chunk", type=int, help="the same")
    add("--recompute", action="store_const", const=True, help="the same")
    add("--dtype", choices=["float32", "float64"], default="float32")
    add("--check", action="store_true", help="compare the outer gradients, and measure nothing")
    add("--repeats", type=int, default=3, help="the fewest steps of a turn")
    add("--rounds", type=int, default=5, help="turns of each contestant")
    add("--threads", type=int, default=cpus)
    add("--timeout", type=float, default=600, help="seconds for a contestant's turn")
    add("--output", type=pathlib.Path)
    add("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        # What a library prints must not come between the results.
        with os.fdopen(os.dup(1), "w") as results:
            os.dup2(2, 1)
            for _, result in zip(sys.stdin, one(json.loads(arguments.one)), strict=False):
                print(json.dumps(result), file=results, flush=True)
        return
    rows: list[dict[str, Any]] = []
    options = {name: getattr(arguments, name) for name in OPTIONS}
    result = {**machine(arguments.threads), **options, "rows": rows}
    print(", ".join(f"{k} {v}" for k, v in result.items() if k != "rows"), file=sys.stderr)
    for problem in problems(arguments):
        names = [n for n in CONTESTANTS[problem.kind] if n in arguments.contestants]
        if not names:
            continue
        if arguments.check:
            results = compare(arguments, problem, names)
        else:
            results = measure(arguments, problem, names)
        rows.append({"problem": problem, "results": results})
        if arguments.output:
            plain = [{"problem": r["problem"]._asdict(), "results": r["results"]} for r in rows]
            arguments.output.write_text(json.dumps({**result, "rows": plain}, indent=1) + "\n")
    for kind in CONTESTANTS:
        if arguments.check:
            table("Difference from tfmeta's outer gradient, relative", rows, kind, difference)
            continue
        table("Milliseconds a task: median (least–most)", rows, kind, cell)
        table("Growth of the process's peak memory, MB", rows, kind, memory)


if __name__ == "__main__":
    main()
