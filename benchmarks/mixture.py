"""What does a mixture of sources cost beside one of them, in time and in memory?

Ten sources of 10 GB each, memory maps of sparse files of 84x84 colour images, in a process whose
anonymous memory is measured after drawing from all of them; and the time of a meta-batch of four
5-way 5-shot tasks with 15 queries a class, of the mixture and of one source of 100 GB by turns. The
smaller source of 10 GB would be in memory after a while. Linux. Usage:

    python benchmarks/mixture.py --json benchmarks/results/mixture.json
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from tfmeta.data import ClassDataset, EpisodeSampler, Mixture

SOURCES, GIGABYTES, SIDE = 10, 10, 84
IMAGE = SIDE * SIDE * 3
CLASSES = 100


def source(folder: pathlib.Path, number: int, gigabytes: int = GIGABYTES) -> EpisodeSampler:
    path = folder / str(number)
    images = gigabytes * 10**9 // IMAGE
    with path.open("wb") as file:
        file.truncate(images * IMAGE)
    examples = np.memmap(path, np.uint8, "r", shape=(images, SIDE, SIDE, 3))
    dataset = ClassDataset(examples, np.arange(images) % CLASSES)
    return EpisodeSampler(dataset, ways=5, shots=5, queries=15, seed=number)


def anonymous_megabytes() -> float:
    """Memory of the process that is no file's."""
    status = pathlib.Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1000


def seconds(sampler: Any, first: int, steps: int) -> float:
    begin = time.perf_counter()
    for step in range(first, first + steps):
        sampler.batch(step, 4)
    return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    before = anonymous_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        samplers = {str(n): source(pathlib.Path(folder), n) for n in range(SOURCES)}
        mixture = Mixture(samplers)
        for step in range(200):
            mixture.batch(step, 4)
        grown = anonymous_megabytes() - before
        large = source(pathlib.Path(folder), SOURCES, SOURCES * GIGABYTES)
        one: list[float] = []
        many: list[float] = []
        for turn in range(arguments.rounds):
            first = 1000 + turn * arguments.steps
            # Whoever comes first in one turn comes second in the next.
            order = ((one, large), (many, mixture))
            for times, sampler in order if turn % 2 else order[::-1]:
                times.append(seconds(sampler, first, arguments.steps))
    found = {
        "sources": SOURCES,
        "gigabytes": SOURCES * GIGABYTES,
        "anonymous_megabytes": grown,
        "ms_of_one_source": 1000 * statistics.median(one),
        "ms_of_the_mixture": 1000 * statistics.median(many),
        "ratio_of_medians": statistics.median(many) / statistics.median(one),
        "median_of_ratios": statistics.median(m / o for m, o in zip(many, one, strict=True)),
    }
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
