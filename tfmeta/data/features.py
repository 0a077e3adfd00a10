"""What an encoder makes of each example of a data set, computed once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfmeta.checks import check_count
from tfmeta.data.caching import Source, cached
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.several_inputs import check_one_input
from tfmeta.types import Array

_BLOCK = 64 << 20  # bytes of examples that are looked at together
_BESIDE = ("compile_config", "build_config", "shared_object_id")


def features(
    encoder: Any,
    dataset: ClassDataset,
    path: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    *,
    overwrite: bool = False,
    verbose: bool = True,
) -> ClassDataset:
    """Returns the embeddings of a data set as a data set, each example through the encoder once.

    With a frozen encoder, training and evaluating on the embeddings gives what it would on the
    examples, and is faster by all that the encoder takes: put a head on
    `keras.Sequential([keras.Input((d,)), keras.layers.Identity()])`.

    The encoder gets what a learner would get from an `EpisodeSampler` without options: 8-bit images
    as float32 between 0 and 1, turned as their class is, and other numbers as they are. One of
    `keras.applications` that takes 0 to 255 needs a `keras.layers.Rescaling(255)` in front.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`. It is called as in evaluation.
        dataset: The examples `[n, ...]`, which must be numbers.
        path: A folder to keep the embeddings in, as `tfmeta.data.cache` does: the next call with
            the same encoder and data returns at once, and one that was interrupted is continued and
            ends with the same bytes. `None` keeps them in memory.
        batch_size: How many examples are embedded at once.
        overwrite: Whether to make a folder anew that is damaged, or of another encoder or other
            data.
        verbose: Whether to show a progress bar.

    Returns:
        A `ClassDataset` of float32 `[n, d]`, class by class, with the same names and groups of
        classes; those of a `path` are an `np.memmap`.

    Raises:
        TypeError: `dataset` is none, or holds texts; `batch_size` is no integer.
        ValueError: `encoder` gives something else than a finite vector of each example,
            `batch_size` is less than 1, or what `tfmeta.data.cache` raises.
        OSError: The disk is full or fails; the next call goes on.

    Example:

    ```python
    encoder = keras.applications.MobileNetV2((96, 96, 3), include_top=False, pooling="avg")
    embed = keras.Sequential([keras.layers.Rescaling(2.0, -1.0), encoder])
    photos = tfmeta.data.ClassDataset.from_directory("photos", size=96)
    vectors = tfmeta.data.features(embed, photos, "cached/mobilenet")
    ```
    """
    if not isinstance(dataset, ClassDataset):
        raise TypeError(f"`dataset` must be a ClassDataset. Received: {type(dataset).__name__}")
    check_one_input(dataset)
    if dataset.dtype.kind not in "biuf":
        raise TypeError(f"`dataset` must hold numbers. Received: examples of {dataset.dtype}")
    check_count("batch_size", batch_size)
    sizes = np.diff(dataset.class_offsets)
    classes = np.repeat(np.arange(dataset.num_classes), sizes)
    total = len(dataset)

    def examples(
        start: int, lost: Counter[str] | None = None
    ) -> Iterator[tuple[int, Array | None, Any]]:
        # Whole batches, also where one was interrupted: rounding depends on what is in one.
        for first in range(start - start % batch_size, total, batch_size):
            rows = np.arange(first, min(first + batch_size, total))
            vectors = _embedded(encoder, _examples(dataset, rows, classes[rows]), first)
            for i in rows[rows >= start]:
                yield int(i), vectors[i - first], [int(classes[i])]

    description = f"features of {dataset.description or 'examples'}"
    if path is None:
        import keras  # slow to import

        bar = keras.utils.Progbar(max(total, 1), verbose=int(verbose), unit_name="example")
        rows: list[Any] = []
        for i, vector, _ in examples(0):
            rows.append(vector)
            if (i + 1) % batch_size == 0:
                bar.update(i + 1)
        bar.update(max(total, 1), finalize=True)
        names, groups = dataset.class_names, dataset.groups
        return ClassDataset(np.stack(rows), classes, names, groups, description=description)

    facts = {
        "source": description,
        "options": {"encoder": _digest_of_encoder(encoder)},
        "files": _digest_of_data(dataset),
    }

    def names_of(spelled: list[Any]) -> tuple[list[str], list[str] | None, Array]:
        groups = None if dataset.groups is None else list(dataset.groups)
        return list(dataset.class_names), groups, np.array(spelled, np.int64)[:, 0]

    # What it is made of is in memory or in files that are digested: nobody changes it meanwhile.
    made = Source(facts, description, total, lambda: None, examples, names_of, lambda *_: None)
    return cached(made, path, overwrite=overwrite, verbose=verbose)


def _examples(dataset: ClassDataset, rows: Array, classes: Array) -> Array:
    """Return examples as a sampler hands them to a learner."""
    taken = np.asarray(dataset.examples[dataset.class_indices[rows]])
    turns = dataset.quarter_turns[classes]
    if turns.any():
        taken = np.stack([np.rot90(x, k) for x, k in zip(taken, turns, strict=True)])
    if taken.dtype == np.uint8 and taken.ndim > 2:
        return taken.astype(np.float32) * np.float32(1 / 255)
    return taken


def _embedded(encoder: Any, examples: Array, first: int) -> Array:
    vectors = np.asarray(encoder(examples, training=False))
    if vectors.ndim != 2 or len(vectors) != len(examples):
        raise ValueError(
            "`encoder` must return one vector [n, d] for each example. "
            f"Received: shape={vectors.shape} for {len(examples)} examples"
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(
            "`encoder` must return finite numbers. Received: NaN or infinite ones for example "
            f"{first + int(np.argmin(finite))}, counted class by class"
        )
    return vectors.astype(np.float32)


def _digest_of_encoder(encoder: Any) -> str:
    """Return what tells an encoder from others: its layers where they can be said, and weights."""
    digest = hashlib.sha256()
    with contextlib.suppress(NotImplementedError, TypeError, ValueError):
        # Names that Keras counts up differ from process to process: each becomes its number.
        config = json.loads(encoder.to_json())
        said = _told(config, {name: f"name {i}" for i, name in enumerate(_names(config))})
        digest.update(json.dumps(said, sort_keys=True).encode())
    for weight in encoder.weights:
        value = np.ascontiguousarray(weight)
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def _names(config: Any) -> dict[str, None]:
    """Return what a configuration calls its parts, each once, in order."""
    found: dict[str, None] = {}
    if isinstance(config, dict):
        if isinstance(name := config.get("name"), str):
            found[name] = None
        config = list(config.values())
    for each in config if isinstance(config, list) else []:
        found |= _names(each)
    return found


def _told(config: Any, names: dict[str, str]) -> Any:
    """Return a configuration without what depends on the process or does not reach the outputs."""
    if isinstance(config, dict):
        kept = {k: v for k, v in config.items() if k not in _BESIDE}
        return {k: _told(v, names) for k, v in kept.items()}
    if isinstance(config, list):
        return [_told(each, names) for each in config]
    return names.get(config, config) if isinstance(config, str) else config


def _digest_of_data(dataset: ClassDataset) -> str:
    """Return what tells a data set from others: examples, classes and their turns."""
    digest = hashlib.sha256(f"{dataset.dtype} {dataset.example_shape}".encode())
    for part in (dataset.class_indices, dataset.class_offsets, dataset.quarter_turns):
        digest.update(np.ascontiguousarray(part).tobytes())
    digest.update(repr((dataset.class_names, dataset.groups)).encode())
    each = max(1, int(np.prod(dataset.example_shape)) * dataset.dtype.itemsize)
    step = max(1, _BLOCK // each)
    for start in range(0, len(dataset.examples), step):
        digest.update(np.ascontiguousarray(dataset.examples[start : start + step]).tobytes())
    return digest.hexdigest()
