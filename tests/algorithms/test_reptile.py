"""Reptile's slots, minibatches, annealing and its two evaluations, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.algorithms.test_maml_plus_plus import EXAMPLES, FEATURES, INPUTS, START, TARGETS, slope
from tests.algorithms.test_maml_plus_plus import Q as QUERIES
from tests.algorithms.test_maml_plus_plus import X as EXAMPLES_X
from tfmeta.inner_batches import order
from tfmeta.inner_optimizers import SGD, Adam
from tfmeta.layers import per_step_batch_norm

STEPS, RATE, BETA_2, EPSILON = 3, 0.05, 0.9, 1e-3
RNG = np.random.default_rng(4)
X = RNG.normal(size=(2, EXAMPLES, FEATURES))
Y = RNG.normal(size=(2, EXAMPLES, 1))
TASKS = {"support_x": X, "support_y": Y, "query_x": X}


def linear(**options):
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([START])
    learner = tfmeta.Reptile(model, **{"inner_steps": STEPS, **options})
    learner.compile(keras.optimizers.SGD(1.0), "mean_squared_error")
    return learner


def adam(w, v, t, x, y):
    """K steps of Adam with β1 = 0, from the slots v and t."""
    for _ in range(STEPS):
        g = slope(w, x, y)
        t += 1
        v = BETA_2 * v + (1 - BETA_2) * g**2
        w = w - RATE * np.sqrt(1 - BETA_2**t) * g / (np.sqrt(v) + EPSILON)
    return w, v, t


def test_slots_pass_from_task_to_task(float64):
    """Through meta-batches and saving; evaluation begins with them and leaves them as they are."""
    learner = linear(inner_optimizer=Adam(RATE, 0.0, BETA_2, EPSILON), outer_learning_rate=0.5)
    theta, v, t = START, np.zeros_like(START), 0
    for _ in range(3):
        ends = []
        for x, y in zip(X, Y, strict=True):
            end, v, t = adam(theta, v, t, x, y)
            ends.append(end)
        learner.train_on_batch(TASKS, Y)
        theta = theta + 0.5 * np.mean([end - theta for end in ends], axis=0)
        np.testing.assert_allclose(learner.model.get_weights()[0], theta, rtol=1e-8)
        np.testing.assert_allclose(learner.slots[1], v, rtol=1e-8)
        assert float(learner.slots[2]) == t
        adapted, _, _ = adam(theta, v, t, X[0], Y[0])
        np.testing.assert_allclose(learner.adapt(X[0], Y[0]).get_weights()[0], adapted, rtol=1e-8)
        learner.predict_on_batch(TASKS)
        assert float(learner.slots[2]) == t


def test_slots_are_in_the_file(tmp_path):
    learner = linear(inner_optimizer=Adam(RATE, 0.0, BETA_2, EPSILON), inner_batch_size=4, seed=3)
    inputs = {k: v.astype("float32") for k, v in TASKS.items()}
    learner.train_on_batch(inputs, inputs["support_y"])
    learner.save(tmp_path / "reptile.keras")
    loaded = keras.models.load_model(tmp_path / "reptile.keras")
    for made in (learner, loaded):
        made.train_on_batch(inputs, inputs["support_y"])
    for a, b in zip(learner.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_outer_rate_falls_to_nothing():
    learner = linear(inner_optimizer=SGD(RATE), outer_learning_rate=0.8, annealing_steps=4)
    rates = []
    for _ in range(6):
        before = learner.model.get_weights()[0]
        rates.append(float(learner.outer_rate()))
        adapted = learner.adapt(X[0], Y[0]).get_weights()[0]
        one = {name: value[:1] for name, value in TASKS.items()}
        learner.train_on_batch(one, Y[:1])
        moved = learner.model.get_weights()[0] - before
        np.testing.assert_allclose(moved, rates[-1] * (adapted - before), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rates, [0.8, 0.6, 0.4, 0.2, 0, 0], atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_minibatches(training):
    """Each example once before any comes again; an order for each step and task of training."""
    learner = linear(inner_batch_size=4, inner_steps=6)

    def rows_of(learner):
        return order(EXAMPLES, 4, 6, learner.order(training)).numpy()

    rows = rows_of(learner)
    assert len(rows) >= 6 * 4
    for one_pass in rows.reshape(-1, EXAMPLES):
        assert sorted(one_pass) == list(range(EXAMPLES))
    again = rows_of(learner)
    np.testing.assert_array_equal(rows, again)
    learner.optimizer.iterations.assign(1)
    assert np.array_equal(rows, rows_of(learner)) == (not training)
    other = linear(inner_batch_size=4, inner_steps=6, seed=1)
    assert np.array_equal(rows, rows_of(other)) == (not training)


def test_inner_steps_on_minibatches(float64):
    learner = linear(inner_optimizer=SGD(RATE), inner_batch_size=4)
    rows = order(EXAMPLES, 4, STEPS, learner.order(False)).numpy()
    w = START
    for k in range(STEPS):
        drawn = rows[4 * k : 4 * (k + 1)]
        w = w - RATE * slope(w, X[0][drawn], Y[0][drawn])
    np.testing.assert_allclose(learner.adapt(X[0], Y[0]).get_weights()[0], w, rtol=1e-8)
    # A support set no larger than a minibatch is taken as it is.
    w = START
    for _ in range(STEPS):
        w = w - RATE * slope(w, X[0][:3], Y[0][:3])
    np.testing.assert_allclose(learner.adapt(X[0][:3], Y[0][:3]).get_weights()[0], w, rtol=1e-8)


@pytest.mark.parametrize("batch_norm", ["transductive", "with_support"])
def test_transductive_and_not(float64, batch_norm):
    """All queries as one batch, or each alone with the whole support set."""
    keras.utils.set_random_seed(0)
    norm, head = keras.layers.BatchNormalization(), keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((FEATURES,)), norm, head])
    learner = tfmeta.Reptile(model, RATE, 2, batch_norm=batch_norm)
    learner.compile("sgd", "mean_squared_error")
    learner.build({name: x.shape for name, x in INPUTS.items()})
    ((gamma, beta, kernel, bias), _), _ = learner.adapt_task(
        *(tf.constant(INPUTS[name][0]) for name in ("support_x", "support_y")), training=False
    )[:2]

    def outputs(x):
        z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) * gamma + beta
        return z @ kernel + bias

    if batch_norm == "transductive":
        expected = outputs(QUERIES)
    else:
        expected = [outputs(np.concatenate([EXAMPLES_X, q[None]]))[-1] for q in QUERIES]
    np.testing.assert_allclose(learner.predict_on_batch(INPUTS)[0], expected, rtol=1e-10)
    learner.train_on_batch(INPUTS, TARGETS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"outer_learning_rate": 0}, ValueError, r"`outer_learning_rate` must be positive"),
        ({"annealing_steps": 0}, ValueError, r"`annealing_steps` must be at least 1"),
        ({"inner_batch_size": 0}, ValueError, r"`inner_batch_size` must be at least 1"),
        ({"seed": -1}, ValueError, r"`seed` must be at least 0"),
        ({"first_order": True}, TypeError, r"Reptile has no argument `first_order`"),
        ({"learned_rates": "step"}, TypeError, r"Reptile has no argument `learned_rates`"),
        ({"joint_weight": 0.5}, TypeError, r"Reptile has no argument `joint_weight`"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        linear(**arguments)


IMPLICIT = [
    ({"proximal": 0}, ValueError, r"`proximal` must be positive.*proximal=0"),
    ({"cg_steps": 0}, ValueError, r"`cg_steps` must be at least 1"),
    ({"cg_damping": -1.0}, ValueError, r"`cg_damping` must be at least 0"),
    ({"inner_steps": 0}, ValueError, r"`inner_steps` must be at least 1"),
    ({"first_order": True}, TypeError, r"ImplicitMAML has no argument `first_order`"),
    ({"learned_rates": "step"}, TypeError, r"ImplicitMAML has no argument `learned_rates`"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), IMPLICIT)
def test_bad_arguments_of_implicit_maml(arguments, error, message):
    with pytest.raises(error, match=message):
        tfmeta.ImplicitMAML(tfmeta.models.mlp((3,), 2), **arguments)


@pytest.mark.parametrize("make", [tfmeta.Reptile, tfmeta.ImplicitMAML])
def test_no_batch_norm_by_step(make):
    """Their inner loops are rolled: no step is known by number while they are traced."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match=r"must have ordinary batch normalisation for"):
        make(per_step_batch_norm(model, 3))
