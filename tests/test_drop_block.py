"""DropBlock, against NumPy: which squares go, how many, and what becomes of the rest."""

import keras
import numpy as np
import pytest

import tfmeta
from tfmeta.layers import DropBlock
from tfmeta.packed import packed_call, spread_weights, tried


def covering(size, square):
    """Return in how many squares along an axis each place lies."""
    begins = np.arange(size - square + 1)
    places = np.arange(size)[:, None]
    return ((begins <= places) & (places < begins + square)).sum(1)


def opened(dropped, square):
    """Return the union of all squares `[height, width]` that lie within what is dropped."""
    height, width = (n - s + 1 for n, s in zip(dropped.shape, square, strict=True))
    union = np.zeros_like(dropped)
    for i in range(height):
        for j in range(width):
            here = slice(i, i + square[0]), slice(j, j + square[1])
            union[here] |= dropped[here].all()
    return union


@pytest.mark.parametrize(
    ("shape", "block", "square"),
    [((7, 6), 3, (3, 3)), ((5, 5), 1, (1, 1)), ((2, 6), 5, (2, 5)), ((2, 2), 5, (2, 2))],
)
def test_squares_go_as_often_as_the_paper_says(shape, block, square):
    rate, n, channels = 0.2, 400, 10
    layer = DropBlock(rate, block, seed=1)
    kept = np.asarray(layer.kept((n, *shape, channels)))
    assert set(np.unique(kept)) == {0.0, 1.0}
    for image in np.moveaxis(kept[:20], 3, 1).reshape(-1, *shape) == 0:
        np.testing.assert_array_equal(image, opened(image, square))
    # A place stays if no square begins where it would cover it; all begin independently.
    (height, width), (b, c) = shape, square
    gamma = rate * height * width / (b * c * (height - b + 1) * (width - c + 1))
    count = covering(height, b)[:, None] * covering(width, c)
    expected = (1 - gamma) ** count
    error = np.sqrt(expected * (1 - expected) / (n * channels))
    assert (np.abs(kept.mean((0, 3)) - expected) <= 4.5 * error).all()


def test_what_stays_is_scaled_by_what_its_own_example_lost():
    layer = DropBlock(0.3, 2, seed=2)
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 4)).astype("float32")
    y = np.asarray(layer(x, training=True))
    kept = y != 0
    scale = (6 * 6 * 4) / kept.reshape(5, -1).sum(1)
    assert len(np.unique(scale)) > 1
    np.testing.assert_allclose(y, x * kept * scale[:, None, None, None], rtol=1e-6)
    # So the mean over an example that is the same everywhere does not change.
    ones = np.asarray(layer(np.ones_like(x), training=True))
    np.testing.assert_allclose(ones.reshape(5, -1).mean(1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(layer(x, training=False), x)
    np.testing.assert_array_equal(DropBlock(0.0)(x, training=True), x)


def test_an_example_that_loses_all_is_zero():
    layer = DropBlock(0.999, 2, seed=0)
    y = np.asarray(layer(np.ones((8, 2, 2, 1), "float32"), training=True))
    assert (y.reshape(8, -1) == 0).all(1).any()
    assert np.isfinite(y).all()


def test_the_gradient_is_what_was_multiplied_by():
    tf = pytest.importorskip("tensorflow")
    layer = DropBlock(0.3, 2, seed=2)
    x = tf.ones((2, 5, 5, 3))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    np.testing.assert_array_equal(tape.gradient(y, x), y)


def test_half_precision_counts_in_single():
    layer = DropBlock(0.1, 2, seed=0, dtype="mixed_float16")
    y = np.asarray(layer(np.ones((1, 16, 16, 32)), training=True))
    assert y.dtype == np.float16
    assert abs(y.astype(float).mean() - 1) < 1e-3


def test_packed_tasks_drop_squares_of_their_own():
    model = keras.Sequential([keras.Input((6, 6, 2)), DropBlock(0.3, 2, seed=3)])
    assert tried(model, model.inputs[0]).obstacle is None
    x = np.ones((3, 4, 6, 6, 2), "float32")
    state = [v.value for v in model.non_trainable_variables]
    params, state = spread_weights(model, [], state, 3)
    how = {"training": True, "statistics": "batch"}
    called = packed_call(model, params, state, x, **how)
    y = np.asarray(called.outputs)
    assert y.shape == x.shape
    for example in y.reshape(-1, 6, 6, 2):
        for channel in np.moveaxis(example == 0, -1, 0):
            np.testing.assert_array_equal(channel, opened(channel, (2, 2)))
    np.testing.assert_allclose(y.reshape(12, -1).mean(1), 1.0, rtol=1e-6)
    tasks = {task.tobytes() for task in y}
    assert len(tasks) == 3
    # The seed goes on, so that the next inner step drops others.
    again = packed_call(model, params, called.state, x, **how).outputs
    assert (np.asarray(again) != y).any()
    how["training"] = False
    np.testing.assert_array_equal(packed_call(model, params, state, x, **how).outputs, x)


def test_what_is_no_image_is_refused():
    for shape in ((4, 6), (4, 6, 2)):
        with pytest.raises(ValueError, match=r"must be \[n, height, width, channels\]"):
            DropBlock(0.3)(np.ones(shape), training=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0,), ValueError, r"`rate` must be less than 1. Received: rate=1.0"),
        ((-0.1,), ValueError, r"`rate` must be at least 0.*-0.1"),
        (("0.1",), TypeError, r"`rate` must be a number.*'0.1'"),
        ((0.1, 0), ValueError, r"`block_size` must be at least 1.*block_size=0"),
        ((0.1, 2.0), TypeError, r"`block_size` must be an integer.*2.0"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tfmeta.layers.DropBlock(*arguments)


def test_it_is_made_again_from_its_configuration():
    layer = DropBlock(0.2, 3, seed=5, name="drop")
    again = DropBlock.from_config(layer.get_config())
    assert (again.rate, again.block_size, again.seed, again.name) == (0.2, 3, 5, "drop")
    np.testing.assert_array_equal(
        again(np.ones((2, 6, 6, 3)), training=True), layer(np.ones((2, 6, 6, 3)), training=True)
    )
