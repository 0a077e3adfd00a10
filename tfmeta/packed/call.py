"""Call a Keras model for several tasks at once, each with weights of its own."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfmeta.foreign.derivatives import TRACING, exact_pooling, exact_resizing
from tfmeta.foreign.of_keras import run_through_graph
from tfmeta.functional import Called, Statistics
from tfmeta.notes import keeping_notes
from tfmeta.packed.layout import pack, spread, task_axes, unpack
from tfmeta.packed.rules import EVERYWHERE, RULES, NoRule, Rule, Trace
from tfmeta.types import Nest, Params


def packed_call(
    model: keras.Model,
    params: Params,
    state: Params,
    inputs: Any,
    *,
    training: bool,
    statistics: Statistics = "training",
    step: Any = -1,
    made: list[int] | None = None,
) -> Called:
    """Compute `f(inputs[t]; params[t], state[t])` for all tasks t, as `functional_call` does one.

    Args:
        model: A built Functional or Sequential model, all of whose layers have a rule.
        params: Packed tensors in the order of `model.trainable_variables`; see `spread_weights`.
        state: Packed tensors in the order of `model.non_trainable_variables`; random seeds are not
            packed, for all tasks draw from one.
        inputs: The model's inputs `[tasks, n, ...]`.
        training: The Keras flag.
        statistics: See `tfmeta.functional.batch_norm_uses`.
        step: The inner step.
        made: Is told the size of each layer's output.

    Raises:
        NoRule: If a layer cannot be computed so.
    """
    tasks = tf.nest.flatten(inputs)[0].shape[0]
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    pairs = list(zip(variables, [*params, *state], strict=True))
    trace = Trace(
        {id(v): x for v, x in pairs if _is_packed(v)},
        tasks,
        training=training,
        statistics=statistics,
        step=step,
        made=[] if made is None else made,
    )
    seeds = [(v, x) for v, x in pairs if not _is_packed(v)]
    with (
        TRACING,
        exact_resizing(),
        exact_pooling(),
        keras.StatelessScope(state_mapping=seeds) as scope,
    ):
        outputs = _run(model, tf.nest.map_structure(pack, inputs), trace)
        new_state = [
            trace.values[id(v)] if _is_packed(v) else scope.get_current_value(v)
            for v in model.non_trainable_variables
        ]
    # Losses look for the logits that probabilities were made of.
    return Called(keeping_notes(unpack, outputs), new_state, [], params)


def spread_weights(
    model: keras.Model, params: Params, state: Params, tasks: int
) -> tuple[Params, Params]:
    """Return packed params and state that are the same for each task."""
    axes = task_axes(model)

    def packed(variable: keras.Variable, value: Any) -> Any:
        return spread(value, axes[id(variable)], tasks) if _is_packed(variable) else value

    return (
        [packed(v, x) for v, x in zip(model.trainable_variables, params, strict=True)],
        [packed(v, x) for v, x in zip(model.non_trainable_variables, state, strict=True)],
    )


def trained_by_rules(model: keras.Model, examples: Any) -> Any:
    """Return what a model makes of a batch in training, by its layers' rules; keep its new state.

    That is a packed call for one task: rules of batch normalisation are faster than Keras's.
    """
    variables = model.non_trainable_variables
    params, state = spread_weights(
        model,
        [tf.convert_to_tensor(v) for v in model.trainable_variables],
        [tf.convert_to_tensor(v) for v in variables],
        1,
    )
    inputs = tf.nest.map_structure(lambda x: x[None], examples)
    called = packed_call(model, params, state, inputs, training=True)
    for variable, value in zip(variables, called.state, strict=True):
        variable.assign(tf.reshape(value, variable.shape))
    return tf.nest.map_structure(lambda x: x[0], called.outputs)


class Trial(NamedTuple):
    """What came of computing a model for several tasks at once.

    Attributes:
        obstacle: Why that cannot be done; `None` if it can.
        activations: How many numbers all layers together make of one example.
    """

    obstacle: str | None
    activations: int


def tried(model: keras.Model, example: Nest) -> Trial:
    """Find out whether a model can be computed for several tasks at once.

    Args:
        model: A built model.
        example: What it takes, as `KerasTensor`s `[n, ...]`.
    """
    weights = [
        [tf.TensorSpec(v.shape, v.dtype) for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    inputs = tf.nest.map_structure(lambda x: tf.TensorSpec([2, 3, *x.shape[1:]], x.dtype), example)

    made: list[int] = []

    def trial(params: Params, state: Params, inputs: Any) -> Any:
        params, state = spread_weights(model, params, state, 2)
        how: dict[str, Any] = {"training": True, "statistics": "batch", "step": 0}
        return packed_call(model, params, state, inputs, made=made, **how).outputs

    try:
        tf.function(trial, autograph=False).get_concrete_function(*weights, inputs)
    except NoRule as error:
        return Trial(str(error), 0)
    return Trial(None, sum(made) // (2 * 3))


def _is_packed(variable: keras.Variable) -> bool:
    return bool(keras.backend.is_float_dtype(variable.dtype))


def _as_declared(x: Any, declared: Any) -> Any:
    """Convert one input as Keras does: its type, and a last axis of 1 too many or missing."""
    x = tf.cast(x, declared.dtype)
    missing = len(declared.shape) + 1 - len(x.shape)
    if missing == 1 and declared.shape[-1] == 1:
        return pack(unpack(x)[..., None])
    if missing == -1 and x.shape[-1] == 1:
        return pack(unpack(x)[..., 0])
    return x


def _run(model: keras.Model, inputs: Any, trace: Trace) -> Any:
    sequential = type(model) is keras.Sequential
    if not sequential and type(model).call is not _functional_class().call:
        raise NoRule(f"model {model.name!r} ({type(model).__name__}) has a call of its own")
    declared = tf.nest.pack_sequence_as(inputs, tf.nest.flatten(model.inputs))
    inputs = tf.nest.map_structure(_as_declared, inputs, declared)
    if sequential:
        # Its layers, and no model that Keras makes of them, which has the same layers.
        for layer in model.layers:
            inputs = _apply(layer, trace, inputs)
        return inputs
    return run_through_graph(
        model, inputs, lambda operation: functools.partial(_apply, operation, trace)
    )


@functools.cache
def _functional_class() -> Any:
    x = keras.Input(())
    return type(keras.Model(x, keras.layers.Identity()(x)))


def _apply(layer: keras.Layer, trace: Trace, *args: Any, **kwargs: Any) -> Any:
    """Apply the rule of a layer to the inputs that it is called with."""
    if isinstance(layer, keras.layers.InputLayer):
        return args[0]
    where = f"layer {layer.name!r} ({type(layer).__name__})"
    rule = RULES.get(type(layer))
    if rule is None and not isinstance(layer, keras.Model):
        raise NoRule(f"{where} has no rule")
    # Keras puts the flag of the whole call in the place of one that a layer was called with.
    if len(args) != 1 or any(v is not None for k, v in kwargs.items() if k != "training"):
        raise NoRule(f"{where} with arguments in its call has no rule")
    inputs = args[0]
    if rule is None:
        return _run(layer, inputs, trace)
    reason = _unusual(layer, rule)
    if reason is not None:
        raise NoRule(f"{where} with {reason} has no rule")
    if layer.autocast:
        inputs = tf.nest.map_structure(
            lambda x: tf.cast(x, layer.compute_dtype) if x.dtype.is_floating else x, inputs
        )
    try:
        outputs = rule.apply(layer, inputs, trace)
    except NoRule as error:
        raise NoRule(f"{where} with {error} has no rule") from None
    # A size that is not known counts as 1.
    for x in tf.nest.flatten(outputs):
        trace.made.append(math.prod(n or 1 for n in x.shape))
    return outputs


def _unusual(layer: keras.Layer, rule: Rule) -> str | None:
    """Return what about a layer its rule does not know, if there is such a thing."""
    known = {*EVERYWHERE, *rule.arguments.split()}
    try:
        arguments = constructor_arguments(layer)
    except (TypeError, ValueError, NotImplementedError):
        return "arguments that Keras cannot save"
    for name, (value, default) in arguments.items():
        # Weights have their initial values already.
        if name in known or name.endswith("_initializer"):
            continue
        if type(value) is not type(default) or value != default:
            shown = value.get("class_name", value) if isinstance(value, dict) else value
            return f"{name}={shown!r}"
    # Of weights, whoever gave it them.
    for attribute in ("regularizer", "constraint"):
        if any(getattr(v, attribute) is not None for v in layer.trainable_variables):
            return f"a {attribute} of weights"
    if getattr(layer, "quantization_mode", None):
        return f"quantization_mode={layer.quantization_mode!r}"
    return None


def constructor_arguments(layer: keras.layers.Layer) -> dict[str, tuple[Any, Any]]:
    """Return value and default of each constructor argument of a layer, by name.

    What has no default, or cannot be found out, is `inspect.Parameter.empty`.
    """
    empty = inspect.Parameter.empty
    with warnings.catch_warnings():
        # Keras warns of functions that it could not load again.
        warnings.simplefilter("ignore")
        config = layer.get_config()
    kind: Any = type(layer)
    defaults: dict[str, Any] = {}
    for cls in reversed(kind.__mro__):
        defaults |= _defaults(cls)
    # Configurations leave some out, and have those that are handed on to a base class.
    return {
        name: (config.get(name, getattr(layer, name, empty)), defaults.get(name, empty))
        for name in {**_defaults(kind), **config}
    }


@functools.cache
def _defaults(cls: Any) -> dict[str, Any]:
    """Return the defaults of the arguments that a constructor names."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(cls.__init__).parameters.items()
        if name != "self"
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
