"""What other callbacks have counted, and what of it a state may give back to them.

A state may be a stranger's. So it gives a callback of Keras what a table names, and one of one's
own the attributes that it has already, in values of the kind that they had: numbers, arrays, plain
words, and lists and dicts of such. Objects, functions and the names of files are none of it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from tfmeta.bounded_json import shown
from tfmeta.foreign.of_keras import OF_CALLBACKS
from tfmeta.foreign.of_keras_callbacks import (
    AVERAGES_IN_MODEL,
    BATCHES,
    CURVES,
    EPOCH,
    SECONDS,
    SINCE_SAVED,
)
from tfmeta.types import Array

_DEPTH = 16
# A word is nothing that could lead to another file; what a key is for may have a path's slashes.
_WORD = re.compile(r"[\w \-+%]{0,100}")
_KEY = re.compile(r"(?!/|.*\.\.)[\w \-+%()\[\].:,/]{0,1000}")
_OF_FILES = re.compile(
    "path|file|dir|folder|log|url|uri|root|host|address|module|class|command|output|target|prefix",
    re.IGNORECASE,
)


def changeable(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return the attributes of a callback that can be written down, as they are now."""
    found = {}
    for name, value in vars(callback).items():
        if name in OF_CALLBACKS:
            continue
        arrays: list[Array] = []
        with contextlib.suppress(TypeError):
            kept = packed(value, arrays)
            found[name] = (kept, [(array.dtype.name, array.tobytes()) for array in arrays])
    return found


def kinds(callback: keras.callbacks.Callback) -> dict[str, str]:
    """Return of which kind each attribute of a callback is, which a state must not change."""
    return {
        name: "other" if _kind(value) != "other" and _unfit(value) else _kind(value)
        for name, value in vars(callback).items()
    }


def refusal(
    callback: keras.callbacks.Callback, before: dict[str, str], name: str, value: Any
) -> str | None:
    """Return why a state may not give a callback an attribute, or `None` if it may.

    Args:
        callback: The callback.
        before: Its `kinds` when training began.
        name: The attribute.
        value: What it would become.
    """
    known = _of_keras(callback)
    if name in known:
        fits = known[name](callback, value)
        return None if fits else f"what that counts, not {shown(value)}"
    if type(callback).__module__.partition(".")[0] in ("keras", "tfmeta"):
        return f"among {', '.join(known) or 'nothing'}"
    kind, was = _kind(value), before.get(name)
    if was is None or name in OF_CALLBACKS or name.startswith("__"):
        return "one that the callback has"
    if "other" in (kind, was):
        return "numbers, arrays, words, and lists and dicts of such, as before"
    if was not in (kind, "none"):
        return f"of the kind {was}, as before"
    if _has_text(value) and (name.startswith("_") or _OF_FILES.search(name)):
        return "no text, for it may be the name of a file"
    return _unfit(value)


def left_out(name: str) -> bool:
    """Return whether an attribute is one that earlier states have, and Keras finds by itself."""
    return name in ("monitor_op", "min_delta")


