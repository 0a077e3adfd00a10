"""What learners are given: checked, and as tensors."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.ends import readers
from tfmeta.foreign.of_keras import graph_of, layers_of
from tfmeta.padding import MASKS, masks_of
from tfmeta.types import Nest, Tensor

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

    Each part is a tensor, or for models of several inputs or outputs a nest of tensors. There may
    be `unlabelled_x` `[tasks, u, ...]`, examples without labels, besides. Where tasks differ in
    size there are masks as well; see `tfmeta.padding`.
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
    if inputs.get("unlabelled_x") is not None:
        tensors["unlabelled_x"] = _unlabelled(inputs["unlabelled_x"], tensors["support_x"])
    masks = _masks(inputs, tensors)
    labels = tensors["support_y"]
    if masks and not keras.tree.is_nested(labels) and labels.dtype.is_integer:
        # Whatever fills up a meta-batch is of no class.
        labels = tf.cast(labels, tf.int32) if labels.dtype.is_unsigned else labels
        tensors["support_y"] = tf.where(masks["support_mask"], labels, -1)
    return {**tensors, **masks}


def refuse_unlabelled(name: str, unlabelled_x: Nest) -> None:
    """Raise a `ValueError` if there are examples without labels, for a learner that takes none.

    Args:
        name: What to call the learner.
        unlabelled_x: A nest of arrays or tensors, or `None`.
    """
    if unlabelled_x is not None:
        shapes = keras.tree.map_structure(np.shape, unlabelled_x)
        raise ValueError(
            "`unlabelled_x` is taken by tfmeta.SoftKMeans, which learns from examples without "
            f"labels; {name} takes none. Received: unlabelled_x of shape {shapes}"
        )


def example_of(model: keras.Model, support_shape: Any, dtypes: Any = None) -> Any:
    """Return what the model takes, symbolically: a nest of `[n, ...]`.

    Args:
        model: A model, built or not.
        support_shape: `[tasks, n, ...]`, or a nest of such, for a model that does not know its own.
        dtypes: The types of the examples in the same way, by `dtype_of`.
    """
    known = known_example(model)
    if known is not None:
        return known
    types = iter(keras.tree.flatten(dtypes)) if dtypes is not None else itertools.repeat(None)
    return keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor((None, *shape[2:]), dtype=next(types) or model.input_dtype),
        support_shape,
    )


def known_example(model: keras.Model) -> Any:
    """Return what a model takes that has its shape already, or `None`."""
    # It knows which of its sizes may vary.
    known = None
    if graph_of(model) is not None:
        sequential = isinstance(model, keras.Sequential)
        known = model.inputs[0] if sequential and model.built else getattr(model, "input", None)
    return keras.tree.map_structure(
        lambda x: x if x is None else keras.KerasTensor((None, *x.shape[1:]), dtype=x.dtype), known
    )


def arrays(name: str, values: Nest, example: Nest = None) -> Any:
    """Return a nest of arrays, where a list of numbers, or of single examples, is one array.

    Args:
        name: What to call it.
        values: Arrays, tensors, numbers, or a nest of them.
        example: What the model takes, as `known_example` gives it.

    Raises:
        ValueError: If the entries of a list are of several shapes.
    """
    if not isinstance(values, list | tuple):
        return keras.tree.map_structure(np.asarray, values)
    leaves = [np.asarray(x) for x in keras.tree.flatten(values)]
    single = example is not None and not keras.tree.is_nested(example)
    single |= isinstance(example, list | tuple) and len(example) == 1 < len(values)
    if not (single or all(leaf.ndim == 0 for leaf in leaves)):
        return keras.tree.map_structure(np.asarray, values)
    try:
        return np.asarray(keras.tree.map_structure(np.asarray, list(values)))
    except ValueError as error:
        shapes = sorted({leaf.shape for leaf in leaves})
        raise ValueError(
            f"`{name}` must be an array, or a list of entries of one shape. Received: a list of "
            f"entries of the shapes {shapes}"
        ) from error


def dtype_of(x: Any) -> str | None:
    """Return of which type examples `[tasks, n, ...]` are; `None` for numbers, and for images.

    A model takes numbers in its own precision, and images scaled; of anything else it has to know.
    """
    dtype = tf.as_dtype(x.dtype) if str(x.dtype)[:2] != "<U" else tf.string
    pixels = dtype.is_integer and (dtype == tf.uint8 or len(x.shape) >= 5)
    return None if dtype.is_floating or pixels else dtype.name


def check_support(support_x: Nest, support_y: Nest) -> None:
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
        check_finite(name, values)


def check_finite(name: str, values: Nest) -> None:
    """Raise a `ValueError` if a number is NaN, infinite, or too large to be squared.

    Args:
        name: What to call them.
        values: A nest of arrays.
    """
    if not all(map(_finite_squares, keras.tree.flatten(values))):
        raise ValueError(
            f"`{name}` must be finite, and so must the sum of its squares. Received: NaN, "
            "infinite or too large numbers"
        )


def _finite_squares(values: Any) -> bool:
    """Whether no number is NaN, infinite, or too large for what networks compute of it."""
    if not np.issubdtype(values.dtype, np.floating):
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        flat = np.asarray(values, np.float32).ravel()
        return bool(np.isfinite(np.vdot(flat, flat)))


def check_examples(x: Any, model: keras.Model, example: Nest, name: str, axes: int = 1) -> None:
    """Raise unless examples are what the model takes, as far as their shapes and types tell.

    Args:
        x: A nest of arrays or tensors.
        model: The model.
        example: What it takes, a nest of symbolic tensors `[n, ...]`.
        name: What to call `x`.
        axes: How many axes stand before those of one example: 1 or, with an axis of tasks, 2.

    Raises:
        TypeError: If they are of a type that the model would misread.
        ValueError: If they are nested otherwise, or of another shape.
    """
    if isinstance(example, list | tuple) and len(example) == 1 and not keras.tree.is_nested(x):
        (example,) = example  # as Keras has it
    try:
        keras.tree.assert_same_paths(x, example)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be nested as the model's inputs are, "
            f"{keras.tree.map_structure(lambda x: x.shape[1:], example)}. Received: "
            f"{keras.tree.map_structure(lambda x: tuple(x.shape), x)}"
        ) from error
    for part, expected, read in _parts(x, model, example):
        shape, dtype = tuple(part.shape), _type(part)
        if (dtype == "string") != (_type(expected) == "string"):
            raise TypeError(
                f"`{name}` must be {_type(expected)}, as the model takes it. Received: {dtype}"
            )
        _check_scaled(part, _takes_integers(model, read, expected), name, axes)
        sizes = tuple(expected.shape[1:])
        if not _fits(shape[axes:], sizes):
            axis = "tasks, n" if axes == 2 else "n"
            raise ValueError(
                f"`{name}` must have the shape [{', '.join([axis, *map(str, sizes)])}] that the "
                f"model takes. Received: shape={shape}{_remedy(shape[axes:], sizes)}"
            )


def check_ids(x: Any, model: keras.Model, example: Nest, name: str) -> None:
    """Raise unless what the model reads as whole numbers is so, and has a row in its tables.

    Args:
        x: A nest of arrays, which `check_examples` has found fit.
        model: The model.
        example: What it takes.
        name: What to call `x`.

    Raises:
        TypeError: If there are fractions.
        ValueError: If an id is negative or too large.
    """
    for part, expected, read in _parts(x, model, example):
        tables = [layer for layer in read or [] if isinstance(layer, keras.layers.Embedding)]
        kind = keras.backend.standardize_dtype(expected.dtype)
        if not tables and not keras.backend.is_int_dtype(kind):
            continue
        values = np.asarray(part)
        if np.issubdtype(values.dtype, np.floating) and (values != np.floor(values)).any():
            wants = f"layer {tables[0].name!r} takes ids" if tables else f"its Input is {kind}"
            raise TypeError(
                f"`{name}` must be whole numbers, for {wants}. The samplers give uint8 and uint16 "
                "examples of the shape of images, [height, width] or more, as floats; others "
                "they leave as they are: make the data set of `examples.astype('int32')`. "
                f"Received: {values.dtype} with fractions"
            )
        for table in tables:
            if values.size and not 0 <= values.min() <= values.max() < table.input_dim:
                raise ValueError(
                    f"`{name}` must have ids from 0 to {table.input_dim - 1}, for layer "
                    f"{table.name!r} has a table of {table.input_dim} rows. Received: ids from "
                    f"{values.min():g} to {values.max():g}"
                )


def check_targets(
    inputs: dict[str, Any], targets: Nest, classes: int | None, ignored: int | None
) -> None:
    """Raise a `ValueError` unless there is a label for each query, of a class that there is.

    Args:
        inputs: A meta-batch's.
        targets: A nest of labels `[tasks, queries, ...]`.
        classes: How many there are, where labels are their numbers.
        ignored: The label that the loss leaves out, if there is one.
    """
    queries = tuple(keras.tree.flatten(inputs["query_x"])[0].shape[:2])
    for part in keras.tree.flatten(targets):
        if tuple(part.shape[:2]) != queries:
            raise ValueError(
                "`targets` must be [tasks, queries, ...], a label for each of `query_x`. Received: "
                f"shape={tuple(part.shape)}, where `query_x` has {queries[0]} tasks of "
                f"{queries[1]} queries"
            )
    if classes is None or keras.tree.is_nested(targets):
        return
    labels = np.asarray(targets)
    labels = labels[np.asarray(inputs["query_mask"])] if "query_mask" in inputs else labels
    labels = labels if ignored is None else labels[labels != ignored]
    if not labels.size or not np.issubdtype(labels.dtype, np.integer):
        return
    if not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"`targets` must be the class numbers 0..{classes - 1}. Received: labels from "
            f"{labels.min()} to {labels.max()}"
        )


def refusing_unscaled(adapted: keras.Model, model: keras.Model, example: Nest) -> keras.Model:
    """Return a model that refuses what `check_examples` takes for unscaled.

    Keras would make floats of bytes without a word. It is this object that does so, and not one
    that is made of its configuration.

    Args:
        adapted: The model, which is changed.
        model: The model that it is of.
        example: What that takes.
    """
    call = adapted.call
    free = [
        _takes_integers(model, read, expected)
        for _, expected, read in _parts(example, model, example)
    ]

    @functools.wraps(call)
    def checked(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        for part, takes in zip(keras.tree.flatten(inputs), free, strict=False):
            _check_scaled(part, takes, "inputs", axes=1)
        return call(inputs, *args, **kwargs)

    adapted.call = checked
    return adapted


def check_masks(inputs: dict[str, Any]) -> None:
    """Raise a `ValueError` unless each task of a padded meta-batch has support and queries."""
    for name in MASKS:
        if name in inputs and not np.asarray(inputs[name]).any(axis=1).all():
            empty = int(np.argmin(np.asarray(inputs[name]).any(axis=1)))
            raise ValueError(
                f"`{name}` must be true somewhere in each task. Received: nowhere in task {empty}"
            )


def _unlabelled(x: Nest, support_x: Nest) -> Any:
    """Return examples without labels as tensors, if they are like those of support sets."""
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    parts = keras.tree.flatten(tensors), keras.tree.flatten(support_x)
    alike = len(parts[0]) == len(parts[1]) and all(
        ours.dtype == theirs.dtype
        and len(ours.shape) == len(theirs.shape)
        and ours.shape[2:] == theirs.shape[2:]
        and ours.shape[:1].is_compatible_with(theirs.shape[:1])
        for ours, theirs in zip(*parts, strict=True)
    )
    if not alike:
        ours, theirs = (", ".join(f"{x.dtype.name}{list(x.shape)}" for x in flat) for flat in parts)
        raise ValueError(
            "`unlabelled_x` must be [tasks, u, ...], of as many tasks as `support_x`, with "
            f"examples of its shape and type. Received: {ours}, where `support_x` is {theirs}"
        )
    return tensors


def _masks(inputs: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the masks of a meta-batch, if it has any."""
    names = masks_of(tensors)
    if not any(name in inputs for name in names.values()):
        return {}
    missing = [name for name in names.values() if inputs.get(name) is None]
    if missing:
        every = "both" if len(names) == 2 else "all"
        raise ValueError(
            f"`inputs` must have {every} of {' and '.join(map(repr, names.values()))}, or none. "
            f"Received: no {missing[0]!r}"
        )
    masks = {name: keras.ops.convert_to_tensor(inputs[name]) for name in names.values()}
    for part, name in names.items():
        expected = keras.tree.flatten(tensors[part])[0].shape[:2]
        if masks[name].dtype != bool or not masks[name].shape.is_compatible_with(expected):
            raise ValueError(
                f"`{name}` must be bool of shape {tuple(expected)}, true where there is an "
                f"example. Received: {masks[name].dtype.name}, shape={tuple(masks[name].shape)}"
            )
    return masks


