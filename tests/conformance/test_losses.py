"""Every loss of `keras.losses`, each constructor argument off its default.

The right value is Keras's own for one task by itself (`reference.right`). Packed tasks, tasks in
turn, `fit`, `evaluate` and `adapt` must give it. What Keras adds turns this red: a loss without a
recipe, or an argument without another value.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.conformance.reference import RATE, right

TASKS, SUPPORT, QUERIES, FEATURES, OUTPUTS = 2, 5, 4, 3, 3


class Kind(NamedTuple):
    """What labels are like, and what a model for them ends in."""

    labels: Any
    activation: str


def _one_hot(r: Any, *shape: int) -> Any:
    return np.eye(OUTPUTS)[r.integers(OUTPUTS, size=shape)]


def _distribution(r: Any, *shape: int) -> Any:
    weights = r.random((*shape, OUTPUTS)) + 0.1
    return weights / weights.sum(-1, keepdims=True)


CLASSES = Kind(lambda r, *n: r.integers(OUTPUTS, size=n).astype("int32"), "softmax")
ONE_HOT = Kind(_one_hot, "softmax")
DISTRIBUTION = Kind(_distribution, "softmax")
BINARY = Kind(lambda r, *n: r.integers(2, size=(*n, OUTPUTS)).astype("float64"), "sigmoid")
SIGNS = Kind(lambda r, *n: 2.0 * r.integers(2, size=(*n, OUTPUTS)) - 1, "tanh")
NUMBERS = Kind(lambda r, *n: r.random((*n, OUTPUTS)) + 0.5, "softplus")
# Circle takes embeddings of the examples and the numbers of their classes.
EMBEDDED = Kind(lambda r, *n: r.integers(2, size=n).astype("int32"), "tanh")

KINDS = {
    "BinaryCrossentropy": BINARY,
    "BinaryFocalCrossentropy": BINARY,
    "CategoricalCrossentropy": ONE_HOT,
    "CategoricalFocalCrossentropy": ONE_HOT,
    "CategoricalGeneralizedCrossEntropy": CLASSES,
    "CategoricalHinge": ONE_HOT,
    "Circle": EMBEDDED,
    "CosineSimilarity": NUMBERS,
    "Dice": BINARY,
    "Hinge": SIGNS,
    "Huber": NUMBERS,
    "KLDivergence": DISTRIBUTION,
    "LogCosh": NUMBERS,
    "MeanAbsoluteError": NUMBERS,
    "MeanAbsolutePercentageError": NUMBERS,
    "MeanSquaredError": NUMBERS,
    "MeanSquaredLogarithmicError": NUMBERS,
    "Poisson": NUMBERS,
    "SparseCategoricalCrossentropy": CLASSES,
    "SquaredHinge": SIGNS,
    "Tversky": BINARY,
}

# Losses that are not here, and why.
APART = {
    "Loss": "the abstract base",
    "CTC": "labels are sequences, and it has no second derivative: test_ctc",
}

# Another value of each argument than its default, for some losses one of their own.
VALUES: dict[str, list[Any]] = {
    "alpha": [0.6],
    "apply_class_balancing": [True],
    "axis": [0],
    "beta": [0.7],
    "delta": [0.3],
    "from_logits": [True],
    "gamma": [1.5],
    "ignore_class": [0, -1, 255],
    "label_smoothing": [0.1],
    "margin": [0.3],
    "q": [0.7],
    "reduction": ["sum", "mean", "mean_with_sample_weight"],
    "remove_diagonal": [False],
}
VALUES_OF = {
    # Along the axis of classes; 0 would be none.
    ("CategoricalCrossentropy", "axis"): [1],
    ("CategoricalFocalCrossentropy", "axis"): [1],
    ("SparseCategoricalCrossentropy", "axis"): [1],
}
# Arguments that do not change what is computed in this precision.
SAME = {"name", "dtype"}

# The default of 80 makes one example's term all of the loss.
FIXED = {"Circle": {"gamma": 2.0}}

# Reductions that leave a number for each example: there is no loss of a task then.
REFUSED = ["none", None]

# What is no loss.
NO_LOSSES = {"deserialize", "get", "serialize"}
# Functions that need an argument more than labels and predictions.
ARGUMENTS = {"categorical_generalized_cross_entropy": {"q": 0.7}}


def _public(of: Any, kind: Any) -> dict[str, Any]:
    found = {name: getattr(of, name) for name in dir(of) if not name.startswith("_")}
    return {name: value for name, value in found.items() if kind(value)}


CLASSES_OF_LOSSES = _public(keras.losses, inspect.isclass)
FUNCTIONS = _public(keras.losses, inspect.isfunction)


def _cases() -> list[Any]:
    cases = []
    for name, cls in CLASSES_OF_LOSSES.items():
        if name in APART:
            continue
        cases.append((name, {}))
        for argument in list(inspect.signature(cls).parameters):
            if argument not in SAME:
                others = VALUES_OF.get((name, argument)) or VALUES.get(argument, [])
                cases += [(name, {argument: value}) for value in others]
    return cases


CASES = _cases()


# A reduction is Keras's, whatever the loss: it is tried always for a loss of each kind, and in the
# long run for all.
REDUCED = {
    *("BinaryCrossentropy", "CategoricalCrossentropy", "CosineSimilarity", "Dice"),
    *("MeanSquaredError", "SparseCategoricalCrossentropy"),
}


def _often(case: Any) -> Any:
    name, arguments = case
    slow = "reduction" in arguments and name not in REDUCED
    return pytest.param(case, id=_id(case), marks=pytest.mark.slow if slow else [])


def _id(case: Any) -> str:
    name, arguments = case
    return "-".join([name, *(f"{k}={v}" for k, v in arguments.items())])


def test_all_of_keras_is_here() -> None:
    assert set(CLASSES_OF_LOSSES) == KINDS.keys() | APART.keys()
    for name, cls in CLASSES_OF_LOSSES.items():
        for argument in inspect.signature(cls).parameters:
            assert name in APART or argument in VALUES.keys() | SAME, (name, argument)
    wrapped = {name.replace("_", "") for name in FUNCTIONS.keys() - NO_LOSSES}
    assert wrapped == {name.lower() for name in CLASSES_OF_LOSSES} - {"loss"}


class Task(NamedTuple):
    """A model, and a meta-batch of two unlike tasks for it."""

    model: keras.Model
    inputs: dict[str, Any]
    targets: Any


def tasks_of(kind: Kind, *, logits: bool = False, ignored: Any = None, steps: int = 0) -> Task:
    """Return two tasks, the second with larger features and other labels."""
    keras.utils.set_random_seed(1)
    r = np.random.default_rng(0)
    shape = (steps,) if steps else ()
    x = (
        r.normal(size=(TASKS, SUPPORT + QUERIES, *shape, FEATURES)) * [[[1.0]], [[2.0]]]
        if not (steps)
        else r.normal(size=(TASKS, SUPPORT + QUERIES, *shape, FEATURES))
    )
    y = kind.labels(r, TASKS, SUPPORT + QUERIES, *shape)
    if kind is CLASSES and ignored is not None:
        # In one task more than in the other, at different places.
        y[0, :2] = y[0, -3:-1] = y[1, 1] = ignored
    dense = keras.layers.Dense(OUTPUTS, activation=None if logits else kind.activation)
    model = keras.Sequential([keras.Input((*shape, FEATURES)), dense])
    inputs = {"support_x": x[:, :SUPPORT], "support_y": y[:, :SUPPORT], "query_x": x[:, SUPPORT:]}
    return Task(model, inputs, y[:, SUPPORT:])


def check(
    task: Task,
    loss: Any,
    object_of_loss: Any,
    *,
    sample_weight: Any = None,
    summed: bool = False,
    axes: Any = ("packed", "loop"),
    eagerly: bool = True,
) -> None:
    """Compare packed tasks and tasks in turn with Keras's own numbers."""
    expected = right(
        task.model,
        object_of_loss,
        task.inputs,
        task.targets,
        sample_weight=sample_weight,
        summed=summed,
    )
    start = task.model.get_weights()
    total = expected.losses.sum() if summed else expected.losses.mean()
    for axis in axes:
        task.model.set_weights(start)
        learner = tfmeta.MAML(task.model, RATE, task_axis=axis)
        learner.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=eagerly, jit_compile=False)
        scored = learner.test_on_batch(task.inputs, task.targets, sample_weight)
        trained = learner.train_on_batch(task.inputs, task.targets, sample_weight)
        assert float(scored) == pytest.approx(total, rel=1e-6), f"evaluate, {axis}"
        assert float(trained) == pytest.approx(total, rel=1e-6), f"fit, {axis}"
        for old, new, gradient in zip(
            start, task.model.get_weights(), expected.gradients, strict=True
        ):
            np.testing.assert_allclose(old - new, gradient, rtol=1e-6, atol=1e-9, err_msg=axis)
    task.model.set_weights(start)
    adapted = learner.adapt(task.inputs["support_x"][1], task.inputs["support_y"][1])
    for found, weight in zip(adapted.get_weights(), expected.adapted[1], strict=True):
        np.testing.assert_allclose(found, weight, rtol=1e-6, atol=1e-9)


