"""Folders of WAV files as spectrograms."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfmeta.data.caching import Source
from tfmeta.data.fingerprint import fingerprint
from tfmeta.data.log_mel import RATE, log_mel
from tfmeta.types import Array


def recordings(folder: str | os.PathLike[str], keep: Callable[[list[str]], list[int]]) -> Source:
    """Return what makes the spectrograms of a folder with one sub-folder of WAV files a class.

    Args:
        folder: The folder.
        keep: Chooses by position, of the classes of all files, those that are read.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If one cannot be read or is of another rate.
    """
    found = sorted(Path(folder).glob("*/*.wav"))
    if not found:
        raise FileNotFoundError(
            "`folder` must hold one sub-folder of .wav files for each class. "
            f"Received: folder={os.fspath(folder)!r}"
        )
    files = [found[i] for i in keep([file.parent.name for file in found])]
    paths = [os.fspath(file) for file in files]
    facts = {
        "source": os.path.abspath(folder),
        "options": {"spectrogram": "log-mel"},
        "files": fingerprint(paths, folder),
    }

    def examples(start: int, lost: Counter[str]) -> Iterator[tuple[int, Array | None, Any]]:
        for i in range(start, len(files)):
            yield i, log_mel(_samples(files[i])), files[i].parent.name

    def names(spelled: list[Any]) -> tuple[list[str], None, Array]:
        classes, numbers = np.unique(spelled, return_inverse=True)
        return classes.tolist(), None, numbers

    def told(positions: list[int], lost: Counter[str]) -> None:
        """Nothing is left out, or lost."""

    return Source(facts, "recordings", len(files), lambda: None, examples, names, told)


def _samples(file: Path) -> Array:
    import tensorflow as tf  # slow to import

    try:
        samples, rate = tf.audio.decode_wav(file.read_bytes(), desired_channels=1)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"Not a WAV file of 16 bits: '{file}' ({error.message})") from error
    if int(rate) != RATE:
        raise ValueError(f"'{file}' must have {RATE} samples a second. Received: {int(rate)}")
    return np.asarray(samples[:, 0])
