"""Prototypes and the distances to them, batched over tasks.

Contiguous NumPy arrays of float32 or float64 go to the C++ core as they are and give NumPy arrays.
Everything else becomes tensors and gives tensors, which can be differentiated any number of times.
Half-precision numbers are computed in float32, and the result is rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta import _core, distances
from tfmeta.checks import check_count
from tfmeta.types import Tensor

_NATIVE = (np.dtype(np.float32).str, np.dtype(np.float64).str)
_HALVES = (tf.float16, tf.bfloat16)
_FLOATS = (tf.float32, tf.float64, *_HALVES)


def prototypes(embeddings: Tensor, labels: Tensor, ways: int | Tensor) -> Tensor:
    """Return the mean embedding of each class.

    `c_k = Σ_{i: y_i = k} z_i / |{i: y_i = k}|`; with tensors, a class without examples gets zeros,
    and an example whose label is -1, because it only fills up a meta-batch, belongs to none.

    Args:
        embeddings: `[tasks, n, d]`.
        labels: Integers `[tasks, n]` in `0..ways-1`.
        ways: Number of classes.

    Returns:
        `[tasks, ways, d]`.

    Raises:
        TypeError: If `ways` is no integer.
        ValueError: If types or shapes are others; with arrays also if a label is out of range or
            a class has no example.

    Example:
        >>> tfmeta.ops.prototypes([[[0.0], [2.0], [5.0]]], [[0, 0, 1]], ways=2)
        [[[1.0], [5.0]]]

    Reference:
        Snell, Swersky and Zemel, *Prototypical Networks for Few-shot Learning*, NeurIPS 2017.
    """
    if not isinstance(ways, tf.Tensor):
        ways = check_count("ways", ways)
        if ways >= 2**31:
            raise ValueError(f"`ways` must be less than 2**31. Received: ways={ways}")
    if _plain(embeddings) and isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        labels = np.ascontiguousarray(labels, np.int64)
        return _core.prototypes(embeddings, labels, ways)
    embeddings, labels = tf.convert_to_tensor(embeddings), tf.convert_to_tensor(labels)
    if (
        embeddings.dtype not in _FLOATS
        or not labels.dtype.is_integer
        or not _fit(embeddings.shape, labels.shape, (3, 2), axes=(0, 1))
    ):
        raise ValueError(
            "`embeddings` must be floating-point numbers [tasks, n, d] and `labels` integers "
            f"[tasks, n]. Received: embeddings={_described(embeddings)}, "
            f"labels={_described(labels)}"
        )
    if embeddings.dtype in _HALVES:
        means = distances.prototypes(tf.cast(embeddings, tf.float32), labels, ways)
        return tf.cast(means, embeddings.dtype)
    return distances.prototypes(embeddings, labels, ways)


def squared_euclidean(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Return `‖q − c‖²` for every query and prototype.

    The differences are formed before they are squared: the expanded form `‖q‖² − 2qc + ‖c‖²`
    cancels when embeddings lie close together far from the origin, and so do its gradients.

    Args:
        queries: `[tasks, q, d]`.
        prototypes: `[tasks, ways, d]`.

    Returns:
        `[tasks, q, ways]`, at least 0.

    Raises:
        ValueError: If types or shapes are others.
    """
    if _plain(queries) and _plain(prototypes) and queries.dtype == prototypes.dtype:
        return _core.squared_euclidean(queries, prototypes)
    return _measured(distances.squared_euclidean, queries, prototypes)


def cosine_similarity(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Return `q·c / (‖q‖ ‖c‖)` for every query and prototype; 0 where either is zero.

    Args:
        queries: `[tasks, q, d]`.
        prototypes: `[tasks, ways, d]`.

    Returns:
        `[tasks, q, ways]` in `[-1, 1]`, up to rounding. Norms are taken to be 1e-6 at least.

    Raises:
        ValueError: If types or shapes are others.
    """
    if _plain(queries) and _plain(prototypes) and queries.dtype == prototypes.dtype:
        return _core.cosine_similarity(queries, prototypes)
    return _measured(distances.cosine_similarity, queries, prototypes)


def _plain(x: Tensor) -> bool:
    """Return whether the core can take `x` as it is."""
    return isinstance(x, np.ndarray) and x.dtype.str in _NATIVE and x.flags.carray


def _measured(measure: Any, queries: Tensor, prototypes: Tensor) -> Tensor:
    queries, prototypes = tf.convert_to_tensor(queries), tf.convert_to_tensor(prototypes)
    dtype = queries.dtype
    if (
        dtype not in _FLOATS
        or prototypes.dtype != dtype
        or not _fit(queries.shape, prototypes.shape, (3, 3), axes=(0, 2))
    ):
        raise ValueError(
            "`queries` and `prototypes` must be floating-point numbers of one type, [tasks, q, d] "
            f"and [tasks, ways, d]. Received: queries={_described(queries)}, "
            f"prototypes={_described(prototypes)}"
        )
    if dtype in _HALVES:
        return tf.cast(
            measure(tf.cast(queries, tf.float32), tf.cast(prototypes, tf.float32)), dtype
        )
    return measure(queries, prototypes)


def _fit(one: Any, other: Any, ranks: tuple[int, int], axes: tuple[int, int]) -> bool:
    """Return whether two shapes have these ranks and agree in these axes, as far as is known."""
    if one.rank is None or other.rank is None:
        return True
    return (one.rank, other.rank) == ranks and all(
        one[i] == other[i] or one[i] is None or other[i] is None for i in axes
    )


def _described(x: Tensor) -> str:
    return f"{x.dtype.name}{x.shape}"
