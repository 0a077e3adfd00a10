"""Several data sets as one, whose groups they are."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfmeta.checks import check_dict
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.several_inputs import each, number_of
from tfmeta.data.shards import Shards
from tfmeta.types import Array


def join(sources: Mapping[str, ClassDataset]) -> ClassDataset:
    """Returns the classes of several data sets as one data set, each source a group.

    With `within="group"` an `EpisodeSampler` draws each task from one source, all sources alike
    that have enough classes; so the tasks of a meta-batch are of several, where a `Mixture` draws
    whole meta-batches. Without it, classes of different sources meet in a task.

    Args:
        sources: Data sets by name, with examples of one shape and type; `tfmeta.data.resize` gives
            images those.

    Returns:
        A `ClassDataset` with the classes `source/class` in order, which shares the examples of
        numbers; texts are copied. Groups that a source has itself are not kept.

    Raises:
        TypeError: `sources` is no dict of `ClassDataset`.
        ValueError: There are none, their examples differ in shape, type or inputs (two of them are
            named), or two classes would have one name.

    Example:
        >>> letters, _, _ = tfmeta.data.load("glyphs")
        >>> both = tfmeta.data.join({"upright": letters, "turned": letters.with_rotations()})
        >>> both.num_classes == 5 * letters.num_classes, sorted(set(both.groups))
        (True, ['turned', 'upright'])
        >>> sampler = tfmeta.data.EpisodeSampler(both, 5, shots=1, queries=3, within="group")

    Reference:
        Triantafillou et al.: Meta-Dataset: A dataset of datasets for learning to learn from few
        examples (ICLR 2020), where each episode is of one source.
    """
    _check(sources)
    parts = list(sources.values())
    joined = copy.copy(parts[0])
    joined.examples = _together([part.examples for part in parts])
    before = np.cumsum([0, *(number_of(part.examples) for part in parts)])
    joined.class_indices = np.concatenate(
        [part.class_indices + first for part, first in zip(parts, before, strict=False)]
    )
    sizes = [np.diff(part.class_offsets) for part in parts]
    joined.class_offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
    joined.quarter_turns = np.concatenate([part.quarter_turns for part in parts])
    names = [(name, c) for name, part in sources.items() for c in part.class_names]
    joined.class_names = tuple(f"{source}/{c}" for source, c in names)
    if len(set(joined.class_names)) < len(names):
        twice = next(c for c in joined.class_names if joined.class_names.count(c) > 1)
        raise ValueError(
            f"The names of sources and classes must tell all classes apart. Received: {twice!r} "
            "more than once"
        )
    joined.groups = tuple(source for source, _ in names)
    joined.description = " and ".join(
        f"{part.description or name} ({part.num_classes} classes)" for name, part in sources.items()
    )
    return joined


def _check(sources: Any) -> None:
    check_dict("sources", sources, "names and data sets", "data set")
    for name, part in sources.items():
        if not isinstance(name, str) or not isinstance(part, ClassDataset):
            raise TypeError(
                "`sources` must have names for keys and tfmeta.data.ClassDataset for values. "
                f"Received: {name!r}: {part!r}"
            )
    (first, one), *others = sources.items()
    for name, part in others:
        here, there = (each(_in_words, x.examples) for x in (one, part))
        if here != there:
            raise ValueError(
                "The sources must have examples of one shape and type; tfmeta.data.resize gives "
                f"images of uint8 one shape. Received: {first!r} with {here}, and {name!r} with "
                f"{there}"
            )


def _in_words(examples: Any) -> str:
    if examples.dtype.kind in "UO":
        return "texts"
    return f"{examples.dtype} {list(examples.shape[1:])}"


def _together(parts: list[Any]) -> Any:
    """Return examples one after another: numbers where they lie, texts in a new array."""
    if isinstance(parts[0], dict):
        return {name: _together([part[name] for part in parts]) for name in parts[0]}
    if len(parts[0].shape) == 1:
        return np.concatenate(parts)
    arrays: list[Array] = []
    for part in parts:
        arrays += part.arrays if isinstance(part, Shards) else [np.ascontiguousarray(part)]
    return Shards(arrays)
