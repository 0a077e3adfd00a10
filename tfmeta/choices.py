"""What can be chosen by name: words alone, which the command knows without TensorFlow or NumPy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from tfmeta.named_data import ALIASES, NAMED

BATCH_NORM_MODES = ("transductive", "support", "with_support", "running")
"""Whose statistics normalise queries; see `tfmeta.MAML`."""

DISTANCES = ("squared_euclidean", "cosine")
"""Of `tfmeta.PrototypicalNetwork`."""

FILTERS = {"conv4": 64, "resnet12": 64, "resnet18": 64, "wrn28_10": 160}
"""The backbones of images by name, and how many filters the first block of each has by default."""

OMNIGLOT_PRESETS: dict[str, dict[str, Any]] = {
    "vinyals": {"split": "vinyals", "rotations": "classes"},
    "vinyals_final": {"split": "vinyals_final", "rotations": "classes"},
    "maml": {"split": "random", "rotations": "episode"},
    "lake": {"split": "background", "rotations": None},
}
"""How the characters are divided and turned in the papers after which the presets are called."""

BENCHMARKS: dict[str, str] = {
    **{name: named.words for name, named in NAMED.items()},
    **{alias: f"another name of {name}" for alias, name in ALIASES.items()},
}
"""What `tfmeta.data.load` knows, in words."""

SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".ppm", ".tif", ".tiff", ".webp"),
)
"""How the names of files of images end."""

FORMATS = ("keras", "saved_model", "tflite")
"""In which the model of a classifier is kept."""

SAMPLERS = ("tpe", "gp", "cmaes", "random")
"""How a search chooses what to try next."""

PRUNERS = ("median", "none")
"""Whether a search ends bad trials early."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the known one that is near, if one is."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
