"""The loss of a normal distribution, and losses of tasks side by side."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tfmeta.losses import GaussianNLL


def test_gaussian_nll_is_the_formula():
    rng = np.random.default_rng(0)
    y, outputs = rng.normal(size=(5, 2)), rng.normal(size=(5, 4))
    mean, variance = outputs[:, :2], np.log1p(np.exp(outputs[:, 2:])) + 0.1
    density = np.exp(-((y - mean) ** 2) / variance / 2) / np.sqrt(2 * np.pi * variance)
    expected = -np.log(density) - np.log(2 * np.pi) / 2 + 3 * (y - mean) ** 2
    loss = GaussianNLL(squared_error=3.0, least_variance=0.1, dtype="float64")
    np.testing.assert_allclose(loss(y, outputs), expected.mean(), rtol=1e-12)
    np.testing.assert_allclose(loss.call(y, tf.constant(outputs)), expected.mean(1), rtol=1e-12)
    for got, of in zip(loss.mean_and_variance(outputs), (mean, variance), strict=True):
        np.testing.assert_allclose(got, of, rtol=1e-12)
    again = GaussianNLL.from_config(loss.get_config())
    assert again.get_config() == loss.get_config()


@pytest.mark.parametrize("algorithm", [tfmeta.MAML, tfmeta.BayesianMAML])
def test_gaussian_nll_of_tasks_side_by_side(algorithm):
    made = []
    x, y = tfmeta.data.Sinusoids(shots=5, queries=5, seed=0).batch(0, 3)
    for axis in ("loop", "packed"):
        keras.utils.set_random_seed(0)
        learner = algorithm(tfmeta.models.mlp((1,), 2, units=(8,)), 0.01, 2, task_axis=axis)
        learner.compile(keras.optimizers.SGD(0.1), GaussianNLL(squared_error=1.0))
        history = learner.fit(x, y, batch_size=3, epochs=2, verbose=0).history
        made.append((history["loss"], learner.get_weights()))
    (loss, weights), (other_loss, other_weights) = made
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    for a, b in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_gaussian_nll_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="`squared_error`"):
        GaussianNLL(squared_error=-1.0)
    with pytest.raises(ValueError, match="`least_variance`"):
        GaussianNLL(least_variance=0.0)
    with pytest.raises(ValueError, match=r"`outputs` must be twice.*Received: shape=\(2, 3\)"):
        GaussianNLL()(np.zeros([2, 1]), np.zeros([2, 3]))
    with pytest.raises(ValueError, match=r"two outputs for each of the 1 targets.*\(2, 4\)"):
        GaussianNLL()(np.zeros([2, 1]), np.zeros([2, 4]))
