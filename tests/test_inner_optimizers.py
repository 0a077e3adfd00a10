"""Update rules against the arithmetic by hand, and against Keras's optimizers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmeta.inner_optimizers import SGD, Adam, RMSprop


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum):
    rule = SGD(0.1, momentum)
    weight, velocity = 1.0, 0.0
    params = [tf.constant(weight)]
    slots = rule.init(params)
    for gradient in (2.0, -1.0, 0.5):
        params, slots = rule.update([tf.constant(gradient)], slots, params, [0.1])
        velocity = momentum * velocity + gradient
        weight -= 0.1 * velocity
        np.testing.assert_allclose(params[0], weight, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (SGD(0.1, 0.9), keras.optimizers.SGD(0.1, 0.9)),
        (RMSprop(0.01, 0.8), keras.optimizers.RMSprop(0.01, 0.8)),
        (Adam(0.01), keras.optimizers.Adam(0.01)),
        (Adam(0.01, 0.0, 0.9, 1e-3), keras.optimizers.Adam(0.01, 0.0, 0.9, 1e-3)),
    ],
)
def test_the_numbers_of_keras(rule, optimizer):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(3, 2)).astype("float32"), rng.normal(size=2).astype("float32")]
    variables = [keras.Variable(w) for w in start]
    params = [tf.constant(w) for w in start]
    slots = rule.init(params)
    for _ in range(5):
        gradients = [tf.constant(rng.normal(size=w.shape).astype("float32")) for w in start]
        params, slots = rule.update(gradients, slots, params, [rule.learning_rate] * 2)
        optimizer.apply(gradients, variables)
        for p, v in zip(params, variables, strict=True):
            np.testing.assert_allclose(p, v, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [RMSprop(0.01), Adam(0.01)])
def test_a_gradient_of_zero_has_a_derivative(rule):
    """Of which the root of its running mean has none."""
    weight = tf.constant([0.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(weight)
        (new,), _ = rule.update([weight**2], rule.init([weight]), [weight], [0.01])
    assert np.isfinite(tape.gradient(new, weight)).all()


@pytest.mark.parametrize("rule", [SGD(0.3, 0.5), RMSprop(0.3, 0.5), Adam(0.3, 0.5, 0.6)])
def test_config_round_trip(rule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
    assert type(again) is type(rule)
    assert again.get_config() == rule.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), r"`learning_rate` must be positive.*learning_rate=0"),
        ((float("nan"),), r"`learning_rate` must be positive.*nan"),
        ((0.1, 1.0), r"`momentum` must be in \[0, 1\).*momentum=1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SGD(*arguments)


def test_bad_decays():
    with pytest.raises(ValueError, match=r"`rho` must be in \[0, 1\).*rho=1"):
        RMSprop(0.1, 1)
    with pytest.raises(ValueError, match=r"`beta_2` must be in \[0, 1\).*beta_2=-0.1"):
        Adam(0.1, 0.9, -0.1)
    with pytest.raises(ValueError, match=r"`epsilon` must be positive"):
        Adam(0.1, epsilon=0)
