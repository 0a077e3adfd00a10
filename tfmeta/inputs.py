"""What learners are given: checked, and as tensors."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.padding import MASKS

_ways: contextvars.ContextVar[int | None] = contextvars.ContextVar("ways", default=None)


@contextlib.contextmanager
def fixed_ways(ways: int | None) -> Iterator[None]:
    """Have all that is traced meanwhile made for tasks of so many classes, with static shapes."""
    token = _ways.set(ways)
    try:
        yield
    finally:
        _ways.reset(token)


def known_ways() -> int | None:
    """Return the number of classes that a learner is being traced for, if it is fixed."""
    return _ways.get()


def episode_inputs(inputs: Any) -> dict[str, Any]:
    """Return the parts of a meta-batch as tensors, or say what is missing or does not fit.

    Each part is a tensor, or for models of several inputs or outputs a nest of tensors. Where tasks
    differ in size there are masks as well; see `tfmeta.padding`.
    """
    names = ("support_x", "support_y", "query_x")
    if not isinstance(inputs, dict) or any(name not in inputs for name in names):
        keys = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise ValueError(
            "`inputs` must be a dict with the keys 'support_x', 'support_y' and 'query_x'. "
            f"Received: inputs={keys}"
        )
    tensors = {
        name: keras.tree.map_structure(keras.ops.convert_to_tensor, inputs[name]) for name in names
    }
    flat = {name: keras.tree.flatten(part) for name, part in tensors.items()}
    every = [tuple(x.shape) for part in flat.values() for x in part]
    support = [tuple(x.shape) for name in names[:2] for x in flat[name]]
    examples = [[tuple(x.shape[2:]) for x in flat[name]] for name in ("support_x", "query_x")]
    tasks = {s[:1] for s in every} - {(None,)}
    lengths = {s[1:2] for s in support} - {(None,)}
    whole = len(tasks) <= 1 and len(lengths) <= 1 and (0,) not in tasks | lengths
    if min(map(len, every)) < 2 or examples[0] != examples[1] or not whole:
        shapes = keras.tree.map_structure(lambda x: tuple(x.shape), tensors)
        raise ValueError(
            "`inputs` must be support_x [tasks, ways*shots, ...], support_y [tasks, ways*shots] "
            "and query_x [tasks, ways*queries, ...], with one number of tasks, not 0, and examples "
            "of one shape. "
            f"Received: shapes={shapes}"
        )
    masks = _masks(inputs, tensors)
    labels = tensors["support_y"]
    if masks and not keras.tree.is_nested(labels) and labels.dtype.is_integer:
        # Whatever fills up a meta-batch is of no class.
        labels = tf.cast(labels, tf.int32) if labels.dtype.is_unsigned else labels
        tensors["support_y"] = tf.where(masks["support_mask"], labels, -1)
    return {**tensors, **masks}


def example_of(model: keras.Model, support_shape: Any, dtypes: Any = None) -> Any:
    """Return what the model takes, symbolically: a nest of `[n, ...]`.

    Args:
        model: A model, built or not.
        support_shape: `[tasks, n, ...]`, or a nest of such, for a model that does not know its own.
        dtypes: The types of the examples in the same way, by `dtype_of`.
    """
    # A model that has its shape already knows which of its sizes may vary.
    if isinstance(model, keras.Sequential):
        known = model.inputs[0] if model.built and model._functional else None
    else:
        known = getattr(model, "input", None) if hasattr(model, "_inputs_struct") else None
    if known is not None:
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor((None, *x.shape[1:]), dtype=x.dtype), known
        )
    types = iter(keras.tree.flatten(dtypes)) if dtypes is not None else itertools.repeat(None)
    return keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[2:]), dtype=next(types) or model.input_dtype),
        support_shape,
    )


def dtype_of(x: Any) -> str | None:
    """Return of which type examples `[tasks, n, ...]` are; `None` for numbers, and for images.

    A model takes numbers in its own precision, and images scaled; of anything else it has to know.
    """
    dtype = tf.as_dtype(x.dtype) if str(x.dtype)[:2] != "<U" else tf.string
    pixels = dtype.is_integer and (dtype == tf.uint8 or len(x.shape) >= 5)
    return None if dtype.is_floating or pixels else dtype.name


def check_support(support_x: Any, support_y: Any) -> None:
    """Raise a `ValueError` unless a support set has one label for each example, all finite."""
    parts = {
        "support_x": keras.tree.flatten(support_x),
        "support_y": keras.tree.flatten(support_y),
    }
    every = [*parts["support_x"], *parts["support_y"]]
    if any(x.ndim < 1 or len(x) != len(every[0]) or len(x) == 0 for x in every):
        raise ValueError(
            "`support_x` and `support_y` must have the same length, at least 1. "
            f"Received: shapes {' and '.join(str(x.shape) for x in every)}"
        )
    for name, values in parts.items():
        if any(np.issubdtype(v.dtype, np.floating) and not np.isfinite(v).all() for v in values):
            raise ValueError(f"`{name}` must be finite. Received: NaN or infinite values")


def check_examples(support_x: Any, example: Any) -> None:
    """Raise unless a support set's examples are what the model takes, `example` by its shapes."""
    try:
        keras.tree.assert_same_paths(support_x, example)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`support_x` must be nested as the model's inputs are, "
            f"{keras.tree.map_structure(lambda x: x.shape[1:], example)}. Received: "
            f"{keras.tree.map_structure(lambda x: x.shape, support_x)}"
        ) from error
    for x, expected in zip(keras.tree.flatten(support_x), keras.tree.flatten(example), strict=True):
        image = x.dtype == np.uint8 or (np.issubdtype(x.dtype, np.integer) and x.ndim >= 3)
        if image and not keras.backend.is_int_dtype(expected.dtype):
            raise TypeError(
                "`support_x` must be scaled as in training; the samplers give uint8 images as "
                f"float32 times 1/255. Received: dtype={x.dtype}"
            )
        fits = len(expected.shape) == x.ndim and all(
            e in (None, n) for e, n in zip(expected.shape[1:], x.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"`support_x` must have the shape [n, {', '.join(map(str, expected.shape[1:]))}] "
                f"that the model takes. Received: shape={x.shape}"
            )


def check_masks(inputs: dict[str, Any]) -> None:
    """Raise a `ValueError` unless each task of a padded meta-batch has support and queries."""
    for name in MASKS:
        if name in inputs and not np.asarray(inputs[name]).any(axis=1).all():
            empty = int(np.argmin(np.asarray(inputs[name]).any(axis=1)))
            raise ValueError(
                f"`{name}` must be true somewhere in each task. Received: nowhere in task {empty}"
            )


def _masks(inputs: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the masks of a meta-batch, if it has any."""
    if not any(name in inputs for name in MASKS):
        return {}
    missing = [name for name in MASKS if inputs.get(name) is None]
    if missing:
        raise ValueError(
            f"`inputs` must have both of {' and '.join(map(repr, MASKS))}, or none. Received: no "
            f"{missing[0]!r}"
        )
    masks = {name: keras.ops.convert_to_tensor(inputs[name]) for name in MASKS}
    for name, part in zip(MASKS, ("support_x", "query_x"), strict=True):
        expected = keras.tree.flatten(tensors[part])[0].shape[:2]
        if masks[name].dtype != bool or not masks[name].shape.is_compatible_with(expected):
            raise ValueError(
                f"`{name}` must be bool of shape {tuple(expected)}, true where there is an "
                f"example. Received: {masks[name].dtype.name}, shape={tuple(masks[name].shape)}"
            )
    return masks
