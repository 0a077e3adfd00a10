"""The C++ kernels against their readable twins, and what happens where they cannot be used."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from tests.rows import rows
from tfmeta import kernels
from tfmeta.packed import normalization

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="there is no tfmeta._tf_ops")


@settings(max_examples=30, deadline=None)
@given(
    # Two or three examples would make much of each rounding.
    rows=st.integers(8, 300),
    channels=st.integers(1, 200),
    mean=st.sampled_from([0.0, 10.0]),
    seed=st.integers(0, 99),
)
def test_derivatives_of_batch_norm(rows: int, channels: int, mean: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wide = [rng.normal(size=(rows, channels)).astype("float32") for _ in range(3)]
    narrow = [rng.normal(size=channels).astype("float32") for _ in range(3)]
    (dy, x, a), (gamma, p, q) = wide, narrow
    x += mean
    exact = [z.astype("float64") for z in (dy, x, gamma, a, p, q)]
    # TensorFlow's mean is a sum of all rows, and off by some digits.
    statistics = [z.astype("float32") for z in (exact[1].mean(0) + 1e-3, exact[1].var(0))]
    first = kernels.batch_norm_first(dy, x, gamma, *statistics, 1e-3)
    second = kernels.batch_norm_second(dy, x, gamma, *statistics, a, p, q, 1e-3)
    twins = reference.batch_norm_first(*exact[:3], 1e-3), reference.batch_norm_second(*exact, 1e-3)
    for got, expected in zip((*first, *second), (*twins[0], *twins[1]), strict=True):
        scale = np.abs(expected).max()
        # Far from the origin the inputs themselves have fewer digits.
        np.testing.assert_allclose(got / scale, expected / scale, atol=2e-5 * max(mean, 1))


@pytest.mark.parametrize("rows", [1, 7, 8, 21, 300])
def test_batch_norm(rows: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.normal(10, 3, size=(rows, 70)).astype("float32")
    gamma, beta = rng.normal(size=(2, 70)).astype("float32")
    y, mean, variance = kernels.batch_norm(x, gamma, beta, 1e-3)
    x = x.astype("float64")
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-6)
    expected = gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3) + beta
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_batch_norm_hides_nothing_that_is_not_finite(bad: float) -> None:
    x = np.ones((20, 3), "float32")
    x[13, 1] = bad
    y, _, variance = kernels.batch_norm(x, np.ones(3, "float32"), np.zeros(3, "float32"), 1e-3)
    assert np.isnan(y[:, 1]).all()
    assert np.isnan(variance[1])
    np.testing.assert_array_equal(y[:, ::2], np.zeros((20, 2)))


def test_batch_norm_of_nothing_has_no_gradient() -> None:
    nothing, zeros, nan = tf.zeros([0, 3]), tf.zeros([3]), tf.fill([3], np.nan)
    y, *statistics = kernels.batch_norm(nothing, zeros, zeros, 1e-3)
    assert y.shape == (0, 3)
    assert np.isnan(statistics).all()
    first = kernels.batch_norm_first(nothing, nothing, zeros, nan, nan, 1e-3)
    for got, shape in zip(first, [(0, 3), (3,), (3,)], strict=True):
        np.testing.assert_array_equal(got, np.zeros(shape))
    _, _, to_gamma = kernels.batch_norm_second(
        nothing, nothing, zeros, nan, nan, nothing, zeros, zeros, 1e-3
    )
    np.testing.assert_array_equal(to_gamma, zeros)


def test_threads_share_batch_norm() -> None:
    rng = np.random.default_rng(0)
    dy, x, a = (rng.normal(size=(1000, 150)).astype("float32") for _ in range(3))
    gamma, mean, variance, p, q = rng.random((5, 150)).astype("float32")
    first = {"dy": dy, "x": x, "gamma": gamma, "mean": mean, "variance": variance, "epsilon": 1e-3}
    second = {**first, "a": a, "p": p, "q": q}
    ops = kernels.library()
    forward = {"x": x, "gamma": gamma, "beta": p, "epsilon": 1e-3}
    for operation, inputs in (
        (ops.tfmeta_batch_norm, forward),
        (ops.tfmeta_batch_norm_first, first),
        (ops.tfmeta_batch_norm_second, second),
    ):
        for one, three in zip(*(operation(**inputs, threads=n) for n in (1, 3)), strict=True):
            np.testing.assert_array_equal(one, three)


def test_the_twins_are_the_composites() -> None:
    rng = np.random.default_rng(0)
    dy, x, a = (tf.constant(rng.normal(size=(9, 4))) for _ in range(3))
    gamma, p, q = (tf.constant(rng.normal(size=4)) for _ in range(3))
    inputs = [np.asarray(z) for z in (dy, x, gamma, a, p, q)]
    for composites, twins in (
        (normalization._first(dy, x, gamma, 1e-3), reference.batch_norm_first(*inputs[:3], 1e-3)),
        (
            normalization._second(dy, x, gamma, a, p, q, 1e-3),
            reference.batch_norm_second(*inputs, 1e-3),
        ),
    ):
        for one, other in zip(composites, twins, strict=True):
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
    ops = kernels.library()
    wide, narrow = tf.ones([4, 3]), tf.ones([3])
    first = {"dy": wide, "x": wide, "gamma": narrow, "mean": narrow, "variance": narrow}
    second = {**first, "a": wide, "p": narrow, "q": narrow}
    for operation, good in (
        (ops.tfmeta_batch_norm_first, first),
        (ops.tfmeta_batch_norm_second, second),
    ):
        for name in good:
            with pytest.raises(tf.errors.InvalidArgumentError, match="must be"):
                operation(**{**good, name: good[name][:2]}, epsilon=1e-3, threads=1)
        for name, bad in (("x", tf.ones([4, 2])), ("dy", tf.ones([4]))):
            with pytest.raises(tf.errors.InvalidArgumentError, match="must be"):
                operation(**{**good, name: bad}, epsilon=1e-3, threads=1)
    forward = {"x": wide, "gamma": narrow, "beta": narrow}
    for name, bad in (("x", tf.ones([4])), ("gamma", narrow[:2]), ("beta", tf.ones([1]))):
        with pytest.raises(tf.errors.InvalidArgumentError, match="must be"):
            ops.tfmeta_batch_norm(**{**forward, name: bad}, epsilon=1e-3, threads=1)
    image = tf.ones([1, 4, 4, 2])
    take = functools.partial(ops.tfmeta_max_pool_take, x=image, threads=1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="values must be like x"):
        take(values=image[:, :2], window=[2, 2, 2, 2, 0, 0, 2, 2])
    with pytest.raises(tf.errors.InvalidArgumentError, match="each window must have a pixel"):
        take(values=image, window=[2, 2, 2, 2, 0, 0, 3, 2])


X, KERNEL, Y = tf.ones([2, 4, 4, 6]), tf.ones([3, 3, 3, 8]), tf.ones([2, 2, 2, 8])
WINDOW = [3, 3, 1, 1, 0, 0, 4, 4, 2, 2, 2]


@pytest.mark.parametrize(
    ("operation", "operands", "window", "message"),
    [
        ("", {"x": X[0], "kernel": KERNEL}, WINDOW, "an image must be"),
        ("", {"x": X[:, :3], "kernel": KERNEL}, WINDOW, "an image must be"),
        ("", {"x": X[..., :5], "kernel": KERNEL}, WINDOW, "an image must be"),
        ("", {"x": X[..., :4], "kernel": KERNEL}, WINDOW, "as many channels"),
        ("", {"x": X, "kernel": KERNEL[0]}, WINDOW, "kernel must be"),
        ("", {"x": X, "kernel": KERNEL[:2]}, WINDOW, "kernel must be"),
        ("", {"x": X, "kernel": KERNEL[..., :7]}, WINDOW, "kernel must be"),
        ("_to_input", {"y": Y[:, :1], "kernel": KERNEL}, WINDOW, "an image must be"),
        ("_to_input", {"y": Y[..., :4], "kernel": KERNEL}, WINDOW, "as many filters"),
        ("_to_kernel", {"x": X[:1], "y": Y}, WINDOW, "as many examples"),
        ("", {"x": X, "kernel": KERNEL}, [*WINDOW[:10], 0], "must be at least 1"),
        ("", {"x": X, "kernel": KERNEL}, [3, 3, 0, 1, *WINDOW[4:]], "must be at least 1"),
        ("", {"x": X, "kernel": KERNEL}, WINDOW[:9], "must be at least 1"),
    ],
)
def test_operands_that_do_not_fit_are_refused(
    operation: str, operands: Any, window: list[int], message: str
) -> None:
    convolve = getattr(kernels.library(), f"tfmeta_convolution{operation}")
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        convolve(**operands, window=window, threads=1)


CONVOLUTIONS = st.fixed_dictionaries(
    {
        "n": st.integers(1, 3),
        "space": st.tuples(st.integers(3, 9), st.integers(3, 9)),
        "groups": st.integers(1, 3),
        # Fewer than a tile has rows, as many, and more; filters likewise as a tile has columns.
        "channels": st.sampled_from([1, 3, 5, 6, 7, 16, 33]),
        "filters": st.sampled_from([1, 5, 8, 16, 21, 64, 117]),
        "size": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "strides": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "padding": st.sampled_from(["SAME", "VALID"]),
    }
)


def made(case: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return x, the kernels and y, with the groups an axis of their own, in float32."""
    rng = np.random.default_rng(0)
    out, _ = kernels._window(case["space"], case["size"], case["strides"], case["padding"])
    x = rng.normal(size=(case["n"], *case["space"], case["groups"], case["channels"]))
    kernel = rng.normal(size=(*case["size"], case["channels"], case["groups"], case["filters"]))
    y = rng.normal(size=(case["n"], *out, case["groups"], case["filters"]))
    return x.astype("float32"), kernel.astype("float32"), y.astype("float32")


