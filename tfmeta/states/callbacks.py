"""What other callbacks have counted, as far as a file can hold it."""

from __future__ import annotations

import contextlib
import importlib
import types
from typing import Any

import keras
import numpy as np

from tfmeta.foreign.of_keras import OF_CALLBACKS
from tfmeta.types import Array


def changeable(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return the attributes of a callback that can be kept, as they are now."""
    found = {}
    for name, value in vars(callback).items():
        if name in OF_CALLBACKS:
            continue
        arrays: list[Array] = []
        with contextlib.suppress(TypeError):
            kept = packed(value, arrays)
            found[name] = (kept, [(array.dtype.name, array.tobytes()) for array in arrays])
    return found


def packed(value: Any, arrays: list[Array]) -> Any:
    """Return what JSON can hold; arrays go to `arrays` and are numbered."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "OUSVmM":
        arrays.append(np.array(value))
        return {"array": len(arrays) - 1, "scalar": isinstance(value, np.generic)}
    if isinstance(value, types.FunctionType) and value.__module__.startswith("keras."):
        return {"function": [value.__module__, value.__qualname__]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [packed(inner, arrays) for inner in value]}
    if type(value) is dict:
        pairs = [[packed(key, arrays), packed(inner, arrays)] for key, inner in value.items()]
        return {"dict": pairs}
    raise TypeError(f"cannot be kept: {type(value)}")


def unpacked(value: Any, arrays: list[Array]) -> Any:
    """Return what `packed` was given."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array = arrays[value["array"]]
        return array[()] if value["scalar"] else array.copy()
    if "dict" in value:
        return {unpacked(key, arrays): unpacked(inner, arrays) for key, inner in value["dict"]}
    ((kind, values),) = value.items()
    if kind == "function":  # by which EarlyStopping and its kin compare
        module, name = values
        if not module.startswith("keras."):
            raise ValueError(f"functions must be of Keras. Received: {name} of {module}")
        return getattr(importlib.import_module(module), name)
    made = [unpacked(inner, arrays) for inner in values]
    return tuple(made) if kind == "tuple" else made
