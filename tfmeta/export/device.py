"""What is computed on a device: graphs of constants and inputs, without checks in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.checks import check_count
from tfmeta.export.builtin_gradients import builtin_gradients
from tfmeta.export.serving import example_of_built, labels_of, refuse_several
from tfmeta.export.sums import sums_by_axis
from tfmeta.foreign.derivatives import exact_moments
from tfmeta.inputs import fixed_ways
from tfmeta.kernels import avoided
from tfmeta.types import Nest, Tensor


def checked_example(name: str, model: keras.Model) -> Any:
    """Return what an adapted model, or a learner's model, takes, symbolically.

    Args:
        name: The argument's name, for the error.
        model: A learner or any other model.

    Raises:
        ValueError: If it is not built.
    """
    if not model.built:
        raise ValueError(
            f"`{name}` must be built: call it once, or for a learner `fit` or `adapt`. "
            f"Received: a {type(model).__name__} {model.name!r} that is not"
        )
    return example_of_built(name, model)


def model_function(model: keras.Model, example: Any) -> Any:
    """Return `query_x` → `predictions` of an adapted model, traced.

    Args:
        model: A built model of one input and one output.
        example: What it takes, symbolically.
    """

    def predict(query_x: Nest) -> Any:
        return _answer(model(query_x, training=False))

    return _traced(model, predict, query_x=_given(example, None))


def learner_functions(learner: Any, ways: int | None, shots: int | None) -> dict[str, Any]:
    """Return `adapt` and `predict` of a learner, traced.

    Args:
        learner: A built `tfmeta.MetaLearner` of one input and one output.
        ways: Classes of a task; `None` where that may vary.
        shots: Examples of each in a support set; `None` where that may vary.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is missing or does not fit the learner.
    """
    _check_sizes(learner, ways, shots)
    examples = None if ways is None or shots is None else ways * shots
    labels = labels_of(learner)
    structure: list[Any] = []

    def adapt(support_x: Nest, support_y: Nest) -> Any:
        with fixed_ways(ways):
            state = learner.adapt_task(support_x, support_y, training=False)
        structure[:] = [tf.nest.map_structure(lambda _: None, state)]
        return learner.named_state(state)

    def predict(query_x: Nest, **tensors: Any) -> Any:
        state = learner.state_of(tensors, structure[0])
        return _answer(learner.predict_task(state, query_x, training=False))

    adapting = _traced(
        learner,
        adapt,
        support_x=_given(learner.example, examples),
        support_y=_given(labels, examples),
    )
    queries = _given(learner.example, None)
    predicting = _traced(learner, predict, query_x=queries, **adapting.structured_outputs)
    return {"adapt": adapting, "predict": predicting}


def _traced(model: keras.Model, function: Callable[..., Any], **specs: Any) -> Any:
    """Trace a function of tensors with the weights of `model` as constants.

    LiteRT's converter makes constants of variables too, but not of all; those that it leaves are
    never set.
    """
    values = [(v, np.asarray(v)) for v in (*model.variables, *model.metrics_variables)]

    def constant(**inputs: Any) -> Any:
        mapping = [(variable, tf.constant(value)) for variable, value in values]
        with (
            avoided(),
            builtin_gradients(),
            exact_moments(),
            sums_by_axis(),
            keras.StatelessScope(state_mapping=mapping),
        ):
            return function(**inputs)

    named = {k: tf.TensorSpec(x.shape, x.dtype, name=k) for k, x in specs.items()}
    return tf.function(constant, autograph=False).get_concrete_function(**named)


def _check_sizes(learner: Any, ways: int | None, shots: int | None) -> None:
    for name, value in (("ways", ways), ("shots", shots)):
        if value is not None:
            check_count(name, value)
    if (ways is None) != (shots is None) or (ways is None and hasattr(learner, "inner_steps")):
        raise ValueError(
            "`ways` and `shots` must both be given; only a learner without an inner loop may do "
            f"without both. Received: ways={ways}, shots={shots} for a {type(learner).__name__}"
        )
    if ways is not None and labels_of(learner).dtype.is_integer:
        fit, expected = learner.labels.fit(tf.range(ways, dtype=tf.int64))
        if not fit:
            raise ValueError(
                f"`ways` must be such that labels are {expected}. Received: ways={ways}"
            )


def _given(example: Any, examples: int | None) -> Any:
    refuse_several("one input", example)
    return tf.TensorSpec([examples, *example.shape[1:]], example.dtype)


def _answer(predictions: Tensor) -> dict[str, Any]:
    refuse_several("one output", predictions)
    return {"predictions": predictions}
