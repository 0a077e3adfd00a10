"""How fast is an outer step on a GPU, beside PyTorch and JAX there, and is it right?

    python benchmarks/gpu.py
    python benchmarks/gpu.py 'tfmeta:*:second' 'jax-vmap:*:second'
    python benchmarks/gpu.py --list | grep K5 > some.txt; python benchmarks/gpu.py @some.txt

A figure is asked for by name, a pattern, or a file of names, a line each; without any, all of
`--list` are measured, in its order. Each is written to `--output`, a line of JSON, as soon as it is
known, and those that are written there already are left out: a run that is cut off goes on where it
was with the same command. To measure one again, delete its line.

    tfmeta:NETWORK:K1:ORDER[:84][:no-xla][:chunk8][:mixed_bfloat16|:mixed_float16]
    torch-vmap:NETWORK:K1:ORDER[:84]          jax-vmap:NETWORK:K1:ORDER[:84]
    evaluate:NETWORK:K1:ORDER[:84][:no-xla][:chunk8][:queries15]
    gradients:LEARNER[:no-xla]

The outer steps are those of `meta_step.py`: MAML on 32 tasks of 5 ways and 1 shot, 28×28×1, or
84×84×3 with `84`; `conv4` of 64 filters, `strided` or `pooled`; order is `second` or `first`. XLA
is on and a chunk has as many tasks as tfmeta chooses, unless the name says otherwise; products in
single precision may be TensorFloat-32 with all three frameworks. What is measured: milliseconds a
task, median (least–most), each step by the clock and awaited; how long the first two steps take, in
which the program is traced and compiled; and how much memory of the GPU is added, as the framework
counts it.

`evaluate` is `tfmeta.evaluate` on 1,000 episodes, in seconds: of its first call, and of a second
one. `gradients` are those of a small problem for each learner in `every_learner.py`, with
TensorFloat-32 off: the largest difference from a CPU's without XLA, over the largest entry.

Names that follow each other and need the same framework share a process, for imports, and the
start of a GPU, take longer than most figures. One that ends a process is noted as failed, and the
others go on in a new one. PyTorch and JAX are left out where they are not installed.

`--try-on-cpu` runs it on a CPU with a small network and two tasks, to see that it runs: all figures
of one inner step without names. Nothing is kept unless `--output` is given, and then apart from the
figures of a GPU.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import every_learner
import lines
import meta_step
import numpy as np
import rivals
from rivals import Problem

TASKS, EPISODES, REPEATS, LEAST_SECONDS = 32, 1000, 10, 2.0
TOLERANCE = 1e-4
# What is smaller with `--try-on-cpu`.
SMALL = {"FILTERS": 4, "TASKS": 2, "EPISODES": 40, "REPEATS": 1, "LEAST_SECONDS": 0.0}
ABSENT = 3
NETWORKS, HALVES = ("strided", "pooled"), ("mixed_bfloat16", "mixed_float16")
STEP = re.compile(
    r"(?P<what>tfmeta|torch-vmap|jax-vmap|evaluate):(?P<network>strided|pooled)"
    r":K(?P<steps>[1-9]\d*):(?P<order>second|first)(?P<large>:84)?(?P<plain>:no-xla)?"
    r"(:chunk(?P<chunk>[1-9]\d*))?(:(?P<policy>mixed_bfloat16|mixed_float16))?"
    r"(:queries(?P<queries>[1-9]\d*))?"
)
GRADIENTS = re.compile(r"(?P<what>gradients):(?P<learner>[\w-]+?)(?P<plain>:no-xla)?")
# Which parts of a name only some figures have.
PARTS_OF = {
    "plain": ("tfmeta", "evaluate"),
    "chunk": ("tfmeta", "evaluate"),
    "policy": ("tfmeta",),
    "queries": ("evaluate",),
}


def every() -> list[str]:
    """Return the names of all figures, those that matter most first."""
    problems = [f"{network}:K{steps}" for network in NETWORKS for steps in (1, 5)]
    second, first = (
        [f"{problem}:{order}" for problem in problems] for order in ("second", "first")
    )
    evaluated = ["strided:K1:second", "strided:K1:second:queries15", "strided:K1:second:no-xla"]
    large = [f"{network}:K{steps}:second:84" for steps in (1, 5) for network in NETWORKS]
    return [
        *(f"tfmeta:{problem}" for problem in second),
        *(f"evaluate:{problem}" for problem in evaluated),
        *(f"jax-vmap:{problem}" for problem in second),
        *(f"torch-vmap:{problem}" for problem in second),
        *(f"gradients:{learner}" for learner in every_learner.LEARNERS),
        *(f"tfmeta:{problem}" for problem in [*first, *large]),
        *(f"tfmeta:{problem}:{policy}" for problem in large for policy in HALVES),
        *(f"tfmeta:{problem}:chunk{chunk}" for problem in second for chunk in (8, 32)),
        *(f"tfmeta:{problem}:no-xla" for problem in second),
        *(f"tfmeta:{problem}:{policy}" for problem in second for policy in HALVES),
        *(f"jax-vmap:{problem}" for problem in [*first, *large]),
        *(f"torch-vmap:{problem}" for problem in [*first, *large]),
        *(f"gradients:{learner}:no-xla" for learner in every_learner.LEARNERS),
    ]


def parsed(name: str) -> dict[str, Any]:
    """Return the parts of a name.

    Raises:
        ValueError: If there is no such figure.
    """
    found = STEP.fullmatch(name) or GRADIENTS.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no name of a figure; --list shows some.")
    parts = found.groupdict()
    if parts["what"] == "gradients":
        if parts["learner"] not in every_learner.LEARNERS:
            known = ", ".join(every_learner.LEARNERS)
            raise ValueError(f"{name!r} must be of one of the learners {known}.")
        return parts
    for part, owners in PARTS_OF.items():
        if parts[part] and parts["what"] not in owners:
            raise ValueError(
                f"{name!r} says {parts[part].strip(':')}: {' and '.join(owners)} only."
            )
    return parts


def chosen(asked: list[str], small: bool) -> list[str]:
    """Return the names that are asked for, by name or by pattern, each once."""
    if not asked:
        # XLA needs minutes to compile five inner steps for a CPU.
        return [name for name in every() if not (small and ":K5:" in name)]
    names: list[str] = []
    for name in asked:
        if any(sign in name for sign in "*?["):
            matching = fnmatch.filter(every(), name)
            if not matching:
                raise ValueError(f"No name of --list is like {name!r}.")
            names += matching
        else:
            parsed(name)
            names.append(name)
    return list(dict.fromkeys(names))


def missing(names: list[str], rows: list[dict[str, Any]], small: bool) -> list[str]:
    """Return those of the names for which there is no figure, nor a failure, yet."""
    there = {row["figure"] for row in rows if "figure" in row and row.get("small", False) == small}
    return [name for name in names if name not in there]


def worker_of(name: str) -> str:
    """Return the kind of process that a figure needs."""
    what = name.partition(":")[0]
    return "tfmeta" if what == "evaluate" else what


def problem_of(parts: dict[str, Any]) -> Problem:
    size = {"size": 84, "channels": 3} if parts["large"] else {}
    first = parts["order"] == "first"
    return Problem("maml", parts["network"], int(parts["steps"]), first, TASKS, **size)


def timed(step: Callable[[], Any], problem: Problem) -> dict[str, Any]:
    """Return how long a step takes that waits for its end."""
    start = time.perf_counter()
    step()
    step()
    first = time.perf_counter() - start
    step()
    times: list[float] = []
    while len(times) < REPEATS or sum(times) < LEAST_SECONDS:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    each = [1000 * seconds / problem.tasks for seconds in times]
    return {
        "ms_per_task": statistics.median(each),
        "ms_per_task_least": min(each),
        "ms_per_task_most": max(each),
        "repeats": len(each),
        "first_two_steps_seconds": first,
    }


# What the processes do: a generator each, which gives one result for each name.


def with_tensorflow(names: list[str], folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    import keras
    import tensorflow as tf

    import tfmeta

    gpus = tf.config.list_physical_devices("GPU")
    device = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "CPU"

    def used(what: str) -> float:
        return float(tf.config.experimental.get_memory_info("GPU:0")[what]) / 2**20

    for name in names:
        parts = parsed(name)
        problem = problem_of(parts)
        options = {"task_chunk": int(parts["chunk"])} if parts["chunk"] else {}
        before = 0.0
        if gpus:
            tf.config.experimental.reset_memory_stats("GPU:0")
            before = used("current")
        try:
            learner, data = meta_step.our_learner(
                problem,
                rivals.initial_weights(problem),
                rivals.meta_batch(problem),
                policy=parts["policy"],
                jit_compile=not parts["plain"],
                **options,
            )
            if parts["what"] == "evaluate":
                queries = int(parts["queries"] or 1)
                sampler = sampler_of_noise(problem, queries)
                seconds = []
                for _ in range(2):
                    start = time.perf_counter()
                    tfmeta.evaluate(learner, sampler, EPISODES, verbose=False)
                    seconds.append(time.perf_counter() - start)
                result = {
                    "episodes": EPISODES,
                    "queries": queries,
                    "first_seconds": seconds[0],
                    "seconds": seconds[1],
                }
            else:

                def step(learner: Any = learner, data: Any = data) -> None:
                    logs = learner.train_function(data)
                    float(keras.tree.flatten(logs)[0])  # until it is there

                result = timed(step, problem)
        except Exception as error:
            result = failure(error)
        memory = used("peak") - before if gpus else None
        yield {**result, "memory_mb": memory, "device": device}
        learner = data = sampler = step = None  # type: ignore[assignment]
        keras.backend.clear_session()
        gc.collect()


def sampler_of_noise(problem: Problem, queries: int) -> Any:
    """Return a sampler of images of the problem's size, 20 of each of 100 classes."""
    from tfmeta import data

    shape = (2000, problem.size, problem.size, problem.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    classes = data.ClassDataset(images, np.arange(len(images)) // 20)
    return data.EpisodeSampler(classes, problem.ways, shots=1, queries=queries)


def with_torch(names: list[str], folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    import torch

    on_gpu = torch.cuda.is_available()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    for name in names:
        problem = problem_of(parsed(name))
        before = 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        weights, batch = rivals.initial_weights(problem), rivals.meta_batch(problem)
        try:
            step, _ = rivals.torch_vmap(problem, weights, batch, device="cuda" if on_gpu else "cpu")
            result = timed(step, problem)
        except Exception as error:
            result = failure(error)
        memory = (torch.cuda.max_memory_allocated() - before) / 2**20 if on_gpu else None
        yield {**result, "memory_mb": memory, "device": device}
        step = None
        gc.collect()


def with_jax(names: list[str], folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    import jax

    device = jax.devices()[0]

    def peak() -> float:
        return float((device.memory_stats() or {}).get("peak_bytes_in_use", 0)) / 2**20

    for name in names:
        problem = problem_of(parsed(name))
        before = peak()
        weights, batch = rivals.initial_weights(problem), rivals.meta_batch(problem)
        try:
            step, _ = rivals.jax_vmap(problem, weights, batch)
            result = timed(step, problem)
        except Exception as error:
            result = failure(error)
        # JAX's peak is that of the whole process: one that does not rise says nothing.
        memory = peak() if peak() > before else None
        yield {**result, "memory_mb": memory, "device": getattr(device, "device_kind", "CPU")}
        step = None
        jax.clear_caches()
        gc.collect()


def reference(names: list[str], folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Keep the gradients of a CPU without XLA."""
    for name in names:
        learner = parsed(name)["learner"]
        file = folder / f"{learner}.npz"
        if not file.exists():
            try:
                np.savez(file, *every_learner.gradients(learner, jit_compile=False))
            except Exception as error:
                print(learner, "on a CPU", shown(failure(error)), flush=True)
        yield {}


def compared(names: list[str], folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_physical_devices("GPU")
    device = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "CPU"
    for name in names:
        parts = parsed(name)
        start = time.perf_counter()
        try:
            ours = every_learner.gradients(parts["learner"], jit_compile=not parts["plain"])
            with np.load(folder / f"{parts['learner']}.npz") as arrays:
                expected = [arrays[key] for key in arrays.files]
            largest = max(np.abs(gradient).max() for gradient in expected)
            pairs = zip(ours, expected, strict=True)
            difference = float(max(np.abs(a - b).max() for a, b in pairs) / largest)
            # A difference that is no number is not within anything.
            result = {"difference": difference, "within_tolerance": difference <= TOLERANCE}
        except Exception as error:
            result = failure(error)
        yield {**result, "seconds": time.perf_counter() - start, "device": device}
        keras.backend.clear_session()
        gc.collect()


def failure(error: Exception) -> dict[str, Any]:
    return {"failed": f"{type(error).__name__}: {error}"[:300]}


WORKERS: dict[str, Callable[[list[str], pathlib.Path], Iterator[dict[str, Any]]]] = {
    "tfmeta": with_tensorflow,
    "torch-vmap": with_torch,
    "jax-vmap": with_jax,
    "gradients": compared,
    "reference": reference,
}


def work(kind: str, names: list[str], small: bool, file: str, folder: str) -> None:
    """Be one of the processes."""
    if small:
        globals().update({key: SMALL[key] for key in SMALL if key != "FILTERS"})
        rivals.FILTERS = SMALL["FILTERS"]  # type: ignore[assignment]
    results = WORKERS[kind](names, pathlib.Path(folder))
    try:
        for name, result in zip(names, results, strict=True):
            if result:
                row = {"figure": name, **result, **({"small": True} if small else {})}
                lines.add(pathlib.Path(file), row)
                print(name, shown(row), flush=True)
    except ImportError as error:
        print(f"{kind} is left out: {error}", flush=True)
        raise SystemExit(ABSENT) from error


def start(kind: str, names: list[str], small: bool, file: pathlib.Path, folder: str) -> str:
    """Run a process to its end; return why it ended too soon, if it did."""
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
    }
    if kind == "reference" or small:
        environment |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    task = {"kind": kind, "names": names, "small": small, "file": str(file), "folder": folder}
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, "--work", json.dumps(task)]
        status = subprocess.run(command, env=environment, stderr=errors).returncode
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if status == ABSENT:
        return "absent"
    return f"exit status {status}: {said[-1] if said else 'no message'}"[:300] if status else ""


def measure(kind: str, names: list[str], small: bool, file: pathlib.Path) -> None:
    """Have all of the names measured, in a process or, where one ends too soon, in several."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "gradients":
            # What has no reference fails in the comparison.
            start("reference", names, small, file, folder)
        while names:
            ended = start(kind, names, small, file, folder)
            names = missing(names, lines.read(file), small)
            if ended == "absent" or not names:
                return
            row = {"figure": names[0], "failed": ended, **({"small": True} if small else {})}
            lines.add(file, row)
            print(names[0], shown(row), flush=True)
            names = names[1:]


def shown(row: dict[str, Any]) -> str:
    """Return a figure in words."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "difference" in row:
        return f"{row['difference']:.1e} in {row['seconds']:.0f} s"
    if "episodes" in row:
        return f"{row['seconds']:.2f} s, the first time {row['first_seconds']:.1f} s"
    return f"{milliseconds(row)} ms a task, first two steps {row['first_two_steps_seconds']:.1f} s"


def milliseconds(row: dict[str, Any]) -> str:
    least, most = row["ms_per_task_least"], row["ms_per_task_most"]
    return f"{row['ms_per_task']:.3f} ({least:.3f}–{most:.3f})"


def report(rows: list[dict[str, Any]]) -> None:
    """Print what was measured as tables."""
    steps = {row["figure"]: row for row in rows if "ms_per_task" in row}
    contests = []
    for name, row in steps.items():
        what, _, problem = name.partition(":")
        others = [steps.get(f"{rival}:{problem}") for rival in ("torch-vmap", "jax-vmap")]
        if what == "tfmeta" and any(others):
            cells = [f"{r['ms_per_task']:.3f}" if r else "–" for r in (row, *others)]
            ratios = [f"{r['ms_per_task'] / row['ms_per_task']:.2f}" if r else "–" for r in others]
            contests.append([problem, *cells, *ratios])
    head = " ms a task | tfmeta | PyTorch `vmap` | JAX `vmap` | PyTorch ÷ tfmeta | JAX ÷ tfmeta "
    lines.table(head, contests)
    each = []
    for name, row in steps.items():
        memory = "–" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        first = f"{row['first_two_steps_seconds']:.1f}"
        each.append([name, milliseconds(row), first, memory, row["device"]])
    lines.table(" step | ms a task | first two steps, s | memory, MB | device ", each)
    scored = [row for row in rows if "episodes" in row]
    lines.table(
        " evaluation | episodes | seconds | the first time | device ",
        [
            [
                row["figure"],
                f"{row['episodes']:,}",
                f"{row['seconds']:.2f}",
                f"{row['first_seconds']:.1f}",
                row["device"],
            ]
            for row in scored
        ],
    )
    lines.table(
        f" outer gradient | difference from a CPU's | at most {TOLERANCE:.0e} | device ",
        [
            [
                row["figure"].partition(":")[2],
                f"{row['difference']:.1e}",
                "yes" if row["within_tolerance"] else "**no**",
                row["device"],
            ]
            for row in rows
            if "difference" in row
        ],
    )
    for row in rows:
        if "failed" in row:
            print(f"\n{row['figure']} {shown(row)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fromfile_prefix_chars="@",
    )
    add = parser.add_argument
    add("figures", nargs="*", metavar="FIGURE", help="default: all of --list")
    add("--list", action="store_true", help="print the names of all figures, and measure nothing")
    add("--try-on-cpu", action="store_true")
    add("--output", type=pathlib.Path, help="default: benchmarks/results/gpu.jsonl")
    add("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(**json.loads(arguments.work))
        return
    try:
        names = chosen(arguments.figures, arguments.try_on_cpu)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        print("\n".join(names))
        return
    small = arguments.try_on_cpu
    with tempfile.TemporaryDirectory() as scratch:
        kept = pathlib.Path(__file__).parent / "results" / "gpu.jsonl"
        file = arguments.output or (pathlib.Path(scratch, "small.jsonl") if small else kept)
        if not small and not sees_gpu():
            raise SystemExit("TensorFlow sees no GPU here; --try-on-cpu runs the same on a CPU.")
        left = missing(names, lines.read(file), small)
        if len(left) < len(names):
            print(f"{len(names) - len(left)} of {len(names)} figures are in {file} already.")
        if left:
            lines.add(file, {"machine": meta_step.machine(os.cpu_count() or 1)})
        for kind, group in itertools.groupby(left, worker_of):
            measure(kind, list(group), small, file)
        rows = [row for row in lines.read(file) if row.get("small", False) == small]
        report([row for row in rows if row.get("figure") in names])


def sees_gpu() -> bool:
    code = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    command = [sys.executable, "-c", code]
    seen = subprocess.run(command, capture_output=True, text=True).stdout
    return seen.strip().endswith(tuple("123456789"))


if __name__ == "__main__":
    main()
