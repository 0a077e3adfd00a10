"""`tf.data` of meta-batches whose examples are dicts of arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfmeta.data.stream import stream
from tfmeta.types import Array, Episodes, Sampler


def nested_stream(
    sampler: Sampler, meta_batch_size: int, start: int, like: Sequence[Episodes] = ()
) -> tf.data.Dataset:
    """Return what `stream` does, for a sampler with dicts in `support_x` and its like.

    Args:
        sampler, meta_batch_size, start, like: As for `stream`.
    """
    others = [(_flat(inputs), targets) for inputs, targets in like]
    flat = stream(_Flat(sampler), meta_batch_size, start, others)
    return flat.map(lambda inputs, targets: (_nested(inputs), targets)).prefetch(2)


class _Flat:
    """The meta-batches of a sampler, without dicts within dicts."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        inputs, targets = self._sampler.batch(step, meta_batch_size)
        return _flat(inputs), targets


def _flat(inputs: Mapping[str, Any]) -> dict[str, Array]:
    flat: dict[str, Array] = {}
    for part, value in inputs.items():
        if isinstance(value, dict):
            flat |= {f"{part}/{name}": array for name, array in value.items()}
        else:
            flat[part] = value
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for key, value in flat.items():
        part, nested, name = key.partition("/")
        if nested:
            inputs.setdefault(part, {})[name] = value
        else:
            inputs[part] = value
    return inputs
