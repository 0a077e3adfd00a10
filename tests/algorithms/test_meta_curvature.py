"""Meta-Curvature against NumPy: gradients are multiplied by a matrix along each axis."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.algorithms.test_maml import assert_directional_derivatives

RATE, TASKS = 0.1, 3
RNG = np.random.default_rng(0)
X, QUERY_X = RNG.normal(size=(2, TASKS, 5, 4, 4, 2))
Y, QUERY_Y = RNG.normal(size=(2, TASKS, 5, 1))
INPUTS = {"support_x": X, "support_y": Y, "query_x": QUERY_X}


def learner_of(**options):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(3, 2), keras.layers.Flatten(), keras.layers.Dense(1)]
    learner = tfmeta.MetaCurvature(
        keras.Sequential([keras.Input((4, 4, 2)), *layers]), RATE, 1, **options
    )
    learner.compile("sgd", "mean_squared_error")
    learner.check_inputs(INPUTS)
    return learner


def with_matrices(learner):
    for matrix in (m for matrices in learner.matrices for m in matrices):
        matrix.assign(RNG.normal(size=matrix.shape))
    return learner


def test_starts_as_maml(float64):
    learner = learner_of()
    maml = tfmeta.MAML(learner.model, RATE, 1)
    maml.compile("sgd", "mean_squared_error")
    expected = maml.predict_on_batch(INPUTS)
    np.testing.assert_allclose(learner.predict_on_batch(INPUTS), expected, rtol=1e-10)
    shapes = [[tuple(m.shape) for m in matrices] for matrices in learner.matrices]
    # A kernel's axes of space are one: 2·2 places, 2 channels, 3 filters.
    assert shapes == [[(4, 4), (2, 2), (3, 3)], [(3, 3)], [(27, 27), (1, 1)], [(1, 1)]]


@pytest.mark.parametrize("axis", ["loop", "packed"])
def test_a_step_by_hand(float64, axis):
    learner = with_matrices(learner_of(task_axis=axis))
    model = learner.model
    start = [v.numpy() for v in model.trainable_variables]
    outputs = learner.predict_on_batch(INPUTS)
    for task in range(TASKS):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X[task]) - Y[task]) ** 2)
        gradients = [g.numpy() for g in tape.gradient(loss, model.trainable_variables)]
        space, channels, filters = (m.numpy() for m in learner.matrices[0])
        kernel = gradients[0].reshape(4, 2, 3)
        turned = [
            np.einsum("as,bi,co,sio->abc", space, channels, filters, kernel).reshape(2, 2, 2, 3),
            learner.matrices[1][0].numpy() @ gradients[1],
            learner.matrices[2][0].numpy() @ gradients[2] @ learner.matrices[2][1].numpy().T,
            learner.matrices[3][0].numpy() @ gradients[3],
        ]
        for v, before, g in zip(model.trainable_variables, start, turned, strict=True):
            v.assign(before - RATE * g)
        np.testing.assert_allclose(outputs[task], model(QUERY_X[task]), rtol=1e-8, atol=1e-10)
        for v, before in zip(model.trainable_variables, start, strict=True):
            v.assign(before)


@pytest.mark.parametrize("axis", ["loop", "packed"])
def test_outer_gradient_reaches_the_matrices(float64, axis):
    learner = with_matrices(learner_of(task_axis=axis))
    task = {name: tf.constant(x[0]) for name, x in INPUTS.items()}
    query_y = tf.constant(QUERY_Y[0])
    _, gradients, _ = learner.task_gradients(task, query_y)
    assert_directional_derivatives(
        learner.trainable_variables,
        gradients,
        tf.function(lambda: learner.task_loss(task, query_y)[0]),
    )


def test_files(tmp_path):
    learner = with_matrices(learner_of())
    inputs = {name: x.astype("float32") for name, x in INPUTS.items()}
    expected = learner.predict_on_batch(inputs)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    np.testing.assert_allclose(loaded.predict_on_batch(inputs), expected, rtol=1e-5)