# Layers that take integers for what they are: as ids, or to scale them.
_FOR_INTEGERS = (
    keras.layers.CategoryEncoding,
    keras.layers.Discretization,
    keras.layers.Embedding,
    keras.layers.HashedCrossing,
    keras.layers.Hashing,
    keras.layers.IntegerLookup,
    keras.layers.Lambda,
    keras.layers.Normalization,
    keras.layers.Rescaling,
)


def _parts(x: Any, model: keras.Model, example: Nest) -> list[tuple[Any, Any, list[Any] | None]]:
    """Return each input with what the model expects of it and the layers that read it, if known."""
    flat = keras.tree.flatten(x), keras.tree.flatten(example)
    read: Any = readers(model)
    if read is None or len(read) != len(flat[0]):
        read = [None] * len(flat[0])
    return list(zip(*flat, read, strict=True))


def _check_scaled(x: Any, takes_integers: bool, name: str, axes: int) -> None:
    dtype = _type(x)
    if not takes_integers and _unscaled(tuple(x.shape)[axes:], dtype):
        raise TypeError(
            f"`{name}` must be scaled as in training; the samplers give uint8 images as "
            "float32 times 1/255, and leave vectors of integers as they are, which "
            f"`.astype('float32')` makes floats of. Received: dtype={dtype}"
        )


