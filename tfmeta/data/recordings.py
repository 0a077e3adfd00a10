"""The sounds of a data set known by name, as spectrograms."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfmeta.data.audio import SUFFIXES, Wanted, read_sound, spectrogram
from tfmeta.data.caching import Source
from tfmeta.data.changes import warn_changes
from tfmeta.data.fingerprint import fingerprint
from tfmeta.data.images import in_words
from tfmeta.data.readers import classes_and_groups, list_files
from tfmeta.types import Array

RATE, SECONDS, MELS = 8000, 1.0, 40


def recordings(folder: str | os.PathLike[str], keep: Callable[[list[str]], list[int]]) -> Source:
    """Return what makes the spectrograms of a folder with one sub-folder of sounds a class.

    Args:
        folder: The folder.
        keep: Chooses by position, of the classes of all files, those that are read.

    Raises:
        ValueError: If there are no sounds, or one cannot be read.
    """
    found, labels, _ = list_files(folder, suffixes=SUFFIXES, what="sounds")
    kept = keep(labels)
    files, labels = [found[i] for i in kept], [labels[i] for i in kept]
    wanted = _wanted()
    facts = {
        "source": os.path.abspath(folder),
        "options": {"sample_rate": RATE, "seconds": SECONDS, "mels": MELS},
        "files": fingerprint(files, folder),
    }

    def examples(start: int, lost: Counter[str]) -> Iterator[tuple[int, Array | None, Any]]:
        for i in range(start, len(files)):
            made, done = read_sound(files[i], wanted)
            lost.update(done)
            yield i, made, labels[i]

    def names(spelled: list[Any]) -> tuple[list[str], list[str] | None, Array]:
        classes, groups = classes_and_groups(folder, spelled, "sounds")
        numbers = {name: c for c, name in enumerate(classes)}
        return classes, groups, np.array([numbers[name] for name in spelled], np.int64)

    def told(positions: list[int], lost: Counter[str]) -> None:
        what = f"sound(s) of {in_words(folder)}"
        del lost["lengthened"]  # as most digits are: nothing of them is lost
        warn_changes(lost, len(files) - len(positions), wanted.words(), what, stacklevel=5)

    return Source(facts, "recordings", len(files), lambda: None, examples, names, told)


def of_sixteen_bits(samples: Array) -> Array:
    """Return the spectrogram of the samples of a recording, as TensorFlow Datasets has them."""
    return spectrogram(np.asarray(samples, np.float64) / 32768, _wanted())


def _wanted() -> Wanted:
    return Wanted.checked(RATE, SECONDS, MELS, True)
