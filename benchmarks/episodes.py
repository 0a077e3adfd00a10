"""How fast are whole meta-batches drawn, gathered and normalised?

    python benchmarks/episodes.py

Meta-batches of 32 tasks are drawn from data of Omniglot's size: 1,623 characters of 20 drawings,
28x28 uint8; with rotation, 1,200 of the characters make 4,800 classes. All contenders run in turn,
again and again, and the median is taken. None of them pays for fresh memory: each fills two sets of
buffers by turns, as in a training loop, where one batch is in use while the next one is made.

memcpy   copies as many bytes as the batch has: the faster of one thread and of `--threads`.
NumPy    draws, gathers and normalises all tasks at once: the fastest of the forms below.
NumPy*   the same, but told which examples to take: gathering and normalising alone.
learn2learn's rates are not measured here: they were measured on another day, with two CPU cores,
without rotation.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import ctypes
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tfmeta.data import ClassDataset, EpisodeSampler

TASKS = 32
SCALE = np.float32(1 / 255)
LEARN2LEARN_EPISODES_PER_SECOND = {(5, 2): 4_730, (5, 16): 970, (20, 6): 506}

Contender = Callable[[int], Any]  # makes batch number `step`


def ours(dataset: ClassDataset, ways: int, images: int, threads: int) -> Contender:
    sampler = EpisodeSampler(dataset, ways, shots=1, queries=images - 1, num_threads=threads)
    return lambda step: sampler.batch(step, TASKS)


def memcpy(size: int, threads: int, pool: concurrent.futures.Executor) -> Contender:
    copy = ctypes.CDLL(None).memcpy  # called without the GIL
    copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    source, *targets = (np.ones(size, np.float32) for _ in range(3))
    bounds = np.linspace(0, source.nbytes, threads + 1, dtype=int) // 64 * 64
    bounds[-1] = source.nbytes

    def part(target: int, number: int) -> None:
        begin, end = int(bounds[number]), int(bounds[number + 1])
        copy(target + begin, source.ctypes.data + begin, end - begin)

    def fill(step: int) -> None:
        target = targets[step % 2].ctypes.data
        others = [pool.submit(part, target, number) for number in range(1, threads)]
        part(target, 0)
        for other in others:
            other.result()

    return fill


def numpy_draw(dataset: ClassDataset, ways: int, images: int) -> Callable[[], Any]:
    """Draws all tasks at once; every class has 20 examples."""
    random = np.random.default_rng(0)
    members = dataset.class_indices.reshape(-1, 20)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        classes = random.integers(0, len(members), [TASKS, ways])
        while True:  # the few tasks that have a class twice are drawn again
            in_order = np.sort(classes, axis=1)
            again = (in_order[:, 1:] == in_order[:, :-1]).any(1)
            if not again.any():
                break
            classes[again] = random.integers(0, len(members), [again.sum(), ways])
        keys = random.random([TASKS, ways, 20], np.float32)
        places = np.argpartition(keys, images, axis=-1)[..., :images]
        return members[classes[..., None], places], dataset.quarter_turns[classes]

    return draw


def numpy_forms(dataset: ClassDataset, ways: int, images: int, told: bool) -> list[Contender]:
    """Support and query in one array, of tasks, ways and images."""
    examples = dataset.examples
    draw = numpy_draw(dataset, ways, images)
    drawn = [draw() for _ in range(64)]
    turned = dataset.quarter_turns.any()
    outputs = [np.ones([TASKS, ways, images, 28, 28, 1], np.float32) for _ in range(2)]

    def gather(step: int) -> np.ndarray:
        indices, turns = drawn[step % 64] if told else draw()
        batch = np.take(examples, indices, axis=0)
        for quarters in (1, 2, 3) if turned else ():
            which = turns == quarters
            batch[which] = np.rot90(batch[which], quarters, axes=(2, 3))
        return batch

    def multiply(step: int) -> None:
        np.multiply(gather(step), SCALE, out=outputs[step % 2])

    def in_place(step: int) -> None:
        output = outputs[step % 2]
        output[...] = gather(step)
        output *= SCALE

    return [multiply, in_place]


def measure(contenders: list[Contender], repeats: int) -> list[float]:
    """Median seconds a batch, the contenders taking turns."""
    seconds: list[list[float]] = [[] for _ in contenders]
    held: list[Any] = [None] * len(contenders)
    for repeat in range(repeats + 1):
        for number, contender in enumerate(contenders):
            steps = range(repeat * 30, repeat * 30 + 30)
            begin = time.perf_counter()
            for step in steps:
                held[number] = contender(step)  # the batch before is alive until then
            if repeat > 0:  # the first round warms up
                seconds[number].append((time.perf_counter() - begin) / len(steps))
    return [statistics.median(times) for times in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=cpus)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "results" / "episodes.json",
    )
    arguments = parser.parse_args()

    random = np.random.default_rng(0)
    examples = random.integers(0, 256, [32_460, 28, 28, 1], np.uint8)
    characters = ClassDataset(examples, np.repeat(np.arange(1_623), 20))
    datasets = {False: characters, True: characters.select(range(1_200)).with_rotations()}

    rows = []
    print(f"meta-batches of {TASKS} tasks, {arguments.threads} threads, episodes a second")
    names = ("ours", "memcpy", "NumPy", "NumPy*", "learn2learn")
    print(
        f"{'ways x images':>13} {'rotation':>8} "
        + "".join(f"{name:>12}" for name in names)
        + "   ours as a multiple of each"
    )
    with concurrent.futures.ThreadPoolExecutor(arguments.threads) as pool:
        for (ways, images), learn2learn in LEARN2LEARN_EPISODES_PER_SECOND.items():
            for turned, dataset in datasets.items():
                size = TASKS * ways * images * 28 * 28
                times = measure(
                    [
                        ours(dataset, ways, images, arguments.threads),
                        memcpy(size, 1, pool),
                        memcpy(size, arguments.threads, pool),
                        *numpy_forms(dataset, ways, images, told=False),
                        *numpy_forms(dataset, ways, images, told=True),
                    ],
                    arguments.repeats,
                )
                row = {
                    "ways": ways,
                    "images": images,
                    "rotation": turned,
                    "output_bytes": 4 * size,
                    "ours": TASKS / times[0],
                    "memcpy": TASKS / min(times[1:3]),
                    "numpy": TASKS / min(times[3:5]),
                    "numpy_told": TASKS / min(times[5:]),
                    "learn2learn": learn2learn,
                }
                rivals = ("memcpy", "numpy", "numpy_told", "learn2learn")
                row |= {f"times_{rival}": row["ours"] / row[rival] for rival in rivals}
                rows.append(row)
                print(
                    f"{f'{ways} x {images}':>13} {'yes' if turned else 'no':>8} "
                    + "".join(f"{row[name]:12,.0f}" for name in ("ours", *rivals))
                    + "".join(f"{row[f'times_{rival}']:9.2f}" for rival in rivals),
                    flush=True,
                )

    result = {
        "question": "episodes a second in meta-batches of 32",
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    beside = arguments.output.with_suffix(".tmp")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(beside, arguments.output)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
