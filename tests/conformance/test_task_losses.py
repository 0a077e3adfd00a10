"""One loss of a task: with masks, weights, several outputs and tasks of unequal size.

The right value is Keras's own loss of each task's own examples; of a meta-batch, the mean.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.conformance.reference import RATE, right
from tests.conformance.test_losses import CLASSES, NUMBERS, check, tasks_of
from tests.learners import plain
from tests.rows import rows

SPARSE = keras.losses.SparseCategoricalCrossentropy


def _data(tasks: int = 3, support: int = 6, queries: int = 4) -> tuple[dict[str, Any], Any]:
    r = np.random.default_rng(0)
    x = r.normal(size=(tasks, support + queries, 4))
    y = np.stack([r.permutation(np.arange(support + queries) % 3) for _ in range(tasks)])
    y[:, :3] = [0, 1, 2]
    y = y.astype("int32")
    inputs = {"support_x": x[:, :support], "support_y": y[:, :support], "query_x": x[:, support:]}
    return inputs, y[:, support:]


def _masked(inputs: Any) -> Any:
    """Return the tasks with other numbers of queries and of support examples."""
    queries = np.ones(inputs["query_x"].shape[:2], bool)
    queries[1, 1:] = queries[2, 3:] = False
    support = np.ones(inputs["support_x"].shape[:2], bool)
    support[0, 5:] = False
    return {**inputs, "support_mask": support, "query_mask": queries}


def _network(outputs: int | None = 3) -> keras.Model:
    keras.utils.set_random_seed(3)
    head = [] if outputs is None else [keras.layers.Dense(outputs)]
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "tanh"), *head])


LEARNERS = {
    **plain(_network),
    "MAML in turn": lambda: tfmeta.MAML(_network(), 0.1, 2, task_axis="loop"),
    "MAML in chunks": lambda: tfmeta.MAML(_network(), 0.1, 2, task_chunk=2),
}


# Kin of one that is checked each time.
SLOW = {
    *("FOMAML", "MetaSGD", "ANIL", "BOIL", "MetaCurvature", "ImplicitMAML"),
    *("PrototypicalNetwork-cosine", "MAML in chunks"),
    *("BayesianMAML", "AmortizedBayesianMAML"),
}


@pytest.mark.parametrize("name", rows(LEARNERS, SLOW))
def test_evaluate_is_the_mean_over_tasks_of_the_loss_of_predictions(name: str) -> None:
    learner = LEARNERS[name]()
    loss = SPARSE(from_logits=True)
    learner.compile("sgd", loss, metrics=["accuracy"], jit_compile=False)
    inputs, targets = _data()
    for given in (inputs, _masked(inputs)):
        keras.utils.set_random_seed(5)
        scores = learner.test_on_batch(given, targets, return_dict=True)
        keras.utils.set_random_seed(5)
        predictions = learner.predict_on_batch(given)
        there = given.get("query_mask", np.ones(targets.shape, bool))
        tasks = [
            (targets[t][there[t]], np.asarray(predictions)[t][there[t]])
            for t in range(len(targets))
        ]
        losses = [float(loss(y, p)) for y, p in tasks]
        right_ones = np.concatenate([p.argmax(-1) == y for y, p in tasks])
        assert float(scores["loss"]) == pytest.approx(np.mean(losses), rel=1e-6)
        assert float(scores["accuracy"]) == pytest.approx(right_ones.mean())


@pytest.mark.parametrize("axis", ["packed", "loop"])
def test_class_weights(axis: str) -> None:
    inputs, targets = _data()
    weights = {0: 0.5, 2: 4.0}
    of_queries = np.vectorize(lambda c: weights.get(c, 1.0))(targets)
    one_hot = np.eye(3)[targets]
    several: Any = (
        (SPARSE(from_logits=True), inputs, targets),
        (
            keras.losses.CategoricalCrossentropy(from_logits=True),
            {**inputs, "support_y": np.eye(3)[inputs["support_y"]]},
            one_hot,
        ),
    )
    for loss, given, labels in several:
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        expected = right(model, loss, given, labels, sample_weight=of_queries).losses.mean()
        learner = tfmeta.MAML(model, RATE, task_axis=axis)
        learner.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
        arrays = learner.fit(given, labels, batch_size=3, class_weight=weights, verbose=0)
        data = tf.data.Dataset.from_tensors((given, labels))
        streamed = learner.fit(data, class_weight=weights, verbose=0)
        for history in (arrays.history, streamed.history):
            assert history["loss"][0] == pytest.approx(expected, rel=1e-6)
        # The weights are those of one `fit`.
        plain = learner.fit(given, labels, batch_size=3, verbose=0).history["loss"][0]
        assert plain == pytest.approx(right(model, loss, given, labels).losses.mean(), rel=1e-6)


def test_class_weights_that_do_not_fit() -> None:
    inputs, targets = _data()
    learner = tfmeta.MAML(_network(), 0.1)
    learner.compile("sgd", SPARSE(from_logits=True))
    with pytest.raises(TypeError, match="`class_weight` must be a dict of class numbers"):
        learner.fit(inputs, targets, class_weight=[1.0, 2.0], verbose=0)
    with pytest.raises(TypeError, match=r"Received: class_weight=\{0: -1\.0\}"):
        learner.fit(inputs, targets, class_weight={0: -1.0}, verbose=0)
    with pytest.raises(ValueError, match="`class_weight` and `sample_weight` cannot both"):
        learner.fit(inputs, targets, sample_weight=targets, class_weight={0: 2.0}, verbose=0)
    with pytest.raises(ValueError, match="`class_weight` must be given with targets of one output"):
        learner.fit((pair for pair in [(inputs, targets)]), class_weight={0: 2.0}, verbose=0)


def test_masks_of_time_steps() -> None:
    keras.utils.set_random_seed(0)
    r = np.random.default_rng(0)
    x = r.integers(1, 7, size=(2, 10, 6)).astype("int32")
    # In one task more time steps are missing than in the other.
    x[:, :, 4:] = 0
    x[1, ::2, 2:] = 0
    y = r.integers(3, size=x.shape).astype("int32")
    inputs = {"support_x": x[:, :6], "support_y": y[:, :6], "query_x": x[:, 6:]}
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            keras.layers.Embedding(7, 4, mask_zero=True),
            keras.layers.SimpleRNN(5, return_sequences=True),
            keras.layers.Dense(3),
        ]
    )
    loss = SPARSE(from_logits=True)
    learner = tfmeta.MAML(model, RATE, task_axis="loop")
    learner.compile(
        keras.optimizers.SGD(0.0), loss, weighted_metrics=["accuracy"], jit_compile=False
    )
    fitted = learner.fit(inputs, y[:, 6:], batch_size=2, verbose=0).history
    scored = learner.evaluate(inputs, y[:, 6:], batch_size=2, verbose=0, return_dict=True)
    losses, hits, there = [], 0.0, 0.0
    for t in range(2):
        adapted = learner.adapt(inputs["support_x"][t], inputs["support_y"][t])
        adapted.compile(loss=loss)
        losses.append(adapted.evaluate(inputs["query_x"][t], y[t, 6:], verbose=0))
        known = inputs["query_x"][t] != 0
        answers = adapted.predict(inputs["query_x"][t], verbose=0).argmax(-1)
        hits, there = hits + (answers == y[t, 6:])[known].sum(), there + known.sum()
    for found in (fitted["loss"][0], scored["loss"]):
        assert found == pytest.approx(np.mean(losses), rel=1e-6)
    for found in (fitted["accuracy"][0], scored["accuracy"]):
        assert found == pytest.approx(hits / there)


@pytest.mark.parametrize(
    ("axis", "make"),
    rows(
        [("packed", "MAML"), ("loop", "MAML++"), ("loop", "MAML"), ("packed", "MAML++")],
        [("loop", "MAML"), ("packed", "MAML++"), ("loop", "MAML++")],
    ),
)
def test_several_outputs(axis: str, make: str) -> None:
    # Three tasks in chunks of two: the fourth only fills up, and must not count in the logs.
    inputs, targets = _data()
    numbers = np.random.default_rng(1).normal(size=(3, 10, 2))
    x = keras.Input((4,))
    keras.utils.set_random_seed(2)
    model = keras.Model(
        x, {"a": keras.layers.Dense(3, name="a")(x), "b": keras.layers.Dense(2, name="b")(x)}
    )
    losses = {"a": SPARSE(from_logits=True), "b": keras.losses.Huber(0.3)}
    weights = {"a": 1.0, "b": 0.25}
    given = {**inputs, "support_y": {"a": inputs["support_y"], "b": numbers[:, :6]}}
    labels = {"a": targets, "b": numbers[:, 6:]}
    options: dict[str, Any] = {"task_axis": axis, "task_chunk": 2}
    if make == "MAML":
        learner = tfmeta.MAML(model, RATE, 2, **options)
    else:
        learner = tfmeta.MAMLPlusPlus(model, RATE, 2, learned_rates=None, **options)
    learner.compile(keras.optimizers.SGD(0.0), losses, weights, jit_compile=False)
    fitted = learner.fit(given, labels, batch_size=3, verbose=0).history
    scored = learner.evaluate(given, labels, batch_size=3, verbose=0, return_dict=True)
    predictions = learner.predict(given, batch_size=3, verbose=0)
    each = {
        name: np.mean(
            [float(losses[name](labels[name][t], predictions[name][t])) for t in range(3)]
        )
        for name in losses
    }
    for name, value in each.items():
        assert fitted[f"{name}_loss"][0] == pytest.approx(value, rel=1e-6)
        assert scored[f"{name}_loss"] == pytest.approx(value, rel=1e-6)
    total = sum(weights[name] * each[name] for name in each)
    assert scored["loss"] == pytest.approx(total, rel=1e-6)
    if make == "MAML":
        assert fitted["loss"][0] == pytest.approx(total, rel=1e-6)


def test_own_losses() -> None:
    def columns(y: Any, p: Any) -> Any:
        error = y[:, 0] - p[:, 0]
        return tf.maximum(0.1 * error, -0.9 * error) + p[:, 1] ** 2

    class AcrossExamples(keras.losses.Loss):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return keras.ops.mean(y_pred) ** 2 + keras.ops.var(y_true - y_pred)

    class Weighted(keras.losses.MeanSquaredError):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return super().call(y_true, y_pred) * keras.ops.max(y_pred)

    for given, loss in (
        (columns, lambda y, p, w=None: tf.reduce_mean(columns(y, p))),
        *((made, made) for made in (AcrossExamples(), Weighted())),
    ):
        check(tasks_of(NUMBERS), given, loss)


def test_losses_of_time_steps() -> None:
    for loss in (SPARSE(), SPARSE(ignore_class=1)):
        check(tasks_of(CLASSES, steps=2), loss, loss)


@pytest.mark.parametrize("axis", ["packed", "loop"])
def test_penalties_count_in_evaluation_too(axis: str) -> None:
    # Of weights and of activities, as in training: only tasks in turn can have them.
    inputs, targets = _data()
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                3, kernel_regularizer=keras.regularizers.L2(0.3), activity_regularizer="l2"
            ),
        ]
    )
    learner = tfmeta.MAML(model, RATE, task_axis="auto" if axis == "packed" else axis)
    learner.compile(keras.optimizers.SGD(0.0), SPARSE(from_logits=True), jit_compile=False)
    data = {"x": inputs, "y": targets, "batch_size": 3, "verbose": 0}
    assert learner.evaluate(**data) == pytest.approx(learner.fit(**data).history["loss"][0])


@pytest.mark.filterwarnings("ignore:`loss` takes logits", "ignore:.*received `from_logits=True`")
@pytest.mark.parametrize("axis", ["packed", "loop"])
@pytest.mark.parametrize("eagerly", [True, False])
def test_logits_behind_an_activation(axis: str, eagerly: bool) -> None:
    # Keras computes with what the softmax was given, whatever `from_logits` says.
    task = tasks_of(CLASSES)
    for from_logits in (True, False):
        loss = SPARSE(from_logits=from_logits)
        check(task, loss, loss, axes=[axis], eagerly=eagerly)


@pytest.mark.slow
def test_ctc() -> None:
    r = np.random.default_rng(0)
    x = r.normal(size=(2, 9, 6, 3))
    y = r.integers(1, 5, size=(2, 9, 2)).astype("int32")
    inputs = {"support_x": x[:, :5], "support_y": y[:, :5], "query_x": x[:, 5:]}
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 3)), keras.layers.Dense(5)])
    expected = right(model, keras.losses.CTC(), inputs, y[:, 5:], first_order=True)
    start = model.get_weights()
    for axis in ("packed", "loop"):
        model.set_weights(start)
        learner = tfmeta.FOMAML(model, RATE, task_axis=axis)
        learner.compile(keras.optimizers.SGD(1.0), keras.losses.CTC(), jit_compile=False)
        # TensorFlow computes this loss in single precision.
        assert float(learner.test_on_batch(inputs, y[:, 5:])) == pytest.approx(
            expected.losses.mean(), rel=1e-5
        )
        learner.train_on_batch(inputs, y[:, 5:])
        for old, new, gradient in zip(start, model.get_weights(), expected.gradients, strict=True):
            np.testing.assert_allclose(old - new, gradient, rtol=1e-4, atol=1e-5)
