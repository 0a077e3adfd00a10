"""The C++ kernels against their readable twins, and what happens where they cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from tfmeta import kernels
from tfmeta.packed import normalization

pytestmark = pytest.mark.skipif(kernels._library() is None, reason="there is no tfmeta._tf_ops")


@settings(max_examples=30, deadline=None)
@given(
    # Two or three examples would make much of each rounding.
    rows=st.integers(8, 300),
    channels=st.integers(1, 200),
    mean=st.sampled_from([0.0, 10.0]),
    seed=st.integers(0, 99),
)
def test_batch_norm_second(rows: int, channels: int, mean: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wide = [rng.normal(size=(rows, channels)).astype("float32") for _ in range(3)]
    narrow = [rng.normal(size=channels).astype("float32") for _ in range(3)]
    (dy, x, a), (gamma, p, q) = wide, narrow
    x += mean
    ours = kernels.batch_norm_second(dy, x, gamma, a, p, q, 1e-3)
    exact = [z.astype("float64") for z in (dy, x, gamma, a, p, q)]
    for got, expected in zip(ours, reference.batch_norm_second(*exact, 1e-3), strict=True):
        scale = np.abs(expected).max()
        # Far from the origin the inputs themselves have fewer digits.
        np.testing.assert_allclose(got / scale, expected / scale, atol=2e-5 * max(mean, 1))


def test_the_twin_is_the_composite() -> None:
    rng = np.random.default_rng(0)
    dy, x, a = (tf.constant(rng.normal(size=(9, 4))) for _ in range(3))
    gamma, p, q = (tf.constant(rng.normal(size=4)) for _ in range(3))
    composite = normalization._second(dy, x, gamma, a, p, q, 1e-3)
    inputs = [np.asarray(z) for z in (dy, x, gamma, a, p, q)]
    for one, other in zip(composite, reference.batch_norm_second(*inputs, 1e-3), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


POOLS = st.tuples(
    st.integers(1, 2),
    st.integers(3, 7),
    st.integers(3, 7),
    st.sampled_from([1, 3, 64, 70]),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from(["SAME", "VALID"]),
)


def second_of(pool: Any, x: Any, dy: Any, a: Any) -> list[Any]:
    with tf.GradientTape() as outer:
        outer.watch([x, dy])
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = pool(x)
        dx = inner.gradient(y, x, dy)
    return [y, dx, outer.gradient(dx, dy, a)]


@settings(max_examples=30, deadline=None)
@given(POOLS, st.booleans())
def test_max_pool(case: Any, ties: bool) -> None:
    *shape, size, strides, padding = case
    rng = np.random.default_rng(0)
    # After a ReLU many are equal.
    x = rng.integers(0, 3, size=shape) if ties else rng.normal(size=shape)
    x = tf.constant(x.astype("float32"))
    a = tf.constant(rng.normal(size=shape).astype("float32"))
    dy = tf.constant(rng.normal(size=tf.nn.max_pool2d(x, size, strides, padding).shape), "float32")
    ours = second_of(lambda x: kernels.max_pool(x, size, strides, padding), x, dy, a)
    theirs = second_of(lambda x: tf.nn.max_pool2d(x, size, strides, padding), x, dy, a)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    out = dy.shape[1:3]
    same = padding == "SAME"
    before = [
        max((o - 1) * s + k - n, 0) // 2 * same
        for o, s, k, n in zip(out, strides, size, shape[1:3], strict=True)
    ]
    twin = reference.max_pool_take(x.numpy(), a.numpy(), size, strides, before, out)
    np.testing.assert_array_equal(ours[-1], twin)


def test_shapes_that_do_not_fit_are_refused() -> None:
    ops = kernels._library()
    wide, narrow = tf.ones([4, 3]), tf.ones([3])
    good = {"dy": wide, "x": wide, "gamma": narrow, "a": wide, "p": narrow, "q": narrow}
    for name, bad in (("x", tf.ones([4, 2])), ("gamma", tf.ones([2])), ("dy", tf.ones([4]))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="must be"):
            ops.tfmeta_batch_norm_second(**{**good, name: bad}, epsilon=1e-3)
    image = tf.ones([1, 4, 4, 2])
    with pytest.raises(tf.errors.InvalidArgumentError, match="values must be like x"):
        ops.tfmeta_max_pool_take(x=image, values=image[:, :2], window=[2, 2, 2, 2, 0, 0, 2, 2])
    with pytest.raises(tf.errors.InvalidArgumentError, match="each window must have a pixel"):
        ops.tfmeta_max_pool_take(x=image, values=image, window=[2, 2, 2, 2, 0, 0, 3, 2])


def test_they_are_not_used_under_xla_nor_in_other_precisions() -> None:
    seen = []

    def look(x: Any) -> Any:
        seen.append(kernels.usable(x))
        return x

    tf.function(look, jit_compile=True)(tf.ones(2))
    tf.function(look)(tf.ones(2))
    tf.function(look)(tf.ones(2, tf.float64))
    assert seen == [False, True, False]
