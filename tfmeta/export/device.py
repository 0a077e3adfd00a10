"""What a learner computes on a device: `adapt` and `predict` as graphs of constants and inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.algorithms import MAML, ProtoMAML
from tfmeta.algorithms.prototypical import fixed_ways
from tfmeta.checks import check_count
from tfmeta.export.builtin_gradients import builtin_gradients
from tfmeta.kernels import avoided
from tfmeta.meta_learner import MetaLearner


def traced(model: keras.Model, function: Callable[..., Any], specs: Mapping[str, Any]) -> Any:
    """Trace a function of tensors with the weights of `model` as constants.

    Converters freeze variables by themselves, but not all of them: some stayed and were never set.

    Args:
        model: Whose weights `function` reads.
        function: Named tensors to a nest of tensors.
        specs: What the tensors are.
    """
    values = [(v, np.asarray(v)) for v in (*model.variables, *model.metrics_variables)]

    def constant(**inputs: Any) -> Any:
        mapping = [(variable, tf.constant(value)) for variable, value in values]
        with avoided(), builtin_gradients(), keras.StatelessScope(state_mapping=mapping):
            return function(**inputs)

    return tf.function(constant, autograph=False).get_concrete_function(**specs)


def learner_functions(
    learner: MetaLearner, ways: int | None, shots: int | None
) -> dict[str, Any]:
    """Return `adapt` and `predict` of a built learner, traced.

    `adapt(support_x, support_y)` gives `state_0`, `state_1`, ..., the tensors that depend on the
    support set and that predictions depend on; `predict(query_x, state_0, ...)` takes them.

    Args:
        learner: A built learner.
        ways: Classes of a task, `None` where that may vary.
        shots: Examples of each in the support set, `None` where that may vary.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is missing or does not fit the learner.
    """
    _check_sizes(learner, ways, shots)
    examples = ways * shots if ways and shots else None
    support = {
        **_named("support_x", learner.example, examples),
        **_named("support_y", _labels(learner), examples),
    }
    queries = _named("query_x", learner.example, None)
    structure: list[Any] = []

    def whole(**inputs: Any) -> Any:
        x, y = (
            [inputs[name] for name in support if name.startswith(part)]
            for part in ("support_x", "support_y")
        )
        x, y = _nested(learner.example, x), _nested(_labels(learner), y)
        with fixed_ways(ways):
            state = learner.adapt_task(x, y, training=False)
        structure[:] = [state]
        return tf.nest.flatten(state)

    adapting = traced(learner, whole, support)
    state = {
        f"state_{i}": tf.TensorSpec(x.shape, x.dtype) for i, x in enumerate(adapting.outputs)
    }

    def answer(**inputs: Any) -> Any:
        given = tf.nest.pack_sequence_as(structure[0], [inputs[name] for name in state])
        x = _nested(learner.example, [inputs[name] for name in queries])
        return predictions(learner.predict_task(given, x, training=False))

    predicting = traced(learner, answer, {**queries, **state})
    used = {name for tensor in predicting.outputs for name in _inputs_of(tensor)}
    passed = [
        i
        for i, (name, tensor) in enumerate(zip(state, adapting.outputs, strict=True))
        if name in used and _inputs_of(tensor) & set(support)
    ]
    # The rest is the same for any support set.
    any_task = adapting(**{name: tf.zeros(_some(x.shape), x.dtype) for name, x in support.items()})
    constants = [np.asarray(x) for x in any_task]

    def adapt(**inputs: Any) -> Any:
        learnt = adapting(**inputs)
        return {f"state_{k}": learnt[i] for k, i in enumerate(passed)}

    def predict(**inputs: Any) -> Any:
        every = dict(zip(state, map(tf.constant, constants), strict=True))
        for k, i in enumerate(passed):
            every[f"state_{i}"] = inputs[f"state_{k}"]
        return predicting(**{name: inputs[name] for name in queries}, **every)

    given = {f"state_{k}": state[f"state_{i}"] for k, i in enumerate(passed)}
    return {
        "adapt": tf.function(adapt, autograph=False).get_concrete_function(**support),
        "predict": tf.function(predict, autograph=False).get_concrete_function(**queries, **given),
    }


def model_function(model: keras.Model, example: Any) -> Any:
    """Return `query_x` → `predictions` of an adapted model, traced.

    Args:
        model: A built model.
        example: What it takes, symbolically.
    """
    queries = _named("query_x", example, None)

    def predict(**inputs: Any) -> Any:
        return predictions(model(_nested(example, list(inputs.values())), training=False))

    return traced(model, predict, queries)


def predictions(outputs: Any) -> dict[str, Any]:
    """Return a model's outputs by name."""
    flat = tf.nest.flatten(outputs)
    return dict(zip(_names("predictions", len(flat)), flat, strict=True))


def _check_sizes(learner: MetaLearner, ways: int | None, shots: int | None) -> None:
    for name, value in (("ways", ways), ("shots", shots)):
        if value is not None:
            check_count(name, value)
    if (ways is None) != (shots is None) or (ways is None and isinstance(learner, MAML)):
        raise ValueError(
            "`ways` and `shots` must both be given, or, for a learner without an inner loop, "
            f"neither. Received: ways={ways}, shots={shots} for a {type(learner).__name__}"
        )
    width = learner._classes() if isinstance(learner, MAML) else None
    if width is not None and ways is not None and ways > width:
        raise ValueError(
            f"`ways` must be at most the number of outputs of the model, which is {width}. "
            f"Received: ways={ways}"
        )


def _labels(learner: MetaLearner) -> Any:
    """Return what a support set's labels are, symbolically: class numbers, or targets."""
    outputs = learner.model.compute_output_spec(learner.example)
    if isinstance(learner, MAML) and not isinstance(learner, ProtoMAML):
        if not learner._classes_are_outputs():
            return outputs
    return keras.KerasTensor((None,), dtype="int32")


def _named(name: str, example: Any, examples: int | None) -> dict[str, Any]:
    """Return a spec for each tensor of `example`, `[examples, ...]`, by its name."""
    flat = keras.tree.flatten(example)
    return {
        name: tf.TensorSpec([examples, *x.shape[1:]], x.dtype)
        for name, x in zip(_names(name, len(flat)), flat, strict=True)
    }


def _names(name: str, number: int) -> list[str]:
    return [name] if number == 1 else [f"{name}_{i}" for i in range(number)]


def _nested(example: Any, flat: list[Any]) -> Any:
    return keras.tree.pack_sequence_as(example, flat)


def _some(shape: Any) -> list[int]:
    return [1 if n is None else n for n in shape]


def _inputs_of(tensor: Any) -> set[str]:
    """Return the names of all operations, inputs among them, that a tensor is computed from."""
    seen: set[str] = set()
    left = [tensor.op]
    while left:
        op = left.pop()
        if op.name not in seen:
            seen.add(op.name)
            left += [x.op for x in op.inputs]
    return seen
