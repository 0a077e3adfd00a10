"""What a state is of: the variables of a model, and what model and training were made with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import keras

from tfmeta.bounded_json import shown

_NO_SETTINGS = {"module", "registered_name", "build_config", "shared_object_id"}
_NAMES = {"name", "inbound_nodes", "input_layers", "output_layers", "keras_history"}
# Settings that had another name when states were written that are still read.
_RENAMED = {"adapt": "adapt_layers"}


def variables_of(model: keras.Model) -> dict[str, list[Any]]:
    """Return the variables that a state holds, by what they are of."""
    return {
        "weights": list(model.variables),
        "optimizer": list(model.optimizer.variables),
        "metrics": list(model.metrics_variables),
    }


def described(variable: Any) -> list[Any]:
    """Return path, shape and type of a variable."""
    return [variable.path, list(variable.shape), keras.backend.standardize_dtype(variable.dtype)]


def check_variables(path: Path, part: str, then: list[Any], now: list[Any]) -> None:
    """Raise a `ValueError` unless variables are as a state describes them."""
    here = [described(variable) for variable in now]
    for i in range(max(len(then), len(here))):
        was, is_ = (entries[i] if i < len(entries) else None for entries in (then, here))
        # Names are counted through in a process, and so may differ.
        if was is None or is_ is None or was[1:] != is_[1:]:
            was, is_ = (x and "'{}' {} {}".format(*x) for x in (was, is_))
            raise ValueError(
                f"'{path}' must be a state of this model. Received: one that differs in `{part}`, "
                f"number {i}: {was} in the state, {is_} in the model"
            )


def settings_of(model: keras.Model) -> dict[str, Any]:
    """Return what a model and its training were made with, flat; nothing where it cannot tell."""
    try:
        # What JSON cannot hold is known by its type, for an address would differ each time.
        text = json.dumps(
            keras.saving.serialize_keras_object(model), default=lambda x: type(x).__name__
        )
        config = json.loads(text)
    except (NotImplementedError, TypeError, ValueError):
        return {}
    flat: dict[str, Any] = {}

    def add(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                named = key in _NAMES and len(value) > 1
                # A rate that is a number is one of the optimizer's variables.
                rate = key == "learning_rate" and isinstance(inner, float)
                if not (named or rate or key in _NO_SETTINGS):
                    add(f"{path}.{key}" if key != "config" else path, inner)
        elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
            for i, inner in enumerate(value):
                add(f"{path}[{i}]", inner)
        else:
            flat[path.removeprefix(".")] = value

    add("", config)
    return flat


def check_settings(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a `ValueError` that names the first setting that differs from a state's."""
    if not then or not now:
        return
    then, now = _as_named_now(then), _as_named_now(now)
    for name in [*then, *(name for name in now if name not in then)]:
        # A setting that a state does not know is one that came later, which None leaves off.
        if then.get(name) != now.get(name):
            was, is_ = (_said(x[name]) if name in x else "nothing" for x in (then, now))
            raise ValueError(
                f"`{name}` must be {was} as in '{path}', a state of a training with other "
                f"settings. Received: {name}={is_}"
            )


def _said(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 200 else shown(value)


def _as_named_now(settings: dict[str, Any]) -> dict[str, Any]:
    """Return flat settings with the first part of each path as it is called now."""
    return {
        re.sub(r"^\w+", lambda first: _RENAMED.get(first[0], first[0]), path): value
        for path, value in settings.items()
    }
