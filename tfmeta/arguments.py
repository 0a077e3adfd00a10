"""The arguments that an object was made with, for Keras's saving: attributes of the same names."""

from __future__ import annotations

import inspect
from typing import Any

import keras


def arguments_of(made: Any, above: type) -> dict[str, Any]:
    """Return the arguments of an object's constructor by name, as Keras saves them.

    Args:
        made: The object; an argument that it has no attribute for is left out.
        above: Up to which of its base classes to look, that one left out.
    """
    return {
        name: keras.saving.serialize_keras_object(getattr(made, name))
        for name in _names(type(made), above)
        if hasattr(made, name)
    }


def missing(made: Any, above: type) -> list[str]:
    """Return the arguments of an object's constructor that it has no attribute for."""
    return [name for name in _names(type(made), above) if not hasattr(made, name)]


def loaded(config: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of what `arguments_of` returned."""
    return {name: keras.saving.deserialize_keras_object(x) for name, x in config.items()}


def parameters(cls: type, above: type) -> dict[str, tuple[inspect.Parameter, type]]:
    """Return the arguments that a class takes: its own, and those that it hands on to its bases.

    Args:
        cls: The class.
        above: Up to which of its base classes to look, that one left out.

    Returns:
        By name, each with the class whose constructor has it.
    """
    found: dict[str, tuple[inspect.Parameter, type]] = {}
    for base in cls.__mro__[: cls.__mro__.index(above)]:
        constructor = vars(base).get("__init__")
        if constructor is None:
            continue
        # Without `self`; and the first argument of a base is what the first one here is.
        first = 2 if found else 1
        given = list(inspect.signature(constructor).parameters.values())[first:]
        for p in given:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                found.setdefault(p.name, (p, base))
        if all(p.kind is not p.VAR_KEYWORD for p in given):
            break
    return found


def _names(cls: type, above: type) -> list[str]:
    return list(parameters(cls, above))
