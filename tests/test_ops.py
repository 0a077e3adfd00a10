"""Prototypes and distances: shapes, dtypes and values on cases small enough to see."""

import numpy as np
import pytest

from tfmeta import ops


def test_prototypes_are_class_means():
    z = np.array([[[0.0], [2.0], [5.0]], [[1.0], [3.0], [8.0]]])
    labels = np.array([[0, 0, 1], [1, 0, 1]])
    np.testing.assert_allclose(ops.prototypes(z, labels, 2), [[[1], [5]], [[3], [4.5]]])
    np.testing.assert_allclose(ops.prototypes(z, labels, 3)[:, 2], 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squared_euclidean(dtype):
    rng = np.random.default_rng(0)
    q, c = rng.normal(size=(2, 4, 3)).astype(dtype), rng.normal(size=(2, 5, 3)).astype(dtype)
    expected = ((q[:, :, None] - c[:, None]) ** 2).sum(-1)
    distances = ops.squared_euclidean(q, c)
    assert distances.dtype == dtype
    np.testing.assert_allclose(distances, expected, rtol=1e-6)


def test_cosine_similarity():
    q, c = np.array([[[3.0, 0], [1, 1]]]), np.array([[[2.0, 0], [0, 5], [-1, 0]]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(ops.cosine_similarity(q, c), [[[1, 0, -1], [half, half, -half]]])
