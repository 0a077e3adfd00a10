"""Second derivatives of all activations and losses of Keras: right, or refused in words."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfmeta
from tfmeta.foreign.derivatives import NoDerivative, exact_derivatives

# What TensorFlow has no second derivative of, and the operation that a refusal names.
WITHOUT = {"softsign": "SoftsignGrad", "CTC": "tf.nn.ctc_loss"}
ARGUMENTS = {"threshold": (0.5, 0.1)}


def activations():
    """Every activation; a new one comes by itself."""
    for name, function in inspect.getmembers(keras.activations, inspect.isfunction):
        if name not in ("get", "serialize", "deserialize"):
            yield pytest.param(name, function, id=name)


def losses():
    for name, kind in inspect.getmembers(keras.losses, inspect.isclass):
        if kind is not keras.losses.Loss:
            yield pytest.param(name, {}, id=name)
            if "from_logits" in inspect.signature(kind).parameters:
                yield pytest.param(name, {"from_logits": True}, id=f"{name} of logits")


def labels(name):
    if name == "CTC":
        return np.array([[1, 2], [3, 1], [2, 2]])
    if name in ("SparseCategoricalCrossentropy", "CategoricalGeneralizedCrossEntropy"):
        return np.array([0, 2, 1])
    if name == "Circle":
        return np.array([0, 0, 1])  # class 1 has a single example
    if name == "MeanAbsolutePercentageError":
        return np.random.default_rng(1).uniform(0.5, 1, size=(3, 4))
    return np.eye(4)[[0, 2, 1]]


def assert_second_derivative(function, x):
    """A Hessian-vector product against differences of the gradient."""
    direction = np.random.default_rng(3).normal(size=x.shape)

    def gradient(x, v=None):
        with tf.GradientTape() as outer, exact_derivatives():
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = function(x)
            found = inner.gradient(value, x)
        return found if v is None else outer.gradient(found, x, v)

    # A second time, without the exchange, for the first derivatives must be those of Keras.
    x, v = tf.constant(x), tf.constant(direction)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    np.testing.assert_allclose(gradient(x), tape.gradient(value, x), rtol=1e-9, atol=1e-12)
    product, step = gradient(x, v), 1e-5
    product = np.zeros(x.shape) if product is None else product
    numeric = (gradient(x + step * v) - gradient(x - step * v)) / (2 * step)
    np.testing.assert_allclose(product, numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "function"), list(activations()))
def test_an_activation_has_its_second_derivative(name, function):
    x = np.random.default_rng(0).normal(size=(3, 6)) * 2

    def loss(x):
        return tf.reduce_sum(tf.sin(1.3 * function(x, *ARGUMENTS.get(name, ()))))

    if name in WITHOUT:
        with pytest.raises(LookupError, match=WITHOUT[name]):
            assert_second_derivative(loss, x)
    else:
        assert_second_derivative(loss, x)


@pytest.mark.parametrize(("name", "kwargs"), list(losses()))
def test_a_loss_has_its_second_derivative(name, kwargs):
    loss = getattr(keras.losses, name)(**kwargs, dtype="float64")
    y = labels(name)
    x = np.random.default_rng(0).uniform(0.1, 0.9, size=(3, 4))
    if name == "CTC":
        x = np.random.default_rng(0).normal(size=(3, 6, 5))
    if name in WITHOUT:
        with pytest.raises(NoDerivative, match=WITHOUT[name]):
            assert_second_derivative(lambda x: tf.sin(loss(y, x)), x)
    else:
        assert_second_derivative(lambda x: tf.sin(loss(y, x)), x)


@pytest.mark.parametrize("support", [4, 3])
@pytest.mark.parametrize("make", [tfmeta.MAML, tfmeta.FOMAML])
def test_ctc_is_for_first_order(make, support):
    """Of as many queries as support examples, and of fewer, which TensorFlow told apart."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 7, 6, 3)).astype("float32")
    y = random.integers(1, 5, size=(1, 7, 2)).astype("int32")
    inputs = {"support_x": x[:, :support], "support_y": y[:, :support], "query_x": x[:, support:]}
    model, twin = (keras.Sequential([keras.Input((6, 3)), layers.Dense(5)]) for _ in range(2))
    twin.set_weights(model.get_weights())
    learner = make(model, 0.1, 1)
    learner.compile("sgd", keras.losses.CTC())
    if make is tfmeta.MAML:
        with pytest.raises(ValueError, match=r"must have.*keras.losses.CTC.*tfmeta.FOMAML"):
            learner.train_on_batch(inputs, y[:, support:])
        return
    loss = learner.train_on_batch(inputs, y[:, support:])
    twin.compile(keras.optimizers.SGD(0.1), keras.losses.CTC())
    twin.train_on_batch(x[0, :support], y[0, :support])
    expected = twin.test_on_batch(x[0, support:], y[0, support:])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