def _task_of(name: str, arguments: Any) -> Task:
    ignored = arguments.get("ignore_class")
    return tasks_of(KINDS[name], logits=bool(arguments.get("from_logits")), ignored=ignored)


@pytest.mark.parametrize("case", [_often(case) for case in CASES])
def test_losses(case: Any) -> None:
    name, arguments = case
    loss = CLASSES_OF_LOSSES[name](**{**FIXED.get(name, {}), **arguments})
    summed = arguments.get("reduction") == "sum"
    check(_task_of(name, arguments), loss, loss, summed=summed)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_weights_of_queries(name: str) -> None:
    if name in ("Dice", "Tversky"):
        pytest.skip("the loss has one value for all examples, which weights of each do not fit")
    weights = np.random.default_rng(1).random((TASKS, QUERIES)) * 3
    weights[1, 0] = 0.0
    for reduction in ("sum_over_batch_size", "mean_with_sample_weight")[: 1 + (name == "Huber")]:
        loss = CLASSES_OF_LOSSES[name](**FIXED.get(name, {}), reduction=reduction)
        check(_task_of(name, {}), loss, loss, sample_weight=weights)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=_id)
def test_losses_in_graphs(case: Any) -> None:
    name, arguments = case
    loss = CLASSES_OF_LOSSES[name](**{**FIXED.get(name, {}), **arguments})
    summed = arguments.get("reduction") == "sum"
    check(_task_of(name, arguments), loss, loss, summed=summed, eagerly=False)


