"""Amortised Bayesian MAML: closed forms, finite differences, and MAML where nothing is random."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.algorithms.test_bayesian_maml import network, trained
from tests.learners import episodes
from tests.rows import rows
from tests.test_svgd import numeric_gradient
from tfmeta.algorithms.amortized_bayesian_maml import divergence, log_prior
from tfmeta.functional import functional_call
from tfmeta.random_weights import Noise, drawn_once, random_weights


def normal_log_density(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def test_divergence_by_quadrature():
    mean, std, mean_0, std_0 = 0.3, 0.7, -0.2, 1.1
    x = np.linspace(-12, 12, 200_001)
    q = np.exp(normal_log_density(x, mean, std))
    expected = np.sum(q * (normal_log_density(x, mean, std) - normal_log_density(x, mean_0, std_0)))
    expected *= x[1] - x[0]
    two = [tf.constant([v, v], tf.float64) for v in (mean, np.log(std), mean_0, np.log(std_0))]
    np.testing.assert_allclose(divergence(two[:2], two[2:]), 2 * expected, rtol=1e-8)
    np.testing.assert_allclose(divergence(two[:2], two[:2]), 0, atol=1e-12)


def test_prior():
    mean, std, a, b = 0.3, 0.7, 2.5, 0.4
    tau = std**-2
    gamma = a * np.log(b) - 0.2846828704729192 + (a - 1) * np.log(tau) - b * tau
    expected = normal_log_density(mean, 0, 1) + gamma
    got = log_prior([tf.constant([mean], tf.float64), tf.constant([np.log(std)], tf.float64)], a, b)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: keras.layers.Dense(3), (4,)),
        (lambda: keras.layers.Dense(3, use_bias=False), (5, 4)),
        (lambda: keras.layers.Conv2D(3, 3, 2, "same"), (5, 5, 2)),
        (lambda: keras.layers.Conv1D(3, 3, dilation_rate=2), (7, 2)),
    ],
)
def test_outputs_have_the_distribution_of_random_weights(make, shape):
    """Mean and variance, against draws of whole weights."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape), make()])
    means = [tf.convert_to_tensor(v) for v in model.trainable_variables]
    log_stds = [tf.random.normal(v.shape, -1.0, 0.3) for v in means]
    x = tf.random.normal([2, *shape])

    def by_rule():
        noise = Noise(True, "float32")
        with random_weights(model, log_stds, noise):
            return functional_call(model, means, [], x, training=True).outputs

    def by_weights():
        drawn = [
            m + tf.exp(s) * tf.random.normal(m.shape) for m, s in zip(means, log_stds, strict=True)
        ]
        return functional_call(model, drawn, [], x, training=True).outputs

    found = []
    for draw in (by_rule, by_weights):
        graph = tf.function(lambda draw=draw: tf.map_fn(lambda _: draw(), tf.zeros([4000])))
        draws = np.asarray(graph())
        found.append((draws.mean(0), draws.std(0)))
    (mean, std), (mean_2, std_2) = found
    # Seven standard errors.
    np.testing.assert_allclose(mean, mean_2, atol=7 * std.max() / np.sqrt(4000 / 2))
    np.testing.assert_allclose(std, std_2, rtol=7 / np.sqrt(4000))


def test_activations_come_behind_the_noise():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(50, "relu")])
    means = [tf.convert_to_tensor(v) for v in model.trainable_variables]
    with random_weights(model, [tf.zeros(v.shape) for v in means], Noise(True, "float32")):
        y = functional_call(model, means, [], tf.ones([9, 4]), training=True).outputs
    assert np.min(y) == 0 < np.max(y)
    assert model.layers[0].activation is keras.activations.relu


def test_each_example_has_a_draw_of_its_own():
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3)])
    means = [tf.convert_to_tensor(v) for v in model.trainable_variables]
    with random_weights(model, [tf.zeros(v.shape) for v in means], Noise(True, "float32")):
        y = functional_call(model, means, [], tf.ones([2, 4, 4, 1]), training=True).outputs
    assert np.abs(y[0] - y[1]).max() > 0.1


def test_scales_of_normalisation_are_drawn_once():
    model = keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization()])
    model.add(keras.layers.Dense(2))
    means = [tf.convert_to_tensor(v) for v in model.trainable_variables]
    drawn = drawn_once(model, means, [tf.zeros(v.shape) for v in means], Noise(True, "float32"))
    changed = [not np.allclose(a, b) for a, b in zip(means, drawn, strict=True)]
    assert changed == [True, True, False, False]


