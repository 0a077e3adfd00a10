"""How fast are whole meta-batches drawn, gathered and normalised?

    python benchmarks/episodes.py

Meta-batches of 32 tasks are drawn from data of Omniglot's size: 1,623 characters of 20 drawings,
28x28 uint8; with rotation, 1,200 of the characters make 4,800 classes. All contenders run in turn,
again and again, and the median is taken. None of them pays for fresh memory: each fills two sets of
buffers by turns, as in a training loop, where one batch is in use while the next one is made.

Then meta-batches of 8 tasks, 5 ways, 1 shot and 15 queries, from 6,000 images of 84x84x3 uint8:
normalised, and turned, flipped and cropped before.

memcpy   copies as many bytes as the batch has: the faster of one thread and of `--threads`.
NumPy    draws, gathers and normalises all tasks at once: the fastest of the forms below.
NumPy*   the same, but told which examples to take: gathering and normalising alone.
learn2learn's rates are not measured here: they were measured on another day, with two CPU cores,
without rotation.

Last, meta-batches from `dataset()`, as tensors, beside those from `batch()`.

For the images of 84x84x3, memcpy reads and writes as many bytes in all as are read and written for
the batch, and NumPy is told which examples to take and how to change them.
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

from tfmeta.data import Augmentation, ClassDataset, EpisodeSampler

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


MEAN, STD = (0.47, 0.45, 0.40), (0.28, 0.27, 0.29)
CROP = 8


class Photos:
    """NumPy's ways to make a meta-batch of 640 images of 84x84x3, normalised."""

    def __init__(self, examples: np.ndarray) -> None:
        random = np.random.default_rng(0)
        count = 8 * 5 * 16
        self.examples = examples
        self.indices = random.integers(0, len(examples), [16, count])
        self.symmetries = random.integers(0, 8, [16, count])  # turned, and flipped from 4 on
        self.corners = random.integers(0, 2 * CROP + 1, [16, 2, count])
        # One row of all channels: NumPy is slow where the last axis is short.
        self.scale = np.tile(SCALE / np.array(STD), 84).astype(np.float32)
        self.offset = np.tile(-np.array(MEAN) / STD, 84).astype(np.float32)
        self.outputs = [np.ones([count, 84, 252], np.float32) for _ in range(2)]
        self.padded = np.zeros([count, 84 + 2 * CROP, 84 + 2 * CROP, 3], np.uint8)

    def normalize(self, images: np.ndarray, step: int) -> np.ndarray:
        output = self.outputs[step % 2]
        np.multiply(images.reshape(output.shape), self.scale, out=output)
        output += self.offset
        return output

    def plain(self, step: int) -> np.ndarray:
        return self.normalize(np.take(self.examples, self.indices[step % 16], axis=0), step)

    def symmetric(self, images: np.ndarray, symmetry: int) -> np.ndarray:
        images = np.rot90(images, symmetry % 4, axes=(-3, -2))
        return images[..., ::-1, :] if symmetry >= 4 else images

    def pad(self, step: int) -> np.ndarray:
        """Eight groups of images, each turned and flipped at once."""
        indices, symmetries = self.indices[step % 16], self.symmetries[step % 16]
        inner = self.padded[:, CROP:-CROP, CROP:-CROP]
        for symmetry in range(8):
            which = np.flatnonzero(symmetries == symmetry)
            inner[which] = self.symmetric(self.examples[indices[which]], symmetry)
        return self.padded

    def windows(self, step: int) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(self.pad(step), (84, 84), axis=(1, 2))
        tops, lefts = self.corners[step % 16]
        cropped = windows.transpose(0, 1, 2, 4, 5, 3)[np.arange(len(tops)), tops, lefts]
        return self.normalize(cropped, step)

    def slices(self, step: int) -> np.ndarray:
        padded, (tops, lefts) = self.pad(step), self.corners[step % 16]
        corners = zip(padded, tops.tolist(), lefts.tolist(), strict=True)
        return self.normalize(
            np.stack([image[top : top + 84, left : left + 84] for image, top, left in corners]),
            step,
        )

    def one_by_one(self, step: int) -> np.ndarray:
        output = self.outputs[step % 2]
        drawn = self.indices[step % 16], self.symmetries[step % 16], *self.corners[step % 16]
        for i, (index, symmetry, top, left) in enumerate(zip(*drawn, strict=True)):
            padded = self.padded[i]
            padded[CROP:-CROP, CROP:-CROP] = self.symmetric(self.examples[index], symmetry)
            window = padded[top : top + 84, left : left + 84]
            np.multiply(window.reshape(84, 252), self.scale, out=output[i])
            output[i] += self.offset
        return output