@pytest.mark.parametrize("function", sorted(FUNCTIONS.keys() - NO_LOSSES - {"ctc"}))
def test_functions_and_their_names(function: str) -> None:
    cls = {name.lower(): name for name in KINDS}[function.replace("_", "")]
    given = FUNCTIONS[function]
    if function in ARGUMENTS:
        given = functools.partial(given, **ARGUMENTS[function])
    if function == "circle":
        given = functools.partial(given, gamma=2.0)
    loss = CLASSES_OF_LOSSES[cls](**{**FIXED.get(cls, {}), **ARGUMENTS.get(function, {})})
    masks = function == "circle"  # the function's mask is heeded as the class's is
    check(_task_of(cls, {}), given, loss, axes=("packed", "loop") if not masks else ("loop",))
    if function not in ARGUMENTS and function != "circle":
        check(_task_of(cls, {}), function, loss, axes=("packed",))


@pytest.mark.parametrize("reduction", REFUSED)
def test_a_loss_for_each_example_is_refused(reduction: Any) -> None:
    task = tasks_of(NUMBERS)
    learner = tfmeta.MAML(task.model, RATE)
    learner.compile("sgd", keras.losses.MeanSquaredError(reduction=reduction), run_eagerly=True)
    with pytest.raises(ValueError, match="`loss` must average over examples or sum over them"):
        learner.train_on_batch(task.inputs, task.targets)


# Arguments that Keras's own configuration of a loss leaves out: a file does not have them.
NOT_SAVED = {("CosineSimilarity", "axis"), ("Huber", "delta")}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=_id)
def test_saved_and_exported(case: Any, tmp_path: Path) -> None:
    name, arguments = case
    loss = CLASSES_OF_LOSSES[name](**{**FIXED.get(name, {}), **arguments})
    task = _task_of(name, arguments)
    learner = tfmeta.MAML(task.model, RATE)
    learner.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
    scored = float(learner.test_on_batch(task.inputs, task.targets))
    predicted = np.asarray(learner.predict_on_batch(task.inputs))
    if not any((name, argument) in NOT_SAVED for argument in arguments):
        learner.save(tmp_path / "learner.keras")
        loaded = keras.models.load_model(tmp_path / "learner.keras")
        assert float(loaded.test_on_batch(task.inputs, task.targets)) == pytest.approx(scored)
    learner.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    called = exported.signatures["serving_default"]
    for t in range(TASKS):
        given = {key: tf.constant(part[t]) for key, part in task.inputs.items()}
        labels = called.structured_input_signature[1]["support_y"]
        given["support_y"] = tf.cast(given["support_y"], labels.dtype)
        found = called(**given)["predictions"]
        np.testing.assert_allclose(found, predicted[t], rtol=1e-6, atol=1e-9)