@pytest.mark.parametrize("batch_norm", rows(["transductive", "support"], ["support"]))
def test_without_variance_it_is_maml(batch_norm):
    made = []
    for cls, own in (
        (tfmeta.MAML, {"task_axis": "loop"}),
        (tfmeta.AmortizedBayesianMAML, {"initial_std": 1e-12, "kl_weight": 0.0, "samples": 2}),
    ):
        keras.utils.set_random_seed(0)
        made.append(trained(cls(network(), 0.1, 2, batch_norm=batch_norm, **own)))
    (maml, history), (bayesian, own_history) = made
    np.testing.assert_allclose(history["loss"], own_history["loss"], rtol=1e-5)
    for a, b in zip(maml.model.get_weights(), bayesian.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    x, _ = episodes(1)
    np.testing.assert_allclose(
        keras.ops.softmax(maml.predict_on_batch(x)),
        np.exp(bayesian.predict_on_batch(x)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_bound_and_gradient(float64, monkeypatch):
    """A linear model, whose bound is written down for fixed noise and differentiated by steps."""
    rng = np.random.default_rng(0)
    n, samples, beta, weight, rate = 4, 3, 0.7, 0.2, 0.05
    support_x, query_x = rng.normal(size=(2, n, 2))
    support_y, query_y = rng.normal(size=(2, n, 1))
    noise = rng.normal(size=(samples * n, 1))
    monkeypatch.setattr(Noise, "__call__", lambda self, shape: tf.constant(noise))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    learner = tfmeta.AmortizedBayesianMAML(
        model, rate, 1, samples=samples, kl_weight=beta, initial_std=0.3, prior_weight=weight
    )
    learner.compile(keras.optimizers.SGD(1.0), "mean_squared_error")
    inputs = {"support_x": support_x, "support_y": support_y, "query_x": query_x}
    learner.build({name: (1, *x.shape) for name, x in inputs.items()})
    loss, gradients, _ = learner.task_gradients(inputs, query_y)
    variables = [*model.trainable_variables, *learner.log_stds]
    theta = np.concatenate([np.array(v).ravel() for v in variables])

    def bound(q, p, x, y):
        """Return mean squared error at the draws, plus the divergence; q is [w, w, b] twice."""
        x = np.tile(np.concatenate([x, np.ones((n, 1))], 1), (samples, 1))
        outputs = x @ q[:3] + np.sqrt(x**2 @ np.exp(2 * q[3:])) * noise[:, 0]
        ratio = q[3:] - p[3:]
        distance = ((q[:3] - p[:3]) / np.exp(p[3:])) ** 2
        divergence = ((np.exp(2 * ratio) + distance - 1) / 2 - ratio).sum()
        return np.mean((outputs - np.tile(y[:, 0], samples)) ** 2) + beta / n * divergence

    def outer(theta):
        gradient = numeric_gradient(lambda q: bound(q, theta, support_x, support_y), theta)
        q = theta - rate * gradient
        halves = [tf.constant(theta[:3]), tf.constant(theta[3:])]
        return bound(q, theta, query_x, query_y) - weight * float(log_prior(halves, 1.0, 0.01))

    np.testing.assert_allclose(loss, outer(theta), rtol=1e-7)
    by_id = dict(zip(map(id, learner.trainable_variables), gradients, strict=True))
    got = np.concatenate([np.ravel(by_id[id(v)]) for v in variables])
    wide = np.array(
        [(outer(theta + h) - outer(theta - h)) / 2e-3 for h in 1e-3 * np.eye(len(theta))]
    )
    np.testing.assert_allclose(got, wide, rtol=1e-4, atol=1e-5)


def test_predictions_are_the_same_again():
    learner, _ = trained(tfmeta.AmortizedBayesianMAML(network(), 0.1, 1, initial_std=0.1))
    x, _ = episodes(1)
    predictions = learner.predict_on_batch(x)
    np.testing.assert_array_equal(predictions, learner.predict_on_batch(x))
    mean, variance = learner.moments(x)
    np.testing.assert_allclose(mean, np.exp(predictions), rtol=1e-4, atol=1e-6)
    assert np.max(variance) > 1e-4
    adapted = learner.adapt(x["support_x"][0], x["support_y"][0])
    np.testing.assert_allclose(adapted(x["query_x"][0]), predictions[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"samples": 0}, ValueError, "`samples`"),
        ({"kl_weight": -1.0}, ValueError, "`kl_weight`"),
        ({"initial_std": 0.0}, ValueError, "`initial_std`"),
        ({"prior": (0.0, 1.0)}, ValueError, "`prior`"),
        ({"prior_weight": -1.0}, ValueError, "`prior_weight`"),
        ({"batch_norm": "with_support"}, ValueError, "`batch_norm`"),
        ({"learned_rates": "step"}, TypeError, "no argument `learned_rates`"),
    ],
)
def test_wrong_arguments(wrong, error, words):
    with pytest.raises(error, match=words):
        tfmeta.AmortizedBayesianMAML(network(), **wrong)


def test_a_layer_without_a_rule_is_named():
    model = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.DepthwiseConv2D(3)])
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(3))
    learner = tfmeta.AmortizedBayesianMAML(model)
    learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"no reparameterisation.*layer 'depthwise"):
        learner.check_inputs(episodes()[0])
