"""Prototypes and the distances to them, batched over tasks."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def prototypes(embeddings: Any, labels: Any, ways: Any) -> Any:
    """Return the mean embedding of each class.

    `c_k = Σ_{i: y_i = k} z_i / |{i: y_i = k}|`; a class without examples gets zeros.

    Args:
        embeddings: `[tasks, n, d]`.
        labels: Integers `[tasks, n]` in `0..ways-1`.
        ways: Number of classes.

    Returns:
        `[tasks, ways, d]`.

    Example:
        >>> tfmeta.ops.prototypes([[[0.0], [2.0], [5.0]]], [[0, 0, 1]], ways=2)
        [[[1.0], [5.0]]]

    Reference:
        Snell, Swersky and Zemel, *Prototypical Networks for Few-shot Learning*, NeurIPS 2017.
    """
    embeddings = tf.convert_to_tensor(embeddings)
    members = tf.one_hot(labels, ways, axis=-1, dtype=embeddings.dtype)
    totals = tf.matmul(members, embeddings, transpose_a=True)
    counts = tf.reduce_sum(members, axis=1)[..., None]
    return tf.math.divide_no_nan(totals, counts)


def squared_euclidean(queries: Any, prototypes: Any) -> Any:
    """Return `‖q − c‖²` for every query and prototype.

    The differences are formed before they are squared: the expanded form `‖q‖² − 2qc + ‖c‖²`
    cancels when embeddings lie close together far from the origin.

    Args:
        queries: `[tasks, q, d]`.
        prototypes: `[tasks, ways, d]`.

    Returns:
        `[tasks, q, ways]`, at least 0.
    """
    queries, prototypes = tf.convert_to_tensor(queries), tf.convert_to_tensor(prototypes)
    difference = queries[:, :, None, :] - prototypes[:, None, :, :]
    return tf.reduce_sum(tf.square(difference), axis=-1)


def cosine_similarity(queries: Any, prototypes: Any) -> Any:
    """Return `q·c / (‖q‖ ‖c‖)` for every query and prototype; 0 where either is zero.

    Args:
        queries: `[tasks, q, d]`.
        prototypes: `[tasks, ways, d]`.

    Returns:
        `[tasks, q, ways]` in `[-1, 1]`.
    """
    queries = tf.math.l2_normalize(queries, axis=-1)
    prototypes = tf.math.l2_normalize(prototypes, axis=-1)
    return tf.matmul(queries, prototypes, transpose_b=True)
