"""What an exported learner or model computes: checks in words around its own functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmeta.export.preprocessing import Preprocessing
from tfmeta.inputs import example_of
from tfmeta.kernels import avoided
from tfmeta.threshold import UNKNOWN, Threshold
from tfmeta.types import Nest, Tensor


def model_signatures(
    model: keras.Model,
    example: Any,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    unknown: Threshold | None = None,
) -> dict[str, Any]:
    """Return `serving_default(query_x)` of an adapted model, traced.

    Args:
        model: A built model of one input and one output.
        example: What it takes, symbolically.
        class_names: A name for each output.
        preprocessing: How images become what it takes.
        unknown: Which predictions are no answer.
    """
    names, given = check_names(class_names), _given(example, preprocessing)
    check_unknown(unknown, names)

    def predict(query_x: Nest) -> Any:
        x = _examples("query_x", query_x, example, preprocessing)
        return _answer(model(x, training=False), names, unknown)

    return {"serving_default": _traced(predict, query_x=given)}


def learner_signatures(
    learner: Any,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    unknown: Threshold | None = None,
) -> dict[str, Any]:
    """Return what a learner does with one task, traced without a task axis.

    `adapt(support_x, support_y)` gives named tensors, `predict(query_x, …)` takes them, and
    `adapt_and_predict(support_x, support_y, query_x)`, which is `serving_default`, does both.

    Args:
        learner: A built `tfmeta.MetaLearner` of one input and one output.
        class_names: A name for each class.
        preprocessing: How images become what the learner's model takes.
        unknown: Which predictions are no answer.
    """
    names, example = check_names(class_names), learner.example
    check_unknown(unknown, names)
    given, labels = _given(example, preprocessing), labels_of(learner)
    structure: list[Any] = []

    def adapt(support_x: Nest, support_y: Nest) -> Any:
        x = _examples("support_x", support_x, example, preprocessing)
        with tf.control_dependencies(_support_checks(learner, x, support_y, names)):
            x, y = tf.identity(x), tf.identity(support_y)
        state = learner.adapt_task(x, y, training=False)
        structure[:] = [tf.nest.map_structure(lambda _: None, state)]
        return learner.named_state(state)

    adapting = _traced(adapt, support_x=given, support_y=labels)

    def predict(query_x: Nest, **tensors: Any) -> Any:
        x = _examples("query_x", query_x, example, preprocessing)
        with tf.control_dependencies(_no_nan(tensors)):
            x = tf.identity(x)
        state = learner.state_of(tensors, structure[0])
        return _answer(learner.predict_task(state, x, training=False), names, unknown)

    predicting = _traced(predict, query_x=given, **adapting.structured_outputs)

    def adapt_and_predict(support_x: Nest, support_y: Nest, query_x: Nest) -> Any:
        return predicting(query_x=query_x, **adapting(support_x=support_x, support_y=support_y))

    both = _traced(adapt_and_predict, support_x=given, support_y=labels, query_x=given)
    return {
        "serving_default": both,
        "adapt_and_predict": both,
        "adapt": adapting,
        "predict": predicting,
    }


def example_of_built(name: str, model: keras.Model) -> Any:
    """Return what a built model takes, symbolically: a nest of `[n, ...]`.

    Args:
        name: The argument's name, for the error.
        model: A built model.

    Raises:
        ValueError: If the model does not say, as a subclassed one of several arguments.
    """
    if hasattr(model, "example"):
        return model.example
    if getattr(model, "inputs", None):
        return example_of(model, None)
    # A subclassed model remembers no more than a shape.
    shape = (model.get_build_config() or {}).get("input_shape")
    if shape is None:
        raise ValueError(
            f"`{name}` must be a model of one input. Received: a model "
            f"{model.name!r} of which no shape of one is known"
        )
    nested = keras.tree.map_shape_structure(lambda sizes: (None, *sizes), shape)
    floats = example_of(model, nested)
    leaves = keras.tree.flatten(floats)
    for dtype in (None, "int64", "string"):
        example = example_of(model, nested, [dtype] * len(leaves))
        try:
            model.compute_output_spec(example)
        except Exception:  # whatever an operation says of a type that it does not take
            continue
        return example
    return floats


def check_names(class_names: Sequence[str] | None) -> list[str] | None:
    """Return names of classes as a list.

    Raises:
        TypeError: If they are no strings.
        ValueError: If there are none, one stands there twice, or is not text that UTF-8 has.
    """
    if class_names is None:
        return None
    names = [class_names] if isinstance(class_names, str) else list(class_names)
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"`class_names` must be a sequence of strings. Received: class_names={class_names!r}"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise ValueError(
            "`class_names` must be different names, at least one. Received: "
            + (f"{twice[0]!r} {names.count(twice[0])} times" if twice else "none")
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"`class_names` must be text that UTF-8 has. Received: {name!r}"
            ) from error
    return [str(name) for name in names]


def check_unknown(unknown: Any, class_names: Sequence[str] | None) -> None:
    """Raise unless a threshold is one, or `None`, and its answer is not a class's name.

    Raises:
        TypeError: If it is something else.
        ValueError: If a class is called "unknown", too.
    """
    if unknown is None:
        return
    if not isinstance(unknown, Threshold):
        raise TypeError(
            "`unknown` must be a tfmeta.unknown.Threshold, as tfmeta.unknown.fit returns it. "
            f"Received: unknown={unknown!r}"
        )
    if class_names is not None and UNKNOWN in class_names:
        raise ValueError(
            f"No class may be called {UNKNOWN!r} where that is the answer for images of no class. "
            f"Received: {', '.join(map(repr, class_names))}"
        )


def refuse_several(what: str, tensors: Any) -> None:
    """Raise a `ValueError` if there is more than one input or output."""
    if keras.tree.is_nested(tensors):
        shapes = keras.tree.map_structure(lambda x: tuple(x.shape), tensors)
        raise ValueError(
            f"`export` is for models of {what}; of others adapt the learner, and give the adapted "
            f"model to Keras's own `adapted.export(path)`. Received: {shapes}"
        )


def labels_of(learner: Any) -> Any:
    """Return shape and type of the `support_y` of a learner of one output."""
    spec = learner.labels.spec
    if spec is None:
        refuse_several("one output", learner.outputs_of_model())
    return spec


def _traced(function: Any, **specs: Any) -> Any:
    named = {k: tf.TensorSpec(x.shape, x.dtype, name=k) for k, x in specs.items()}
    with avoided():
        return tf.function(function, autograph=False).get_concrete_function(**named)


def _given(example: Any, preprocessing: Preprocessing | None) -> Any:
    """Return what is given to an export for what the model takes."""
    refuse_several("one input", example)
    if preprocessing is None:
        return tf.TensorSpec([None, *example.shape[1:]], example.dtype)
    if not isinstance(preprocessing, Preprocessing):
        raise TypeError(
            "`preprocessing` must be a tfmeta.export.Preprocessing. Received: "
            f"preprocessing={preprocessing!r}"
        )
    given = tf.TensorSpec([None, None, None, None], tf.uint8)
    made = tf.function(preprocessing).get_concrete_function(given).structured_outputs.shape
    if not made.is_compatible_with(example.shape):
        raise ValueError(
            f"`preprocessing` must make what the model takes, {_shown(example.shape)}. Received: "
            f"one that makes {_shown(made)}, {preprocessing}"
        )
    return given


def _examples(name: str, x: Any, example: Any, preprocessing: Preprocessing | None) -> Any:
    """Return examples as the model takes them, or fail with words."""
    given = tf.shape(x)
    if preprocessing is not None:
        fit = _has_shape(x, [None] * 4) & tf.reduce_any(given[-1:] == [1, 3])
        fit &= tf.reduce_all(given[1:] > 0)
        words = f"`{name}` must be uint8 images [n, height, width, channels] of 1 or 3 channels."
        with tf.control_dependencies([_must(fit, words, "Received: shape", given)]):
            x = tf.cast(preprocessing(tf.identity(x)), example.dtype)
    words = f"`{name}` must have the shape {_shown(example.shape)} that the model takes."
    fit = _has_shape(x, example.shape)
    checks = [_must(fit, words, "Received: shape", given)]
    # Images are whole numbers, and so finite.
    if preprocessing is None:
        checks += _finite(name, x)
    with tf.control_dependencies(checks):
        return tf.ensure_shape(tf.identity(x), [None, *example.shape[1:]])


def _has_shape(x: Any, shape: Any) -> Any:
    """Return whether `x` has this shape where it is called, where nobody else may have looked."""
    # The number of axes itself TensorFlow takes for granted, and would leave out a check of it:
    # what comes after the last size, which is none, is compared as well.
    none, free = -1, -2
    sizes = tf.constant([*(free if size is None else size for size in shape), none])
    given = tf.concat([tf.shape(x), tf.fill(sizes.shape, none)], 0)[: len(shape) + 1]
    return tf.reduce_all((given == sizes) | (sizes == free) & (given >= 0))


def _support_checks(learner: Any, x: Any, labels: Tensor, names: list[str] | None) -> list[Any]:
    """Return assertions that a support set is one: of one length, not 0, with labels that fit."""
    words = f"`support_y` must have the shape {_shown(labels.shape)}."
    shape = _must(_has_shape(labels, labels.shape), words, "Received: shape", tf.shape(labels))
    with tf.control_dependencies([shape]):
        n, m = tf.shape(x)[0], tf.shape(labels)[0]
    words = "`support_x` and `support_y` must have the same length, at least 1."
    lengths = _must((n == m) & (n > 0), words, "Received: lengths", n, "and", m)
    if not labels.dtype.is_integer:
        return [lengths, *_finite("support_y", labels)]
    with tf.control_dependencies([lengths]):
        labels = tf.identity(labels)
    fit, expected = learner.labels.fit(labels)
    received = ["Received: labels from", tf.reduce_min(labels), "to", tf.reduce_max(labels)]
    checks = [_must(fit, f"`support_y` must be {expected}.", *received)]
    if names is not None:
        words = f"`support_y` must be less than {len(names)}, the number of `class_names`."
        checks.append(_must(tf.reduce_max(labels) < len(names), words, *received))
    return checks


def _finite(name: str, x: Tensor) -> list[Any]:
    """Return an assertion that numbers, and their squares, which networks compute, are finite.

    Of a pooling or a ReLU the largest of NaN and 0 may be 0: what comes out would look like an
    answer. A sum of squares takes one pass, and is infinite or NaN where any of them is.
    """
    if not _floats(x):
        return []
    words = f"`{name}` must be finite, and so must the sum of its squares. Received: NaN, "
    return [_must(tf.math.is_finite(_squares(x)), words + "infinite or too large numbers")]


def _no_nan(tensors: dict[str, Tensor]) -> list[Any]:
    """Return an assertion that what was learnt has no NaN; it may have infinities, as masks do.

    It is one for all, which are many small ones in a network.
    """
    found = {name: tf.cast(_squares(x), tf.float32) for name, x in tensors.items() if _floats(x)}
    if not found:
        return []
    words = f"What `adapt` gives must be numbers. Received: NaN in one of `{'`, `'.join(found)}`"
    return [_must(~tf.math.is_nan(tf.add_n(list(found.values()))), words)]


def _floats(x: Tensor) -> bool:
    return bool(x.dtype.is_floating)


def _squares(x: Tensor) -> Tensor:
    return tf.nn.l2_loss(tf.cast(x, tf.float32) if x.dtype.size < 4 else x)


def _answer(
    predictions: Tensor, names: list[str] | None, unknown: Threshold | None
) -> dict[str, Any]:
    """Return the outputs of a signature."""
    refuse_several("one output", predictions)
    answer = {"predictions": predictions}
    outputs = predictions.shape[-1]
    if unknown is not None:
        answer["unknown"] = unknown(predictions)
    if names is None:
        return answer
    if len(predictions.shape) != 2 or outputs not in (None, len(names)):
        raise ValueError(
            "`class_names` must have a name for each output of the model, which returns "
            f"{_shown(predictions.shape)}. Received: {len(names)} names"
        )
    best = tf.gather(tf.constant(names), tf.argmax(predictions, axis=-1))
    if unknown is not None:
        best = tf.where(answer["unknown"], UNKNOWN, best)
    return {**answer, "labels": best}


def _must(condition: Any, *words: Any) -> Any:
    return tf.debugging.Assert(condition, list(words), summarize=8)


def _shown(shape: Any) -> str:
    return f"[{', '.join(['n', *('any' if s is None else str(s) for s in tuple(shape)[1:])])}]"
