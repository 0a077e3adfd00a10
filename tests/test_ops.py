"""Prototypes and distances: the kernels against their twins, their gradients, bad input."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from tfmeta import MetaLearner, _core, distances, kernels, ops

MEASURES = ["squared_euclidean", "cosine_similarity"]
needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="there is no tfmeta._tf_ops")


def test_prototypes_are_class_means():
    z = np.array([[[0.0], [2.0], [5.0]], [[1.0], [3.0], [8.0]]])
    labels = np.array([[0, 0, 1], [1, 0, 1]])
    np.testing.assert_allclose(ops.prototypes(z, labels, 2), [[[1], [5]], [[3], [4.5]]])
    assert isinstance(ops.prototypes(z, labels, 2), np.ndarray)
    np.testing.assert_allclose(ops.prototypes(tf.constant(z), labels, 3)[:, 2], 0)


@pytest.mark.parametrize("avoid", [False, True])
def test_a_label_of_minus_one_is_of_no_class(avoid: bool) -> None:
    z = tf.constant([[[0.0], [2.0], [np.nan], [5.0]]])
    with kernels.avoided() if avoid else contextlib.nullcontext(), tf.GradientTape() as tape:
        kept = tf.where(tf.math.is_nan(z), 0.0, z)
        tape.watch(kept)
        means = ops.prototypes(kept, [[0, 0, -1, 1]], 2)
    np.testing.assert_allclose(means, [[[1], [5]]])
    np.testing.assert_allclose(tape.gradient(means, kept), [[[0.5], [0.5], [0], [1]]])
    with pytest.raises(ValueError, match=r"`labels` must be in 0..ways-1.*Received: -1"):
        ops.prototypes(np.zeros([1, 2, 3]), np.array([[0, -1]]), 1)


def test_cosine_similarity_of_zeros_is_zero():
    q, c = np.array([[[3.0, 0], [1, 1], [0, 0]]]), np.array([[[2.0, 0], [0, 5], [0, 0]]])
    half = np.sqrt(0.5)
    expected = [[[1, 0, 0], [half, half, 0], [0, 0, 0]]]
    np.testing.assert_allclose(ops.cosine_similarity(q, c), expected)
    np.testing.assert_allclose(ops.cosine_similarity(tf.constant(q), tf.constant(c)), expected)


CASES = st.fixed_dictionaries(
    {
        "tasks": st.integers(1, 3),
        "queries": st.integers(1, 9),
        # Fewer than a tile has columns, as many, and more.
        "ways": st.sampled_from([1, 2, 3, 4, 5, 6, 9, 14]),
        # Fewer than a register holds, as many, and more; the same of registers in a tile.
        "depth": st.sampled_from([1, 3, 8, 16, 20, 64, 70, 2100]),
        "dtype": st.sampled_from(["float32", "float64"]),
        "seed": st.integers(0, 99),
    }
)


def made(case: dict[str, Any], mean: float = 0.0, spread: float = 1.0) -> tuple[Any, Any, Any]:
    """Return queries, prototypes and an adjoint of their pairs."""
    rng = np.random.default_rng(case["seed"])
    tasks, queries, ways, depth = (case[name] for name in ("tasks", "queries", "ways", "depth"))
    middle = mean * rng.normal(size=(tasks, 1, depth))
    q = middle + spread * rng.normal(size=(tasks, queries, depth))
    c = middle + spread * rng.normal(size=(tasks, ways, depth))
    g = rng.normal(size=(tasks, queries, ways))
    return tuple(x.astype(case["dtype"]) for x in (q, c, g))


def gradients(measure: Any, q: Any, c: Any, g: Any) -> Any:
    q, c = tf.constant(q), tf.constant(c)
    with tf.GradientTape() as tape:
        tape.watch([q, c])
        y = measure(q, c)
    return tape.gradient(y, [q, c], tf.constant(g))


# Of float32: what rounding makes of the least and of the largest numbers that appear.
@settings(max_examples=60, deadline=None)
@given(CASES, st.sampled_from([(0.0, 1.0), (1e3, 1e-3)]))
def test_squared_euclidean(case: dict[str, Any], where: tuple[float, float]) -> None:
    q, c, g = made(case, *where)
    x, y, w = (z.astype("float64") for z in (q, c, g))
    tolerance = 1e-6 if case["dtype"] == "float32" else 1e-13
    expected = reference.squared_euclidean(x, y)
    for got in (ops.squared_euclidean(q, c), ops.squared_euclidean(tf.constant(q), c)):
        assert got.dtype == case["dtype"]
        np.testing.assert_allclose(got, expected, rtol=tolerance)
    # What is added up in a gradient may cancel, rightly; so the bound is by the sizes of the terms.
    sizes = [abs(2 * w[..., None] * (x[:, :, None] - y[:, None])).sum(axis) for axis in (2, 1)]
    twins = reference.squared_euclidean_gradient(x, y, w)
    for got, twin, size in zip(
        gradients(ops.squared_euclidean, q, c, g), twins, sizes, strict=True
    ):
        assert (abs(got.numpy() - twin) <= tolerance * size).all()


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_cosine_similarity(case: dict[str, Any]) -> None:
    q, c, g = made(case)
    x, y, w = (z.astype("float64") for z in (q, c, g))
    tolerance = 1e-6 if case["dtype"] == "float32" else 1e-13
    expected = reference.cosine_similarity(x, y)
    for got in (ops.cosine_similarity(q, c), ops.cosine_similarity(tf.constant(q), c)):
        assert got.dtype == case["dtype"]
        np.testing.assert_allclose(got, expected, atol=tolerance)
    twins = reference.cosine_similarity_gradient(x, y, w)
    sizes = [abs(w).sum(axis)[..., None] for axis in (2, 1)]
    norms = [np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y)]
    for got, twin, size, norm in zip(
        gradients(ops.cosine_similarity, q, c, g), twins, sizes, norms, strict=True
    ):
        assert (abs(got.numpy() - twin) <= 2 * tolerance * size / norm).all()


@settings(max_examples=30, deadline=None)
@given(CASES)
def test_prototypes(case: dict[str, Any]) -> None:
    ways, dtype = case["ways"], case["dtype"]
    rng = np.random.default_rng(case["seed"])
    others = rng.integers(0, ways, (case["tasks"], 7))
    labels = np.array([rng.permutation([*range(ways), *some]) for some in others])
    z = rng.normal(size=(*labels.shape, case["depth"])).astype(dtype)
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    expected = reference.prototypes(z.astype("float64"), labels, ways)
    for got in (ops.prototypes(z, labels, ways), ops.prototypes(tf.constant(z), labels, ways)):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, expected, atol=tolerance)


def test_far_from_the_origin_the_expanded_form_would_be_wrong() -> None:
    q, c, _ = made(
        {"tasks": 1, "queries": 5, "ways": 4, "depth": 64, "dtype": "float32", "seed": 0}, 1e3, 1e-3
    )
    exact = reference.squared_euclidean(q.astype("float64"), c.astype("float64"))
    expanded = (q**2).sum(-1)[..., None] - 2 * q @ c.mT + (c**2).sum(-1)[:, None]
    assert (abs(expanded / exact - 1) > 1).any()
    assert (abs(ops.squared_euclidean(q, c) / exact - 1) < 1e-6).all()


def derivatives(measure: Any, *values: Any) -> list[Any]:
    """Return values, gradients, and the gradients of a product of both, which has all of them."""
    with tf.GradientTape() as outer:
        outer.watch(values)
        with tf.GradientTape() as inner:
            inner.watch(values[:2])
            y = measure(*values[:2])
        first = inner.gradient(y, values[:2], values[2])
        loss = tf.reduce_sum(tf.sin(y)) + sum(tf.reduce_sum(tf.sin(x)) for x in first)
    return [y, *first, *outer.gradient(loss, values)]


@needs_kernels
@pytest.mark.parametrize("name", MEASURES)
def test_derivatives_are_those_of_the_composite(name: str) -> None:
    case = {"tasks": 2, "queries": 7, "ways": 5, "depth": 70, "seed": 0}
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-13)):
        # Of a size that makes the numbers' sine no matter of chance.
        values = [tf.constant(x / 8) for x in made({**case, "dtype": dtype})]

        def all_of(*values: Any) -> Any:
            return derivatives(getattr(ops, name), *values)

        with kernels.avoided():
            composite = all_of(*values)
        graph = tf.function(all_of)
        assert any(
            op.type.startswith("Tfmeta")
            for op in graph.get_concrete_function(*values).graph.get_operations()
        )
        unknown = tf.function(all_of, input_signature=[tf.TensorSpec([None] * 3, dtype)] * 3)
        compiled = tf.function(all_of, jit_compile=True)
        for ours in (all_of, graph, unknown, compiled):
            for one, other in zip(ours(*values), composite, strict=True):
                scale = np.abs(other).max()
                np.testing.assert_allclose(one / scale, other / scale, atol=tolerance)


@pytest.mark.parametrize("name", MEASURES)
def test_derivatives_against_finite_differences(name: str) -> None:
    case = {"tasks": 2, "queries": 3, "ways": 5, "depth": 6, "dtype": "float64", "seed": 1}
    values = made(case)
    rng = np.random.default_rng(2)
    directions = [rng.normal(size=x.shape) for x in values]

    def scalars(step: float) -> Any:
        """Return a function of the values, one of their gradients, along a line."""
        moved = [tf.constant(x + step * d) for x, d in zip(values, directions, strict=True)]
        y, *first, _, _, _ = derivatives(getattr(ops, name), *moved)
        return np.array([np.sum(np.sin(y)), sum(np.sum(np.sin(x)) for x in first)])

    _, *_, to_q, to_c, to_g = derivatives(getattr(ops, name), *map(tf.constant, values))
    along = sum(np.sum(x * d) for x, d in zip((to_q, to_c, to_g), directions, strict=True))
    numeric = (scalars(1e-5) - scalars(-1e-5)) / 2e-5
    np.testing.assert_allclose(along, numeric.sum(), rtol=1e-7)
    # The first derivative by itself.
    q, c, _ = map(tf.constant, values)
    to_q, to_c = gradients(getattr(ops, name), q, c, np.cos(getattr(ops, name)(q, c)))
    along = np.sum(to_q * directions[0]) + np.sum(to_c * directions[1])
    np.testing.assert_allclose(along, numeric[0], rtol=1e-7)


def test_derivatives_of_prototypes() -> None:
    rng = np.random.default_rng(0)
    z, labels = tf.constant(rng.normal(size=(2, 9, 5))), rng.integers(0, 4, (2, 9))

    def both() -> Any:
        with tf.GradientTape() as outer:
            outer.watch(z)
            with tf.GradientTape() as inner:
                inner.watch(z)
                y = tf.reduce_sum(tf.sin(ops.prototypes(z, labels, 5)))
            first = inner.gradient(y, z)
        return first, outer.gradient(first, z)

    with kernels.avoided():
        composite = both()
    for ours in (both(), tf.function(both)(), tf.function(both, jit_compile=True)()):
        for one, other in zip(ours, composite, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


@needs_kernels
@pytest.mark.parametrize("name", MEASURES)
def test_threads_change_nothing(name: str) -> None:
    case = {"tasks": 3, "queries": 250, "ways": 90, "depth": 130, "dtype": "float32", "seed": 0}
    q, c, g = made(case)
    measure = getattr(_core, name)
    np.testing.assert_array_equal(measure(q, c, threads=1), measure(q, c, threads=3))
    gradient = getattr(kernels.library(), f"tfmeta_{name}_gradient")
    one, other = (gradient(queries=q, prototypes=c, adjoint=g, threads=n) for n in (1, 3))
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_single(dtype: str) -> None:
    q, c, _ = made({"tasks": 1, "queries": 4, "ways": 3, "depth": 9, "dtype": "float32", "seed": 0})
    q, c = tf.cast(q, dtype), tf.cast(c, dtype)
    for name in MEASURES:
        got = getattr(ops, name)(q, c)
        exact = getattr(ops, name)(tf.cast(q, "float32"), tf.cast(c, "float32"))
        np.testing.assert_array_equal(got, tf.cast(exact, dtype))
    means = ops.prototypes(q, [[0, 1, 1, 0]], 2)
    exact = ops.prototypes(tf.cast(q, "float32"), [[0, 1, 1, 0]], 2)
    np.testing.assert_array_equal(means, tf.cast(exact, dtype))


def test_what_is_static_stays_known() -> None:
    @tf.function(input_signature=[tf.TensorSpec([2, None, 7]), tf.TensorSpec([2, None], tf.int32)])
    def trace(z: Any, labels: Any) -> Any:
        means = ops.prototypes(z, labels, 3)
        assert means.shape.as_list() == [2, 3, 7]
        assert ops.prototypes(z, labels, tf.reduce_max(labels) + 1).shape.as_list() == [2, None, 7]
        pairs = ops.squared_euclidean(z, means)
        assert pairs.shape.as_list() == [2, None, 3]
        (to_z,) = tf.gradients(pairs, z)
        assert to_z.shape.as_list() == [2, None, 7]
        return to_z

    assert trace(tf.ones([2, 4, 7]), tf.zeros([2, 4], tf.int32)).shape == [2, 4, 7]


Q, C, LABELS = np.ones((2, 4, 3), "float32"), np.ones((2, 5, 3), "float32"), [[0, 1, 0, 1]] * 2


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("queries", "prototypes"),
    [
        (Q, C[0]),
        (Q[0], C),
        (Q, C[:1]),
        (Q, C[..., :2].copy()),
        (Q, C.astype("float64")),
    ],
)
def test_bad_pairs_are_refused(name: str, queries: Any, prototypes: Any) -> None:
    with pytest.raises(ValueError, match=r"must be.*Received: "):
        getattr(ops, name)(queries, prototypes)
    with pytest.raises(ValueError, match=r"`queries` and `prototypes` must be.*Received: queries="):
        getattr(ops, name)(tf.constant(queries), tf.constant(prototypes))


def test_bad_embeddings_are_refused() -> None:
    labels = np.array(LABELS)
    for z, y in ((Q[0], labels), (Q, labels[0]), (Q, labels[:, :3])):
        with pytest.raises(ValueError, match=r"must be.*Received: "):
            ops.prototypes(z, y, 2)
        with pytest.raises(ValueError, match=r"`embeddings` must be.*Received: embeddings="):
            ops.prototypes(tf.constant(z), y, 2)
    for z, y in ((Q.astype(int), labels), (Q, labels + 0.0)):
        with pytest.raises(ValueError, match=r"`embeddings` must be.*Received: embeddings="):
            ops.prototypes(z, y, 2)
    with pytest.raises(ValueError, match=r"`ways` must be at least 1.*Received: ways=0"):
        ops.prototypes(Q, labels, 0)
    with pytest.raises(TypeError, match=r"`ways` must be an integer. Received: ways=2.7"):
        ops.prototypes(Q, labels, 2.7)
    with pytest.raises(ValueError, match=r"`labels` must be in 0..ways-1.*Received: 1"):
        ops.prototypes(Q, labels, 1)
    with pytest.raises(ValueError, match="without class 2 in task 0"):
        ops.prototypes(Q, labels, 3)


@needs_kernels
def test_operations_refuse_what_does_not_fit() -> None:
    gradient = kernels.library().tfmeta_squared_euclidean_gradient
    with pytest.raises(tf.errors.InvalidArgumentError, match="queries must be"):
        distances.squared_euclidean(tf.constant(Q), tf.constant(C[..., :2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="adjoint must be"):
        gradient(queries=Q, prototypes=C, adjoint=tf.ones([2, 5, 4]), threads=1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="embeddings must be"):
        distances.prototypes(tf.constant(Q), tf.constant(LABELS)[:1], 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels must be in 0..ways-1"):
        distances.prototypes(tf.constant(Q), tf.constant(LABELS) - 2, 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="ways must be such that"):
        distances.prototypes(tf.constant(Q), tf.constant(LABELS), tf.constant(2**62, tf.int64))
    with pytest.raises(tf.errors.InvalidArgumentError, match="ways must be"):
        distances.prototypes(tf.constant(Q), tf.constant(LABELS), -1)


def test_a_saved_model_needs_nothing_of_tfmeta(tmp_path: Any) -> None:
    class Nearest(MetaLearner):
        def adapt_task(self, support_x: Any, support_y: Any, *, training: bool) -> Any:
            return ops.prototypes(self.model(support_x)[None], support_y[None], ways=2)

        def predict_task(self, state: Any, query_x: Any, *, training: bool) -> Any:
            return -ops.squared_euclidean(self.model(query_x)[None], state)[0]

    learner = Nearest(keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)]))
    x, y = np.random.default_rng(0).normal(size=(6, 3)).astype("float32"), np.array([0, 1] * 3)
    learner({"support_x": x[None], "support_y": y[None], "query_x": x[None]})
    adapted = learner.adapt(x, y)
    adapted.export(tmp_path, verbose=False)
    proto = (tmp_path / "saved_model.pb").read_bytes()
    assert b"Tfmeta" not in proto
    loaded = tf.saved_model.load(tmp_path)
    np.testing.assert_allclose(loaded.serve(x), adapted(x), rtol=1e-5)
