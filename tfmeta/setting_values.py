"""What each setting of a run may be: for those of a command, and of files that strangers wrote."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tfmeta.bounded_json import shown
from tfmeta.choices import BATCH_NORM_MODES, BENCHMARKS, DISTANCES, FILTERS, OMNIGLOT_PRESETS
from tfmeta.learner_table import LEARNERS
from tfmeta.named_data import NAMED

SPLITS = ("train", "validation", "test")
# Larger than what anybody trains, and small enough for nobody's memory to be asked for in vain.
_MOST = 2**31 - 1
_LONGEST = 2**16
_MOST_PARTS = 2**10


_CHOICES: dict[str, tuple[str, ...]] = {
    "batch_norm": BATCH_NORM_MODES,
    "distance": DISTANCES,
    "downsample": ("pool", "stride"),
    "dtype": ("uint8", "uint16", "float32"),
    "pages": ("first", "all"),
}


def choices_of(name: str) -> tuple[str, ...]:
    """Return the words that a setting may be, if it is one of some."""
    return _CHOICES.get(name, ())


class Expected(NamedTuple):
    """A check of a value, and what it must be, in words."""

    fits: Callable[[Any], bool]
    words: str


def wrong_with(values: Mapping[str, Any], expected: Mapping[str, Expected]) -> str | None:
    """Return what is wrong with values, by name, or `None` if nothing is.

    Args:
        values: What was read.
        expected: What each must be; a name that is not among them is unknown.
    """
    for name, value in values.items():
        if name not in expected:
            return f"it has {shown(name)}, which this version does not know"
        if not expected[name].fits(value):
            return f"`{name}` must be {expected[name].words}. Received: {name}={shown(value)}"
    return None


def _count(most: int = _MOST, least: int = 1) -> Expected:
    return Expected(
        lambda x: type(x) is int and least <= x <= most, f"an integer from {least} to {most}"
    )


def _or_none(expected: Expected) -> Expected:
    return Expected(lambda x: x is None or expected.fits(x), f"{expected.words}, or null")


def _among(names: tuple[str, ...]) -> Expected:
    # No `in`, which a list that JSON holds would be asked for its hash by.
    return Expected(
        lambda x: isinstance(x, str) and x in names, f"one of {', '.join(map(repr, names))}"
    )


def _fields(expected: Mapping[str, Expected]) -> Expected:
    return Expected(
        lambda x: isinstance(x, dict) and wrong_with(x, expected) is None,
        "an object of " + "; ".join(f"`{name}`, {e.words}" for name, e in expected.items()),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and "\0" not in value


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == set(SPLITS)
        and all(isinstance(names, list) and all(map(_is_text, names)) for names in value.values())
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return _is_text(value)
    return value is None or (isinstance(value, bool | int | float) and abs(value) < _MOST)


def _are_arguments(value: Any) -> bool:
    """Return whether values are such as `tfmeta.argument_text.parsed` returns."""

    def fits(one: Any) -> bool:
        parts = one.values() if isinstance(one, dict) else one if isinstance(one, list) else [one]
        return len(parts) <= _MOST_PARTS and all(map(_is_plain, parts))

    return isinstance(value, dict) and fits(list(value)) and all(map(fits, value.values()))


_PATH = Expected(_is_text, f"the name of a folder of at most {_LONGEST} characters")
_FLAG = Expected(lambda x: isinstance(x, bool), "true or false")
_RATE = Expected(
    lambda x: type(x) in (int, float) and 0 < x < math.inf, "a positive, finite number"
)
_SIDE = _count(2**14)

_SPLITS_OF_CLASSES = tuple(sorted({split for of in NAMED.values() for split in of.splits}))
_DATA = Expected(
    lambda x: _is_text(x) and (x in BENCHMARKS or os.path.isabs(x)),
    f"one of {', '.join(BENCHMARKS)}, or the absolute path of a folder",
)
_OPTIONS_OF_FURTHER_DATA = _fields(
    {"data_dir": _PATH, "skip_unreadable": _FLAG, "pages": _among(choices_of("pages"))}
)


def _are_further_data(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MOST_PARTS
        and all(map(_DATA.fits, value))
        and all(map(_OPTIONS_OF_FURTHER_DATA.fits, value.values()))
    )


EXPECTED = {
    "data": _DATA,
    "data_options": _fields(
        {
            "data_dir": _PATH,
            "folder": _PATH,
            "preset": _among(tuple(OMNIGLOT_PRESETS)),
            "split": _among(_SPLITS_OF_CLASSES),
            "examples_per_class": _count(),
            "size": _SIDE,
            "grayscale": _FLAG,
            "invert": _FLAG,
            "dtype": _among(choices_of("dtype")),
            "alpha": _FLAG,
            "pages": _among(choices_of("pages")),
            "skip_unreadable": _FLAG,
        }
    ),
    "algorithm": _among(tuple(LEARNERS)),
    "ways": _count(10**6),
    "shots": _count(10**6),
    "queries": _count(10**6),
    "meta_batch_size": _count(10**6),
    "steps": _count(),
    "epochs": _count(),
    "learning_rate": _RATE,
    "learning_rate_halving": _or_none(_count()),
    "inner_learning_rate": _or_none(_RATE),
    "inner_steps": _count(10**4),
    "evaluation_steps": _or_none(_count(10**4)),
    "batch_norm": _among(choices_of("batch_norm")),
    "downsample": _among(choices_of("downsample")),
    "filters": _or_none(_count(2**14)),
    "distance": _among(choices_of("distance")),
    "validation_episodes": _count(10**9, least=0),
    "seed": _count(2**32 - 1, least=0),
    "images": _fields(
        {
            "size": Expected(
                lambda x: isinstance(x, list) and len(x) == 2 and all(map(_SIDE.fits, x)),
                f"height and width, each {_SIDE.words}",
            ),
            "grayscale": _FLAG,
            "invert": _FLAG,
            "dtype": _among(choices_of("dtype")),
            "alpha": _FLAG,
        }
    ),
    "classes": _or_none(
        Expected(_are_classes, f"an object of {', '.join(SPLITS)}, each a list of names")
    ),
    "network": Expected(
        lambda x: _is_text(x) and (x in FILTERS or os.path.isabs(x)),
        f"one of {', '.join(FILTERS)}, or the absolute path of a file",
    ),
    "pretrain_epochs": _count(least=0),
    "arguments": Expected(
        _are_arguments,
        "an object of numbers, words, true, false, null, or lists or objects of such by name",
    ),
    "network_sha256": _or_none(
        Expected(lambda x: _is_text(x) and len(x) == 64, "a SHA-256, of 64 digits")
    ),
    "freeze": _FLAG,
    "batch_norm_momentum": _or_none(
        Expected(lambda x: type(x) in (int, float) and 0 <= x < 1, "a number from 0 to below 1")
    ),
    "min_per_class": _count(10**9),
    "also": Expected(
        _are_further_data,
        f"an object of data sets, each {_DATA.words}, and of each {_OPTIONS_OF_FURTHER_DATA.words}",
    ),
}
"""What each of the `tfmeta.runs.Settings` must be."""