def _takes_integers(model: keras.Model, read: list[Any] | None, expected: Any) -> bool:
    """Whether integers stay what they are where they are read, or it cannot be known."""
    if keras.backend.is_int_dtype(keras.backend.standardize_dtype(expected.dtype)):
        return True
    layers = [model] if read is None else read
    return all(
        not isinstance(layer, keras.Layer)  # an operation, `x / 255` for instance
        or any(isinstance(inner, _FOR_INTEGERS) for inner in layers_of(layer))
        for layer in layers
    )


def _unscaled(shape: tuple[Any, ...], dtype: str) -> bool:
    """Whether examples are of 8 bits, or other integers of the shape of images."""
    if dtype == "uint8":
        return True
    picture = (len(shape) == 3 and shape[2] in (1, 3, 4)) or (
        len(shape) == 2 and shape[0] == shape[1] and (shape[0] or 0) >= 8
    )
    return picture and keras.backend.is_int_dtype(dtype)


def _type(x: Any) -> str:
    kind = getattr(x.dtype, "kind", "")
    if kind in tuple("OSU") or x.dtype == "string" or x.dtype is tf.string:
        return "string"
    return str(keras.backend.standardize_dtype(x.dtype))


def _fits(shape: tuple[Any, ...], sizes: tuple[Any, ...]) -> bool:
    return len(shape) == len(sizes) and all(
        None in (n, e) or n == e for n, e in zip(shape, sizes, strict=True)
    )


def _remedy(shape: tuple[Any, ...], sizes: tuple[Any, ...]) -> str:
    """Return what to do about a wrong shape, where that can be guessed."""
    if len(shape) == 3 and _fits((*shape[1:], shape[0]), sizes):
        return "; np.moveaxis(examples, 1, -1) puts the channels last"
    if sizes[-1:] == (1,) and _fits((*shape, 1), sizes):
        return "; examples[..., None] adds the axis of channels"
    if len(shape) == len(sizes) == 3 and shape[:2] == sizes[:2]:
        return f"; the examples have {shape[2]} channels, and the model is for {sizes[2]}"
    if len(shape) == len(sizes) == 3 and shape[2] == sizes[2]:
        return "; the images must be resized, or the model made for their size"
    if None not in (*shape, *sizes) and math.prod(shape) == math.prod(sizes) and len(sizes) == 1:
        return f"; examples.reshape(-1, {sizes[0]}) makes vectors of them"
    return ""