def photos(threads: int, repeats: int, pool: concurrent.futures.Executor) -> list[dict[str, Any]]:
    examples = np.random.default_rng(0).integers(0, 256, [6_000, 84, 84, 3], np.uint8)
    dataset, numpy = ClassDataset(examples, np.arange(6_000) // 60), Photos(examples)
    count, size = 8 * 5 * 16, 84 * 84 * 3

    def sampler(used: int, **options: Any) -> Contender:
        made = EpisodeSampler(dataset, 5, 1, 15, mean=MEAN, std=STD, num_threads=used, **options)
        return lambda step: made.batch(step, 8)

    changed = {"augmentation": Augmentation(flip=True, crop=CROP), "random_rotation": True}
    rows = []
    forms: dict[str, tuple[dict[str, Any], list[Contender]]] = {
        "normalised": ({}, [numpy.plain]),
        "and turned, flipped, cropped": (changed, [numpy.windows, numpy.slices, numpy.one_by_one]),
    }
    for name, (options, rivals) in forms.items():
        # One byte is read and four are written: memcpy does the same with five halves each.
        copied = count * size * 5 // 2 // 4
        times = measure(
            [
                sampler(threads, **options),
                sampler(1, **options),
                memcpy(copied, 1, pool),
                memcpy(copied, threads, pool),
                *rivals,
            ],
            repeats,
            batches=5,
        )
        row = {
            "images": name,
            "ours": count / times[0],
            "ours_one_thread": count / times[1],
            "memcpy": count / min(times[2:4]),
            "numpy": count / min(times[4:]),
        }
        row |= {f"times_{rival}": row["ours"] / row[rival] for rival in ("memcpy", "numpy")}
        row["one_thread_times_numpy"] = row["ours_one_thread"] / row["numpy"]
        rows.append(row)
        print(
            f"{name:>30}"
            + "".join(
                f"{row[key]:12,.0f}" for key in ("ours", "ours_one_thread", "memcpy", "numpy")
            )
            + "".join(
                f"{row[key]:9.2f}"
                for key in ("times_memcpy", "times_numpy", "one_thread_times_numpy")
            ),
            flush=True,
        )
    return rows


def streams(threads: int, repeats: int) -> list[dict[str, Any]]:
    """Meta-batches a second from `dataset()`, where they are tensors, and from `batch()`."""
    random = np.random.default_rng(0)
    large = ClassDataset(
        random.integers(0, 256, [6_000, 84, 84, 3], np.uint8), np.arange(6_000) // 60
    )
    small = ClassDataset(
        random.integers(0, 256, [32_460, 28, 28, 1], np.uint8), np.repeat(np.arange(1_623), 20)
    )
    rows = []
    for name, dataset, ways, shots, queries, tasks, options in (
        ("84x84x3, 5 x 16, 8 tasks", large, 5, 1, 15, 8, {"mean": MEAN, "std": STD}),
        ("28x28, 20 x 6, 32 tasks", small, 20, 1, 5, 32, {}),
        ("28x28, 5 x 2, 32 tasks", small, 5, 1, 1, 32, {}),
    ):
        sampler = EpisodeSampler(dataset, ways, shots, queries, num_threads=threads, **options)
        tensors = iter(sampler.dataset(tasks))
        times = measure(
            [
                lambda step, sampler=sampler, tasks=tasks: sampler.batch(step, tasks),
                lambda step, tensors=tensors: next(tensors),
            ],
            repeats,
            batches=60,  # many more than are fetched before the clock starts
        )
        row = {"batches": name, "batch": 1 / times[0], "dataset": 1 / times[1]}
        row["share"] = row["dataset"] / row["batch"]
        rows.append(row)
        print(f"{name:>30}{row['batch']:12,.0f}{row['dataset']:12,.0f}{row['share']:9.2f}")
    return rows


def measure(contenders: list[Contender], repeats: int, batches: int = 30) -> list[float]:
    """Median seconds a batch, the contenders taking turns."""
    seconds: list[list[float]] = [[] for _ in contenders]
    held: list[Any] = [None] * len(contenders)
    for repeat in range(repeats + 1):
        for number, contender in enumerate(contenders):
            steps = range(repeat * batches, (repeat + 1) * batches)
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

        print("\nimages of 84x84x3 a second: ours, with one thread, memcpy, NumPy; ours / memcpy,")
        print("ours / NumPy, ours with one thread / NumPy")
        of_photos = photos(arguments.threads, arguments.repeats, pool)
    print("\nmeta-batches a second from batch(), and as tensors from dataset(); their ratio")
    of_streams = streams(arguments.threads, arguments.repeats)

    result = {
        "question": "episodes a second in meta-batches of 32",
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "rows": rows,
        "images_a_second_84x84x3": of_photos,
        "meta_batches_a_second": of_streams,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    beside = arguments.output.with_suffix(".tmp")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(beside, arguments.output)
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
