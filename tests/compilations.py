"""Count what XLA compiles for a learner: a program of its own, run by `test_compilations`.

XLA writes each module that it compiles into a folder, if its flags say so before TensorFlow begins.

    python -m tests.compilations FOLDER LEARNER TASK_CHUNK
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={sys.argv[1]} --xla_dump_hlo_as_text"

import keras
import numpy as np
import tensorflow as tf

import tfmeta
from tests.learners import LEARNERS, episodes

STEPS = 3


def counts(folder: Path, name: str, chunk: int) -> dict[str, int]:
    """Return how many programs are compiled for each of the things that one does with a learner."""
    keras.utils.set_random_seed(0)
    learner = LEARNERS[name]()
    learner.task_chunk = chunk
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("adam", loss, metrics=["accuracy"], jit_compile=True)
    # Images and weights are others at each step, and once the labels.
    batches = [episodes(seed) for seed in range(STEPS)]
    inputs, targets = batches[1]
    inputs["support_y"], targets[:] = inputs["support_y"][:, ::-1], targets[:, ::-1].copy()
    flat = [tf.nest.flatten(batch) for batch in batches]
    several = [np.stack(part) for part in zip(*flat, strict=True)]
    data = tf.data.Dataset.from_tensor_slices(tf.nest.pack_sequence_as(batches[0], several))
    data = data.repeat()
    done: dict[str, int] = {}

    def modules() -> int:
        return len(list(folder.glob("*.before_optimizations.txt")))

    def count(what: str, act: Any) -> None:
        before = modules()
        act()
        done[what] = modules() - before

    quiet: dict[str, Any] = {"verbose": 0}
    count("fit", lambda: learner.fit(data, steps_per_epoch=STEPS, epochs=4, **quiet))
    count("evaluate", lambda: learner.evaluate(data, steps=STEPS, **quiet))
    count("predict", lambda: learner.predict(data, steps=STEPS, **quiet))
    sampler = type("Sampler", (), {"batch": staticmethod(lambda step, n=1: episodes(step, n))})
    # Another number of episodes is no other signature.
    count(
        "tfmeta.evaluate",
        lambda: [tfmeta.evaluate(learner, sampler, n, verbose=False) for n in (40, 3)],
    )
    count("fit again", lambda: learner.fit(data, steps_per_epoch=STEPS, **quiet))
    learner.export(folder / "exported")
    exported = tf.saved_model.load(folder / "exported")
    compiled = tf.function(exported.adapt_and_predict, jit_compile=True)
    tasks = [{key: part[0] for key, part in inputs.items()} for inputs, _ in batches]
    for task in tasks:
        task["support_y"] = task["support_y"].astype("int64")
    count("exported", lambda: [compiled(**task) for task in tasks])
    return done


if __name__ == "__main__":
    print(json.dumps(counts(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
