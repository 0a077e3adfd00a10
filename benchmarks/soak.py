"""Does a process that draws episodes and measures distances for a long time keep growing?

    python benchmarks/soak.py --minutes 10 --output benchmarks/results/soak.json

Draws meta-batches of augmented images as NumPy arrays and through `tf.data`, and takes gradients of
distances to their prototypes, in turn; prints the resident memory every half minute.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import psutil
import tensorflow as tf

import tfmeta
from tfmeta.data import Augmentation, ClassDataset, EpisodeSampler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()

    images = np.random.default_rng(0).integers(0, 256, [3000, 28, 28, 1], np.uint8)
    sampler = EpisodeSampler(
        ClassDataset(images, np.arange(3000) // 20),
        *((2, 8), (1, 4), 5),
        augmentation=Augmentation(flip=True, crop=3, brightness=0.2),
    )
    batches = iter(sampler.dataset(meta_batch_size=8))

    @tf.function(reduce_retracing=True)
    def gradient(z: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(z)
            distances = tfmeta.ops.squared_euclidean(z, tfmeta.ops.prototypes(z, labels, 8))
        return tape.gradient(distances, z)

    process = psutil.Process()
    start = time.monotonic()
    rows: list[dict[str, float]] = []
    for step in itertools.count():
        sampler.batch(step, 8)
        inputs, _ = next(batches)
        x = inputs["support_x"]
        gradient(tf.reshape(x, [8, -1, 28 * 28]), inputs["support_y"])
        minutes = (time.monotonic() - start) / 60
        if minutes >= len(rows) / 2:
            resident = process.memory_info().rss / 1e6
            rows.append({"minutes": round(minutes, 2), "steps": step, "resident_mb": resident})
            print(f"{minutes:5.1f} min  {step:8,} steps  {resident:7.1f} MB", flush=True)
        if minutes >= arguments.minutes:
            break
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