def merged(x: Any) -> Any:
    return tf.constant(x.reshape(*x.shape[:-2], -1))


@settings(max_examples=60, deadline=None)
@given(CONVOLUTIONS)
def test_convolutions(case: dict[str, Any]) -> None:
    x, kernel, y = made(case)
    size, strides, space = case["size"], case["strides"], case["space"]
    out, before = kernels._window(space, size, strides, case["padding"])
    a, k, b = (merged(z) for z in (x, kernel, y))
    products = kernels.convolution_products(a.shape, k.shape, strides, case["padding"])
    got = products.forward(a, k), products.to_input(b, k), products.to_kernel(a, b)
    x, kernel, y = (z.astype("float64") for z in (x, kernel, y))
    twins = (
        reference.convolution(x, kernel, strides, before, out),
        reference.convolution_to_input(y, kernel, strides, before, space),
        reference.convolution_to_kernel(x, y, size, strides, before),
    )
    for one, twin in zip(got, twins, strict=True):
        twin = twin.reshape(one.shape)
        np.testing.assert_allclose(one, twin, rtol=1e-5, atol=1e-5 * np.abs(twin).max())


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize(("channels", "filters"), [(33, 80), (3, 880)])
def test_threads_share_convolutions(strides: tuple[int, int], channels: int, filters: int) -> None:
    case = {"n": 3, "space": (16, 15), "groups": 2, "channels": channels, "filters": filters}
    case |= {"size": (3, 2), "strides": strides, "padding": "SAME"}
    a, k, b = (merged(z) for z in made(case))
    out, before = kernels._window(case["space"], case["size"], strides, "SAME")
    window = [*case["size"], *strides, *before, *case["space"], *out, case["groups"]]
    ops = kernels.library()
    for operation, operands in (
        (ops.tfmeta_convolution, {"x": a, "kernel": k}),
        (ops.tfmeta_convolution_to_input, {"y": b, "kernel": k}),
        (ops.tfmeta_convolution_to_kernel, {"x": a, "y": b}),
    ):
        one, three = (operation(**operands, window=window, threads=n) for n in (1, 3))
        np.testing.assert_array_equal(one, three)


