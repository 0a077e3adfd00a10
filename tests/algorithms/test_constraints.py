"""Keras's constraints hold behind each inner step: projected gradient descent."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfmeta
from tests.algorithms.test_maml import assert_directional_derivatives

RATE, STEPS = 0.5, 3

CASES = {
    "MaxNorm": [{"max_value": 0.3}, {"max_value": 0.3, "axis": 1}],
    "MinMaxNorm": [{"min_value": 0.6, "max_value": 0.7, "rate": 0.5}, {"min_value": 1, "axis": 1}],
    "NonNeg": [{}],
    "UnitNorm": [{}, {"axis": 1}],
}


def constraints():
    # Each stands there under two names.
    kinds = {kind for _, kind in inspect.getmembers(keras.constraints, inspect.isclass)}
    for kind in sorted(kinds - {keras.constraints.Constraint}, key=lambda kind: kind.__name__):
        for i, kwargs in enumerate(CASES[kind.__name__]):  # one that Keras adds is missing there
            yield pytest.param(kind(**kwargs), id=f"{kind.__name__}{i}")


def model_with(constraint):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, "tanh", kernel_constraint=constraint, bias_constraint="max_norm"),
            layers.Dense(2, name="head"),
        ]
    )


def task():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(8, 4)), random.normal(size=(8, 2))
    return x[:5], y[:5], x[5:], y[5:]


def made(make, constraint, **options):
    learner = make(model_with(constraint), RATE, STEPS, task_axis="loop", **options)
    learner.compile(keras.optimizers.SGD(0.1), "mse")
    return learner


@pytest.mark.parametrize("constraint", list(constraints()))
def test_adapted_weights_are_those_of_keras(constraint, float64):
    x, y, *_ = task()
    expected = model_with(constraint)
    expected.compile(keras.optimizers.SGD(RATE), "mse")
    for _ in range(STEPS):
        expected.train_on_batch(x, y)
    adapted = made(tfmeta.MAML, constraint).adapt(x, y)
    for a, b in zip(adapted.weights, expected.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    kernel = adapted.layers[0].kernel
    if not isinstance(constraint, keras.constraints.MinMaxNorm):
        np.testing.assert_allclose(constraint(kernel), kernel, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (tfmeta.inner_optimizers.SGD(0.1, momentum=0.9), keras.optimizers.SGD(0.1, momentum=0.9)),
        (tfmeta.inner_optimizers.RMSprop(0.1), keras.optimizers.RMSprop(0.1)),
        (tfmeta.inner_optimizers.Adam(0.1), keras.optimizers.Adam(0.1)),
    ],
)
def test_constraints_stand_behind_any_rule(rule, optimizer):
    x, y = (part.astype("float32") for part in task()[:2])
    expected = model_with("non_neg")
    expected.compile(optimizer, "mse")
    for _ in range(STEPS):
        expected.train_on_batch(x, y)
    for make in (tfmeta.MAML, tfmeta.Reptile):
        adapted = made(make, "non_neg", inner_optimizer=rule).adapt(x, y)
        for a, b in zip(adapted.weights, expected.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        assert np.min(adapted.layers[0].kernel) >= 0


@pytest.mark.parametrize("constraint", list(constraints()))
def test_the_outer_gradient_goes_through_the_projection(constraint, float64):
    """Against central differences; the bias starts at zero, where norms have no slope."""
    learner = made(tfmeta.MAML, constraint)
    x, y, query_x, query_y = map(tf.constant, task())
    inputs = {"support_x": x, "support_y": y, "query_x": query_x}
    learner.build({name: (1, *part.shape) for name, part in inputs.items()})
    _, gradients, _ = learner.task_gradients(inputs, query_y)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    bias = learner.model.layers[0].bias
    bias.assign(bias + 0.1)
    _, gradients, _ = learner.task_gradients(inputs, query_y)
    assert_directional_derivatives(
        learner.model.trainable_variables,
        gradients,
        tf.function(lambda: learner.task_loss(inputs, query_y)[0]),
    )


@pytest.mark.parametrize(
    ("make", "options"),
    [
        pytest.param(tfmeta.MAML, {"recompute": True}, marks=pytest.mark.slow),
        (tfmeta.MAML, {"adapt_layers": "head"}),
        pytest.param(tfmeta.MAMLPlusPlus, {"learned_rates": "weight"}, marks=pytest.mark.slow),
        (tfmeta.ProtoMAML, {}),
    ],
)
def test_other_learners_keep_to_them(make, options):
    x, _, query_x, _ = (part.astype("float32") for part in task())
    y, query_y = np.arange(5) % 2, np.arange(3) % 2
    learner = make(model_with("non_neg"), RATE, STEPS, task_axis="loop", **options)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    learner.train_on_batch(
        {"support_x": x[None], "support_y": y[None], "query_x": query_x[None]}, query_y[None]
    )
    kernel = learner.model.layers[0].kernel
    assert np.min(kernel) >= 0  # Keras's optimizer's doing
    (params, _), *_ = learner.adapt_task(x, y, training=False)
    assert np.min(params[0]) >= 0
    assert np.any(params[0] != kernel.numpy()) == ("adapt_layers" not in options)
