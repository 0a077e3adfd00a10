"""A training of MAML++ with all its parts, to be killed: `python -m tests.resumed_training FOLDER`.

It goes on from the newest state in the folder, and at the end leaves there `end.npz` with all
variables and `end.json` with the history. The second argument is how many seconds a flush to the
disk takes, so that a file is being written for long enough to be caught at it; with a third one the
process kills itself with SIGKILL at that flush, when a state is written and not yet in its place.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import keras
import numpy as np

import tfmeta
from tests.learners import LEARNERS
from tfmeta.states import SaveState

STEPS, EPOCHS, EVERY = 40, 8, 3


def train(folder: Path, steps: int = STEPS, epochs: int = EPOCHS, every: int = EVERY) -> None:
    images = np.random.default_rng(0).integers(0, 256, [60, 12, 12, 1], np.uint8)
    classes = tfmeta.data.ClassDataset(images, np.repeat(np.arange(6), 10))
    training, validation = (tfmeta.data.EpisodeSampler(classes, 3, 1, 2, seed=s) for s in (1, 2))
    keras.utils.set_random_seed(0)
    learner = LEARNERS["MAMLPlusPlus-phases"]()
    learner.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    save = SaveState(folder / "states", every)
    history = learner.fit(
        training.dataset(2, start=save.step),
        steps_per_epoch=steps,
        epochs=epochs,
        validation_data=validation.dataset(1).take(3),
        callbacks=[keras.callbacks.EarlyStopping(patience=99), save],
        verbose=0,
    )
    variables = [*learner.variables, *learner.optimizer.variables]
    np.savez(folder / "end.npz", *(variable.numpy() for variable in variables))
    (folder / "end.json").write_text(json.dumps(history.history))


def have_a_slow_disk(seconds: float, last: int | None) -> None:
    flush, count = os.fsync, itertools.count(1)

    def slow(descriptor: int) -> None:
        time.sleep(seconds)
        if next(count) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    os.fsync = slow


if __name__ == "__main__":
    seconds, last, *sizes = [*map(float, sys.argv[2:]), 0.0, 0.0][: max(2, len(sys.argv) - 2)]
    have_a_slow_disk(seconds, int(last) or None)
    train(Path(sys.argv[1]), *map(int, sizes))