@settings(max_examples=10, deadline=None)
@given(CONVOLUTIONS)
def test_derivatives_of_convolutions(case: dict[str, Any]) -> None:
    x, kernel, y = (merged(z) for z in made({**case, "groups": 1}))
    how = {"strides": case["strides"], "padding": case["padding"]}

    def thrice(convolve: Any, *values: Any) -> Any:
        """Return gradients of a product of the first derivatives: all three kernels' own."""
        with tf.GradientTape() as outer:
            outer.watch(values)
            with tf.GradientTape() as inner:
                inner.watch(values[:2])
                z = convolve(*values[:2])
            dx, dkernel = inner.gradient(z, values[:2], values[2])
            loss = tf.reduce_sum(dx**2) + tf.reduce_sum(dkernel**2)
        return outer.gradient(loss, values)

    ours = thrice(kernels.convolution_products(x.shape, kernel.shape, **how).forward, x, kernel, y)
    doubles = [tf.cast(z, tf.float64) for z in (x, kernel, y)]
    theirs = thrice(lambda x, k: tf.nn.convolution(x, k, data_format="NHWC", **how), *doubles)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())


@settings(max_examples=20, deadline=None)
@given(*[st.sampled_from([1, 2, 5, 16, 70])] * 4)
def test_products_and_all_derivatives(tasks: int, n: int, d: int, outputs: int) -> None:
    rng = np.random.default_rng(0)
    shapes = (tasks, n, d), (tasks, d, outputs), (tasks, n, outputs)
    arrays = [rng.normal(size=shape) for shape in shapes]

    def thrice(product: Any, dtype: str) -> list[Any]:
        x, kernel, upstream = (tf.constant(a, dtype) for a in arrays)
        with tf.GradientTape(persistent=True) as outer:
            outer.watch([x, kernel, upstream])
            with tf.GradientTape() as inner:
                inner.watch([x, kernel])
                y = product(x, kernel)
            first = inner.gradient(y, [x, kernel], upstream)
            scalar = tf.reduce_sum(first[0] ** 2) + tf.reduce_sum(first[1] ** 2)
        return [y, *first, *outer.gradient(scalar, [x, kernel, upstream])]

    ours, exact = thrice(kernels.product, "float32"), thrice(tf.matmul, "float64")
    for one, other in zip(ours, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("instructions", rows(["portable", "avx2"], ["portable", "avx2"]))
def test_older_processors_compute_the_same(instructions: str) -> None:
    code = (
        "from tests import test_kernels as t, test_ops as o; t.test_convolutions(); "
        "t.test_derivatives_of_convolutions(); t.test_products_and_all_derivatives(); "
        "o.test_squared_euclidean(); o.test_cosine_similarity()"
    )
    environment = {**os.environ, "TFMETA_MAX_CPU": instructions}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)


def test_they_are_not_used_under_xla_nor_in_other_precisions() -> None:
    seen = []

    def look(x: Any) -> Any:
        seen.append(kernels.usable(x))
        return x

    tf.function(look, jit_compile=True)(tf.ones(2))
    tf.function(look)(tf.ones(2))
    tf.function(look)(tf.ones(2, tf.float64))
    assert seen == [False, True, False]
