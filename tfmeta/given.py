"""What `fit`, `evaluate` and `predict` are given: episodes, in any of the forms they come in."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfmeta.inputs import arrays
from tfmeta.types import Nest

_STREAMS = (tf.data.Dataset, tf.distribute.DistributedDataset, keras.utils.PyDataset)


def batches(
    x: Any, y: Nest = None, *, steps: int | None, named: str, meta_batch_size: int | None = None
) -> Any:
    """Return episodes as Keras takes them: a sampler's as its data set, others as they are.

    Args:
        x: A sampler, a data set of `(inputs, targets)`, a generator of such, or a dict of inputs.
        y: The targets for a dict.
        steps: How many meta-batches are to be drawn.
        named: How the argument with that number is called.
        meta_batch_size: How many tasks a meta-batch of a sampler has; 1 by default.

    Raises:
        TypeError: If it is none of that.
        ValueError: If the number of steps for a sampler is not given.
    """
    if isinstance(x, dict):
        return {name: arrays(name, part) for name, part in x.items()}
    torch = type(x).__module__.startswith("torch.")
    if isinstance(x, _STREAMS) or hasattr(x, "__next__") or torch:
        return x
    if callable(getattr(x, "batch", None)) and callable(getattr(x, "dataset", None)):
        if steps is None:
            raise ValueError(
                f"`{named}` must be given with a sampler, whose episodes have no end. Received: "
                f"x={x!r}, {named}=None"
            )
        return x.dataset(meta_batch_size=meta_batch_size or 1)
    hint = "`sampler.dataset(meta_batch_size=...)` makes one of a sampler"
    if isinstance(x, tuple) and len(x) in (2, 3) and isinstance(x[0], dict):
        hint = "a pair of inputs and targets goes in two arguments"
    elif y is not None or hasattr(x, "shape"):
        hint = (
            "of examples with labels, `tfmeta.data.EpisodeSampler(tfmeta.data.ClassDataset("
            "examples, labels), ways, shots, queries)` draws episodes"
        )
    received = f"{type(x).__name__}" + (
        f" of shape {tuple(x.shape)}" if hasattr(x, "shape") else ""
    )
    raise TypeError(
        "`x` must be episodes: a tf.data.Dataset of (inputs, targets), a sampler, or a dict with "
        f"'support_x', 'support_y' and 'query_x', and the query labels as `y`; {hint}. Received: "
        f"x={received}"
    )


def named(method: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return arguments for a method by their names, without `self`."""
    given = inspect.signature(method).bind(*args, **kwargs).arguments
    given.pop("self")
    return {**given, **given.pop("kwargs", {})}


def first_of(x: Any, y: Nest = None) -> tuple[Any, Any, Any]:
    """Return the inputs and targets of the first meta-batch, and `x` with it still to come.

    Both are `None` where nothing can be seen before it is drawn.
    """
    if isinstance(x, dict):
        return x, y, x
    if isinstance(x, types.GeneratorType):
        first = next(x, None)
        return *_unpacked(first), _again(first, x)
    if isinstance(x, tf.data.Dataset):
        return *_unpacked(next(iter(x), None)), x
    if isinstance(x, keras.utils.PyDataset):
        return *_unpacked(x[0]), x
    return None, None, x


def _unpacked(batch: Any) -> tuple[Any, Any]:
    inputs, targets, _ = keras.utils.unpack_x_y_sample_weight(batch)
    return inputs, targets


def _again(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    if first is not None:
        yield first
    yield from rest
