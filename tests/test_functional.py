"""Functional calls: state, statistics and derivatives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmeta.foreign.derivatives import exact_moments, exact_pooling
from tfmeta.functional import (
    batch_norm_layers,
    batch_norm_uses,
    functional_call,
)


def values(variables):
    return [tf.convert_to_tensor(v) for v in variables]


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.BatchNormalization(dtype="float64"),
        lambda: keras.layers.LayerNormalization(dtype="float64"),
        lambda: keras.layers.GroupNormalization(2, dtype="float64"),
    ],
)
def test_normalisation_has_its_second_derivative(make):
    """Hessian-vector products against differences of first derivatives, which Keras has right."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((4,), dtype="float64"), make()])
    x, direction = rng.normal(size=(2, 5, 4))
    weight = tf.constant(rng.normal(size=(5, 4)))

    def gradient(x):
        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            out, *_ = functional_call(
                model,
                values(model.trainable_variables),
                values(model.non_trainable_variables),
                x,
                training=True,
            )
            loss = tf.reduce_sum(weight * out**3)
        return tape.gradient(loss, x)

    x_tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x_tensor)
        slope = tf.reduce_sum(gradient(x_tensor) * direction)
    product = tape.gradient(slope, x_tensor)
    step = 1e-6
    numeric = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(product, numeric, rtol=1e-6, atol=1e-7)


def test_exact_moments_are_tensorflows_and_leave_it_alone():
    original = tf.nn.moments
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    for axes in ([0], [0, 1], [-1]):
        for keepdims in (False, True):
            expected = tf.nn.moments(tf.constant(x), axes, keepdims=keepdims)
            with exact_moments():
                assert tf.nn.moments is not original
                moments = tf.nn.moments(tf.constant(x), axes, keepdims=keepdims)
            for a, b in zip(moments, expected, strict=True):
                np.testing.assert_allclose(a, b)
    with pytest.raises(RuntimeError), exact_moments():
        raise RuntimeError
    assert tf.nn.moments is original


def nested_model():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="inner")])
    frozen = keras.layers.BatchNormalization(name="frozen", trainable=False)
    return keras.Sequential(
        [keras.Input((3,)), inner, keras.layers.BatchNormalization(name="outer"), frozen]
    )


def test_batch_norm_layers_finds_nested_ones_and_not_frozen_ones():
    assert {layer.name for layer in batch_norm_layers(nested_model())} == {"inner", "outer"}


def test_statistics_are_chosen_and_the_model_is_left_alone():
    model = nested_model()
    x = np.random.default_rng(0).normal(2, 3, size=(50, 3)).astype("float32")
    params, state = values(model.trainable_variables), values(model.non_trainable_variables)
    before = [v.numpy() for v in model.variables]

    batch, after, *_ = functional_call(model, params, state, x, training=False, statistics="batch")
    np.testing.assert_allclose(np.mean(batch, 0), 0, atol=1e-5)
    np.testing.assert_allclose(after[0], x.mean(0), rtol=1e-5)  # momentum 0: the batch's own
    stored, *_ = functional_call(model, params, after, x, training=True, statistics="stored")
    np.testing.assert_allclose(stored, batch, atol=1e-4)
    keras_way, *_ = functional_call(model, params, state, x, training=False)
    np.testing.assert_allclose(keras_way, model(x, training=False))

    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    layer = model.get_layer("outer")
    assert "call" not in vars(layer)
    assert layer.momentum == 0.99


def test_an_error_inside_restores_the_layers():
    model = nested_model()
    with pytest.raises(RuntimeError), batch_norm_uses(model, "batch"):
        raise RuntimeError
    assert "call" not in vars(model.get_layer("outer"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("space", "size", "strides", "padding"),
    [
        ((7, 9), 2, 2, "valid"),
        ((7, 9), (3, 2), (2, 3), "same"),
        ((6, 6), 3, 1, "same"),
        ((2, 3), 1, 2, "same"),
        ((8,), 3, 2, "same"),
    ],
)
def test_max_pooling_under_xla(space, size, strides, padding, dtype):
    """Of numbers so close that half precision cannot tell them apart, and of equal ones."""
    random = np.random.default_rng(0)
    x = 1 + random.integers(0, 40, (2, *space, 3)) / 4096
    a = random.normal(size=x.shape)

    def second(x, a):
        with tf.GradientTape() as outer, exact_pooling():
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = keras.ops.max_pool(x, size, strides, padding)
                loss = tf.reduce_sum(tf.sin(4 * y))
            product = tf.reduce_sum(inner.gradient(loss, x) * a)
        return y, product, outer.gradient(product, x)

    x, a = tf.constant(x, dtype), tf.constant(a, dtype)
    plain, compiled = tf.function(second)(x, a), tf.function(second, jit_compile=True)(x, a)
    for expected, value in zip(plain, compiled, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
