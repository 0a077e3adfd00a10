"""Rules for layers of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfmeta.packed.rules import RULES, Rule, Trace

Apply = Callable[[Any, Any, Trace], Any]


def register_rule(layer: type[keras.layers.Layer], arguments: str = "") -> Callable[[Apply], Apply]:
    """Tell how a layer of one's own is computed for several tasks at once, each with its weights.

    Without a rule, a model with such a layer has its tasks computed one after another. A rule is a
    function `(layer, inputs, trace) -> outputs`. Vectors, and all else with at most two axes in
    one task, are `[tasks, n, d]`; with axes of space they are `[n, *space, tasks, channels]`.
    `trace.weight(layer.kernel, dtype)` gives a weight of all tasks: `[tasks, ...]`, and where the
    layer's own has three axes or more `[..., tasks, channels]`, the axis of tasks before the last.
    `trace.tasks` is their number, `trace.training` the Keras flag.

    Args:
        layer: The class. An instance of a subclass does not have the rule.
        arguments: The names of the constructor's arguments that the function heeds, separated by
            spaces. A layer with any other off its default goes without the rule, and so one whose
            weights have regularizers or constraints. Where the function finds that it cannot
            compute a layer it raises `tfmeta.packed.NoRule` with what is in the way.

    Returns:
        A decorator for the function.

    Raises:
        TypeError: If `layer` is no class of Keras layers.

    Example:
        ```python
        @tfmeta.packed.register_rule(Scale, "initial")     # y = x * scale, scale [d]
        def scale(layer, inputs, trace):
            return inputs * trace.weight(layer.scale, inputs.dtype)[:, None]
        ```
    """
    if not (isinstance(layer, type) and issubclass(layer, keras.layers.Layer)):
        raise TypeError(f"`layer` must be a class of Keras layers. Received: layer={layer!r}")
    if not isinstance(arguments, str):
        raise TypeError(
            "`arguments` must be names, separated by spaces, as in 'units activation'. Received: "
            f"arguments={arguments!r}"
        )

    def register(apply: Apply) -> Apply:
        RULES[layer] = Rule(apply, arguments)
        return apply

    return register
