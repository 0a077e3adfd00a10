"""Prototypes and distances of tensors: by a C++ kernel, or composed of TensorFlow's operations.

`tfmeta.ops` checks what comes here: tensors of one floating type, float32 or float64.
"""

from __future__ import annotations

import tensorflow as tf

from tfmeta.kernels import library, threads, usable
from tfmeta.types import Nest, Tensor

_TYPES = (tf.float32, tf.float64)


def prototypes(embeddings: Tensor, labels: Tensor, ways: int | Tensor) -> Tensor:
    """Return the mean of each class, `[tasks, ways, d]`; zeros for one without examples."""
    labels = tf.cast(labels, tf.int64)
    if not usable(embeddings, types=_TYPES):
        members = tf.one_hot(labels, ways, axis=-1, dtype=embeddings.dtype)
        totals = tf.matmul(members, embeddings, transpose_a=True)
        return tf.math.divide_no_nan(totals, tf.reduce_sum(members, axis=1)[..., None])
    number = tf.cast(ways, tf.int64)
    means = library().tfmeta_prototypes(
        embeddings=embeddings, labels=labels, ways=number, threads=threads()
    )
    if not tf.executing_eagerly():
        tasks, _, depth = embeddings.shape
        means.set_shape([tasks, tf.get_static_value(ways), depth])
    return means


def squared_euclidean(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Return `‖q − c‖²`, `[tasks, q, ways]`."""
    if usable(queries, prototypes, types=_TYPES):
        return library().tfmeta_squared_euclidean(
            queries=queries, prototypes=prototypes, threads=threads()
        )
    return tf.reduce_sum(tf.square(_differences(queries, prototypes)), axis=-1)


def cosine_similarity(queries: Tensor, prototypes: Tensor) -> Tensor:
    """Return `q·c / (‖q‖ ‖c‖)`, `[tasks, q, ways]`."""
    if usable(queries, prototypes, types=_TYPES):
        return library().tfmeta_cosine_similarity(
            queries=queries, prototypes=prototypes, threads=threads()
        )
    return _cosine(queries, prototypes)


def _differences(queries: Tensor, prototypes: Tensor) -> Tensor:
    return queries[:, :, None, :] - prototypes[:, None, :, :]


def _cosine(queries: Tensor, prototypes: Tensor) -> Tensor:
    queries = tf.math.l2_normalize(queries, axis=-1)
    prototypes = tf.math.l2_normalize(prototypes, axis=-1)
    return tf.matmul(queries, prototypes, transpose_b=True)


@tf.RegisterGradient("TfmetaPrototypes")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, to_means: Tensor) -> Nest:
    _, labels, _ = op.inputs
    to_embeddings = library().tfmeta_prototypes_gradient(
        to_means=to_means, labels=labels, threads=threads()
    )
    to_embeddings.set_shape(op.inputs[0].shape)
    return to_embeddings, None, None


@tf.RegisterGradient("TfmetaPrototypesGradient")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, a: Tensor) -> Nest:
    to_means, labels = op.inputs
    return prototypes(a, labels, tf.shape(to_means)[1]), None


@tf.RegisterGradient("TfmetaSquaredEuclidean")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, adjoint: Tensor) -> Nest:
    queries, prototypes = op.inputs
    return _gradient_of_squares(queries, prototypes, adjoint)


@tf.RegisterGradient("TfmetaSquaredEuclideanGradient")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, a: Tensor, b: Tensor) -> Nest:
    # With weights w, the gradients are 2 Σ w (q − c) to q, and less that to c. Hence
    # ⟨a, to_q⟩ + ⟨b, to_c⟩ = 2 Σ w ⟨a − b, q − c⟩: the pairs a, b and q, c may change places.
    queries, prototypes, adjoint = op.inputs
    products = _differences(a, b) * _differences(queries, prototypes)
    return *_gradient_of_squares(a, b, adjoint), 2 * tf.reduce_sum(products, axis=-1)


def _gradient_of_squares(
    queries: Tensor, prototypes: Tensor, adjoint: Tensor
) -> tuple[Tensor, Tensor]:
    to_queries, to_prototypes = library().tfmeta_squared_euclidean_gradient(
        queries=queries, prototypes=prototypes, adjoint=adjoint, threads=threads()
    )
    return to_queries, to_prototypes


@tf.RegisterGradient("TfmetaCosineSimilarity")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, adjoint: Tensor) -> Nest:
    queries, prototypes = op.inputs
    to_queries, to_prototypes = library().tfmeta_cosine_similarity_gradient(
        queries=queries, prototypes=prototypes, adjoint=adjoint, threads=threads()
    )
    return to_queries, to_prototypes


@tf.RegisterGradient("TfmetaCosineSimilarityGradient")  # type: ignore[untyped-decorator]
def _(op: tf.Operation, a: Tensor, b: Tensor) -> Nest:
    inputs = list(op.inputs)
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs[:2])
            similarity = _cosine(*inputs[:2])
        gradients = inner.gradient(similarity, inputs[:2], inputs[2])
    return outer.gradient(gradients, inputs, [a, b])
