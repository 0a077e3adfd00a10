"""Copies of models by their configuration, where that tells all there is to a model.

Where it does not, nobody needs a copy: learners compute without changing anything, and
`tfmeta.task_model.TaskModel` gives a model's own objects other weights.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tfmeta.foreign.of_keras import layers_of, of_tracking

M = TypeVar("M", bound=keras.Model)
Exchange = Callable[[keras.layers.Layer], keras.layers.Layer | None]

# What a configuration has of Python lambdas, and of tensors, which may be the values of weights.
_HALF_TOLD = {"__lambda__", "__tensor__"}


def copy_of(model: M, exchange: Exchange | None = None) -> M | None:
    """Return a model that gives what `model` gives, with weights of its own; not compiled.

    Args:
        model: A built model.
        exchange: A layer to a new one that stands in its place in the copy, or to `None`. It is
            asked of the layers of Functional and Sequential models within each other. Its weights
            may have one axis more in front, and are then the same in each row, or one less, and are
            then the last row.

    Returns:
        `None` where the configuration does not tell all: of lambdas, weights used as numbers,
        classes that Keras does not know, and attributes of one's own layers that were set later.
    """
    try:
        new = unbuilt_copy_of(model, exchange)
        if new is None:
            return None
        if not new.built:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that Keras cannot build it
                new.build_from_config(model.get_build_config())
        pairs = list(zip(layers_of(new), layers_of(model), strict=True))
        for layer, old in pairs:
            whole = isinstance(old, keras.Model) and _is_keras(old)
            if whole and _names(layer) != _names(old):
                return None  # weights are in the order of layers
            if layer.trainable != old.trainable:
                layer.trainable = old.trainable
            if type(layer) is type(old):
                if not _is_keras(old) and not _same_attributes(layer, old):
                    return None
                _give_tables(layer, old)
            elif exchange is None or exchange(old) is None:
                return None  # cloning forgets classes of Functional models
        for variable, old in zip(new.variables, model.variables, strict=True):
            value = keras.ops.convert_to_tensor(old)
            if len(value.shape) > len(variable.shape):
                value = value[-1]
            elif len(value.shape) < len(variable.shape):
                value = keras.ops.broadcast_to(value, variable.shape)
            variable.assign(value)
            if variable.trainable != old.trainable:
                variable.trainable = old.trainable
        for layer, _ in pairs:
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()  # makes constants of its weights
    except Exception:  # whatever comes of a configuration that is of something else
        return None
    return new


def unbuilt_copy_of(model: M, exchange: Exchange | None = None) -> M | None:
    """Return a new model of the same configuration, `None` where that does not tell all.

    Args:
        model: A model, which need not be built.
        exchange: As for `copy_of`.
    """

    def substitute(layer: keras.layers.Layer) -> keras.layers.Layer:
        other = exchange(layer) if exchange is not None else None
        return type(layer).from_config(layer.get_config()) if other is None else other

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that lambdas are unsafe
        try:
            config = model.get_config()
            if any(isinstance(x, str) and x in _HALF_TOLD for x in keras.tree.flatten(config)):
                return None
            new: M = (
                type(model).from_config(config)
                if exchange is None
                else keras.models.clone_model(model, clone_function=substitute, recursive=True)
            )
        except Exception:  # whatever a class makes of a configuration that is not its own
            return None
    return new if type(new) is type(model) else None


def remade(model: M) -> M:
    """Return a new model of the same configuration, with weights of its own initialisation.

    Raises:
        ValueError: If its configuration cannot make it again; it names the layer.
    """
    layers = layers_of(model)
    scope = {keras.saving.get_registered_name(type(x)): type(x) for x in layers}
    try:
        with keras.saving.custom_object_scope(scope):
            new: M = type(model).from_config(model.get_config())
            if not new.built:
                new.build_from_config(model.get_build_config())
        if [v.shape for v in new.variables] != [v.shape for v in model.variables]:
            raise ValueError("another number of weights, or of other shapes, came out")
    except Exception as error:
        at_fault = next((x for x in layers[::-1] if not _has_config(x)), model)
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            "`model` must be one that its get_config() can make again for weights to be drawn "
            f"anew. Received: {at_fault.name!r} of class {type(at_fault).__name__}, with which "
            f"that failed: {why} Give the class a get_config() with all arguments of its "
            "__init__, and register it by @keras.saving.register_keras_serializable()"
        ) from error
    return new


def resources_of(model: keras.Model) -> list[Any]:
    """Return the lookup tables and the like in a model, which an export has to name."""
    kind = tf.saved_model.experimental.TrackableResource
    parts = (x for y in layers_of(model) for x in tf.train.TrackableView(y).descendants())
    return list({id(x): x for x in parts if isinstance(x, kind)}.values())


def _names(model: keras.Model) -> list[str]:
    """Return the names of a model's layers but its inputs, which Keras names anew in clones."""
    return [x.name for x in model.layers if not isinstance(x, keras.layers.InputLayer)]


def _is_keras(layer: keras.layers.Layer) -> bool:
    return type(layer).__module__.partition(".")[0] in ("keras", "tfmeta")


def _same_attributes(new: keras.layers.Layer, old: keras.layers.Layer) -> bool:
    """Return whether a layer has the attributes of another: none of them was set later."""

    def told(x: Any) -> Any:
        if isinstance(x, keras.layers.Layer | keras.Variable | keras.random.SeedGenerator):
            return type(x)
        return x.get_config() if hasattr(x, "get_config") else x

    # What each has, and what TensorFlow puts down of its parts.
    usual = vars(keras.Model()).keys()
    values = [
        [
            told(x)
            for name, value in sorted(vars(layer).items())
            if name not in usual and not of_tracking(name)
            for x in (name, *keras.tree.flatten(value))
        ]
        for layer in (new, old)
    ]
    return len(values[0]) == len(values[1]) and all(map(np.array_equal, *values))


def _give_tables(new: keras.layers.Layer, old: keras.layers.Layer) -> None:
    """Give a layer what another would save beside its weights: a vocabulary, by files."""
    if hasattr(old, "save_assets"):
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables(store)
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)


def _has_config(layer: keras.layers.Layer) -> bool:
    try:
        layer.get_config()
    except NotImplementedError:
        return False
    return True
