"""CAVIA against NumPy: context parameters adapt from 0, and the outer loop trains all else."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.algorithms.test_maml import assert_directional_derivatives

UNITS, RATE = 2, 0.3
RNG = np.random.default_rng(0)
X, QUERY_X = RNG.normal(size=(2, 4, 6, 3))
Y, QUERY_Y = RNG.normal(size=(2, 4, 6, 1))
INPUTS = {"support_x": X, "support_y": Y, "query_x": QUERY_X}


def learner_of(**options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,)), tfmeta.layers.Context(UNITS, name="task"), keras.layers.Dense(1)]
    )
    learner = tfmeta.CAVIA(model, RATE, 2, **options)
    learner.compile(keras.optimizers.SGD(0.1), "mean_squared_error")
    return learner


def predicted(kernel, bias, task):
    """Two steps on the context alone, by hand: the loss is `mean (x W + φ V + b − y)²`."""
    weights, of_context = kernel[:3], kernel[3:]
    context = np.zeros(UNITS)
    for _ in range(2):
        error = X[task] @ weights + context @ of_context + bias - Y[task]
        context = context - RATE * 2 * error.mean() * of_context[:, 0]
    return QUERY_X[task] @ weights + context @ of_context + bias


@pytest.mark.parametrize("axis", ["loop", "packed"])
def test_two_steps_by_hand(float64, axis):
    learner = learner_of(task_axis=axis)
    outputs = learner.predict_on_batch(INPUTS)
    kernel, bias = (w.numpy() for w in learner.model.layers[1].weights)
    for task in range(4):
        np.testing.assert_allclose(outputs[task], predicted(kernel, bias, task), rtol=1e-10)
    adapted = learner.adapt(X[0], Y[0])
    np.testing.assert_allclose(adapted.predict_on_batch(QUERY_X[0]), outputs[0], rtol=1e-10)


def test_outer_gradient_and_what_is_not_trained(float64):
    learner = learner_of()
    learner.check_inputs(INPUTS)
    task = {name: tf.constant(x[0]) for name, x in INPUTS.items()}
    _, gradients, _ = learner.task_gradients(task, tf.constant(QUERY_Y[0]))
    context = learner.model.layers[0].context
    of_context = dict(zip(map(id, learner.trainable_variables), gradients, strict=True))
    assert not np.any(of_context[id(context)])
    others = [(v, g) for v, g in zip(learner.trainable_variables, gradients, strict=True)]
    others = [(v, g) for v, g in others if v is not context]
    assert_directional_derivatives(
        [v for v, _ in others],
        [g for _, g in others],
        tf.function(lambda: learner.task_loss(task, tf.constant(QUERY_Y[0]))[0]),
    )
    learner.fit(INPUTS, QUERY_Y, epochs=2, verbose=0)
    assert not np.any(context)


def test_files(tmp_path):
    learner = learner_of()
    inputs = {name: x.astype("float32") for name, x in INPUTS.items()}
    expected = learner.predict_on_batch(inputs)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    np.testing.assert_allclose(loaded.predict_on_batch(inputs), expected, rtol=1e-5)
    learner.export(tmp_path / "exported")
    exported = tf.saved_model.load(tmp_path / "exported")
    one = {name: x[0] for name, x in inputs.items()}
    got = exported.adapt_and_predict(**one)["predictions"]
    np.testing.assert_allclose(got, expected[0], rtol=1e-5, atol=1e-6)
    task = exported.adapt(support_x=one["support_x"], support_y=one["support_y"])
    assert list(task) == ["task_context"]


def test_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="last")])
    with pytest.raises(ValueError, match=r"must have a tfmeta.layers.Context layer.*layers last"):
        tfmeta.CAVIA(model)
    with pytest.raises(TypeError, match="no argument `adapt_layers`"):
        tfmeta.CAVIA(learner_of().model, adapt_layers="dense")


def test_learns_tasks_that_differ_by_a_number():
    """Lines of one slope, each task at a height of its own: without context the loss stays at 1."""
    rng = np.random.default_rng(1)
    learner = learner_of()
    learner.optimizer.learning_rate = 0.05
    losses = []
    for _ in range(300):
        x = rng.normal(size=(4, 12, 3)).astype("float32")
        y = x.sum(-1, keepdims=True) + rng.normal(size=(4, 1, 1)).astype("float32")
        inputs = {"support_x": x[:, :6], "support_y": y[:, :6], "query_x": x[:, 6:]}
        losses.append(learner.train_on_batch(inputs, y[:, 6:]))
    assert np.mean(losses[-50:]) < 0.1