def packed(value: Any, arrays: list[Array], depth: int = _DEPTH) -> Any:
    """Return what JSON can hold; arrays go to `arrays` and are numbered.

    Raises:
        TypeError: If there is something that cannot be written down.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "OUSVmM":
        arrays.append(np.array(value))
        return {"array": len(arrays) - 1, "scalar": isinstance(value, np.generic)}
    if depth and type(value) in (list, tuple):
        return {type(value).__name__: [packed(inner, arrays, depth - 1) for inner in value]}
    if depth and type(value) is dict:
        pairs = value.items()
        return {"dict": [[packed(k, arrays, 0), packed(v, arrays, depth - 1)] for k, v in pairs]}
    raise TypeError(f"cannot be kept: {type(value)}")


def unpacked(value: Any, take: Callable[[int], Array], depth: int = _DEPTH) -> Any:
    """Return what `packed` was given.

    Args:
        value: What `packed` returned, or what a stranger says it did.
        take: Returns the array of a number, once.
        depth: How deep it may be nested.

    Raises:
        ValueError: If it is nothing that `packed` returns.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and value.keys() == {"array", "scalar"}:
        array = take(value["array"])
        return array[()] if value["scalar"] else array.copy()
    if depth and isinstance(value, dict) and len(value) == 1:
        ((kind, inner),) = value.items()
        if kind in ("list", "tuple") and isinstance(inner, list):
            made = [unpacked(each, take, depth - 1) for each in inner]
            return tuple(made) if kind == "tuple" else made
        if kind == "dict" and isinstance(inner, list) and all(map(_is_pair, inner)):
            return {unpacked(k, take, 0): unpacked(v, take, depth - 1) for k, v in inner}
    raise ValueError(f"what is kept of callbacks must be plain values. Received: {shown(value)}")


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _kind(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return "number"
    if isinstance(value, np.ndarray):
        return "array" if value.dtype.kind in "biufc" else "other"
    return type(value).__name__ if type(value) in (str, list, tuple, dict) else "other"


def _inside(value: Any, depth: int = _DEPTH) -> Iterable[Any]:
    """Return a value, and all in it but keys; what is too deep as a text that is no word."""
    yield value if depth else "\0"
    parts = value.values() if isinstance(value, dict) else value
    if depth and isinstance(value, list | tuple | dict):
        for part in parts:
            yield from _inside(part, depth - 1)


def _has_text(value: Any) -> bool:
    return any(isinstance(part, str) for part in _inside(value))


def _unfit(value: Any) -> str | None:
    for part in _inside(value):
        if isinstance(part, str) and not _WORD.fullmatch(part):
            return "words of letters and digits, for others may be the names of files"
        if isinstance(part, dict) and not all(
            not isinstance(key, str) or _KEY.fullmatch(key) for key in part
        ):
            return "dicts whose keys are plain names"
    return None


# --- Of Keras -----------------------------------------------------------------------------------


def _count(_: Any, value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**53)


def _number(_: Any, value: Any) -> bool:
    return _kind(value) in ("none", "number") and not isinstance(value, bool)


def _flag(_: Any, value: Any) -> bool:
    return type(value) is bool


def _weights(callback: Any, value: Any) -> bool:
    if not isinstance(value, list):
        return value is None
    shapes = [tuple(weight.shape) for weight in callback.model.weights]
    return [getattr(x, "shape", None) for x in value] == shapes


def _counts(_: Any, value: Any) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 2**53 for x in value)


def _logged(_: Any, value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and _KEY.fullmatch(name)
        and isinstance(numbers, list)
        and all(_kind(x) in ("number", "array") for x in numbers)
        for name, numbers in value.items()
    )


_SINCE_SAVED = dict.fromkeys(SINCE_SAVED, _count)
# By name, for not every version of Keras has all of them. What is not here counts nothing, or finds
# it again by itself.
_KNOWN: dict[str, dict[str, Callable[[Any, Any], bool]]] = {
    "BackupAndRestore": {**_SINCE_SAVED, EPOCH: _count},
    "EarlyStopping": {
        "best": _number,
        "best_epoch": _count,
        "best_weights": _weights,
        "stopped_epoch": _count,
        "wait": _count,
    },
    "History": {"epoch": _counts, "history": _logged},
    "ModelCheckpoint": {**_SINCE_SAVED, EPOCH: _count, "best": _number},
    "OrbaxCheckpoint": {**_SINCE_SAVED, BATCHES: _count, "best": _number},
    "ReduceLROnPlateau": {"best": _number, "cooldown_counter": _count, "wait": _count},
    "SwapEMAWeights": {AVERAGES_IN_MODEL: _flag},
    "TensorBoard": {
        **dict.fromkeys(CURVES, _count),
        SECONDS: _number,
    },
}


def _of_keras(callback: keras.callbacks.Callback) -> dict[str, Callable[[Any, Any], bool]]:
    """Return what may be set of what a callback has from Keras."""
    found: dict[str, Callable[[Any, Any], bool]] = {}
    for base in type(callback).__mro__:
        if base.__module__.partition(".")[0] == "keras":
            found.update(_KNOWN.get(base.__name__, {}))
    return found
