"""Single precision on images whose background is flat: as near to double as on noise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tfmeta import kernels
from tfmeta.foreign.derivatives import exact_moments
from tfmeta.means import mean_along
from tfmeta.packed import normalization

EPSILON = 1e-3


@pytest.fixture(scope="module")
def activations() -> Any:
    """A convolution of letters: most of a channel's numbers are the same, and none is zero."""
    letters = tfmeta.data.EpisodeSampler(tfmeta.data.load("glyphs")[0], 5, 2, 1, seed=0)
    x = letters.batch(0)[0]["support_x"][0]
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 0.1, size=(3, 3, 1, 64)).astype("float32")
    y = tf.nn.conv2d(x, kernel, 1, "SAME") + rng.normal(size=64).astype("float32")
    _, counts = np.unique(y.numpy()[..., 0], return_counts=True)
    assert counts.max() > 0.4 * counts.sum()
    return y


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    keras.config.set_floatx("float64"), keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx("float32"), keras.config.set_dtype_policy("float32")


def kernel(x: Any) -> Any:
    gamma, beta = tf.ones(x.shape[-1]), tf.zeros(x.shape[-1])
    return normalization.batch_normalization(x, gamma, beta, EPSILON)


def composite(x: Any) -> Any:
    with kernels.avoided():
        return kernel(x)


def in_turn(x: Any) -> Any:
    with exact_moments():
        mean, variance = tf.nn.moments(x, [0, 1, 2])
    return tf.nn.batch_normalization(x, mean, variance, None, None, EPSILON), mean, variance


@pytest.mark.parametrize("normalised", [kernel, composite, in_turn])
@pytest.mark.parametrize("flat", [True, False])
def test_a_flat_background_costs_no_digits(
    activations: Any, normalised: Callable[[Any], Any], flat: bool
) -> None:
    x = activations
    if not flat:
        noise = np.random.default_rng(1).normal(size=x.shape).astype("float32")
        x = tf.reduce_mean(x, [0, 1, 2]) + tf.math.reduce_std(x, [0, 1, 2]) * noise
    exact = x.numpy().astype("float64")
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    deviation = np.sqrt(variance + EPSILON)
    digits = np.finfo("float32").eps * np.maximum(1, np.abs(exact).max((0, 1, 2)) / deviation)
    y, got_mean, got_variance = normalised(x)
    # Sums of all rows were off by 60 to 250 times as much as single precision has digits.
    # A mean that is off moves all of a channel: each unit near its kink, to the same side.
    assert np.all(np.abs(got_mean - mean) / deviation < 5 * digits)
    assert np.all(np.abs(got_variance - variance) / deviation**2 < 3 * digits)
    assert np.all(np.abs(y - (exact - mean) / deviation).max((0, 1, 2)) < 6 * digits)


def test_a_constant_channel_has_no_variance() -> None:
    x = tf.fill([10, 28, 28, 3], np.float32(0.1)) * [1.0, 1e3, -1e6]
    y, mean, variance = kernel(x)
    np.testing.assert_array_equal(variance, [0, 0, 0])
    np.testing.assert_array_equal(mean, x[0, 0, 0])
    np.testing.assert_array_equal(y, tf.zeros_like(x))


@pytest.mark.parametrize("axes", [0, [0, 2], (1, -1)])
def test_mean_along(axes: Any) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    expected = x.mean(axes if isinstance(axes, int) else tuple(axes), keepdims=True)
    np.testing.assert_allclose(mean_along(tf.constant(x), axes), expected, rtol=1e-12, atol=1e-15)


def test_products_of_equal_numbers_lose_few_digits() -> None:
    """As many equal products as a flat background has are rounded the same way each time."""
    of_channels, of_filters = np.random.default_rng(0).random((2, 64)).astype("float32") + 0.5
    x = tf.identity(tf.broadcast_to(of_channels, [10, 28, 28, 64]))
    dy = tf.identity(tf.broadcast_to(of_filters, [10, 28, 28, 64]))
    weights = tf.identity(tf.broadcast_to(of_filters, [3, 3, 64, 64]))
    products = kernels.convolution_products(x.shape, weights.shape, (1, 1), "SAME")
    inside = products.forward(x, weights)[:, 1:-1, 1:-1]
    expected = 9 * of_channels.astype("float64").sum() * of_filters
    np.testing.assert_allclose(inside, np.broadcast_to(expected, inside.shape), rtol=7e-7)
    middle = products.to_kernel(x, dy)[1, 1]
    expected = 7840 * np.outer(of_channels.astype("float64"), of_filters)
    np.testing.assert_allclose(middle, expected, rtol=5.5e-6)


@pytest.mark.slow
def test_letters_side_by_side_in_turn_and_adapted_as_in_double_precision() -> None:
    sampler = tfmeta.data.EpisodeSampler(tfmeta.data.load("glyphs")[0], 5, 1, 2, seed=0)
    inputs, _ = sampler.batch(0, 8)

    def learner(axis: str, weights: Any = None) -> tfmeta.MetaLearner:
        network = tfmeta.models.conv4((28, 28, 1), 5, filters=16)
        made = tfmeta.MAML(network, 0.1, 3, task_axis=axis)
        made.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        made.build({"support_x": inputs["support_x"].shape})
        if weights is not None:
            made.set_weights(weights)
        return made

    keras.utils.set_random_seed(0)
    packed = learner("packed")
    weights = packed.get_weights()
    with double_precision():
        wide = {k: v.astype("float64") if v.dtype.kind == "f" else v for k, v in inputs.items()}
        exact = learner("loop", weights).predict(wide, batch_size=8, verbose=0)
    logits = {
        "packed": packed.predict(inputs, batch_size=8, verbose=0),
        "in turn": learner("loop", weights).predict(inputs, batch_size=8, verbose=0),
        "adapt": [
            packed.adapt(x, y)(q, training=False)
            for x, y, q in zip(*(v[:3] for v in inputs.values()), strict=True)
        ],
    }
    for path, values in logits.items():
        errors = [np.abs(a - b).max() for a, b in zip(values, exact, strict=False)]
        # Not the largest: a unit may happen to be closer to its kink than any rounding.
        assert np.median(errors) < 3e-5, path
