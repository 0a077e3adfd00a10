"""Update rules against the arithmetic by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfmeta.inner_optimizers import SGD


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum):
    rule = SGD(0.1, momentum)
    weight, velocity = 1.0, 0.0
    params = [tf.constant(weight)]
    slots = rule.init(params)
    for gradient in (2.0, -1.0, 0.5):
        params, slots = rule.update([tf.constant(gradient)], slots, params)
        velocity = momentum * velocity + gradient
        weight -= 0.1 * velocity
        np.testing.assert_allclose(params[0], weight, rtol=1e-6)


def test_config_round_trip():
    assert SGD(**SGD(0.3, 0.5).get_config()).get_config() == {"learning_rate": 0.3, "momentum": 0.5}


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
