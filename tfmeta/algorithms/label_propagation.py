"""Label propagation: labels spread over the graph of a task's examples and queries.

Zhou et al., *Learning with Local and Global Consistency*, NeurIPS 2003; learnt over episodes by Liu
et al., *Learning to Propagate Labels: Transductive Propagation Network for Few-shot Learning*,
ICLR 2019.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.transductive_learner import TransductiveLearner
from tfmeta.checks import check_count, check_positive
from tfmeta.types import Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class LabelPropagation(TransductiveLearner):
    """Classify all queries of a task together, by spreading labels over a graph of neighbours.

    Support examples and queries are the nodes. Two of them are joined by the weight
    `W_ij = exp(−‖z_i − z_j‖² / (2 s² m))`, with m the mean squared distance of two nodes of the
    task, if one is among the k nearest of the other, and else by 0. With D the sums of W's rows,
    `P = W D⁻¹` and Y the labels of the support set, one-hot and zero for queries, the logits are
    the rows of `F = (I − α P)⁻¹ Y` of the queries: how often walks through the graph come by that
    begin at each class's examples and go on with probability α. It is a positive definite system
    of as many equations as there are nodes, which is solved in double precision.

    That is a variation in the paper of 2003. Its main form, the network's, has
    `S = D^(−1/2) W D^(−1/2)` for P and is had by `symmetric=True`. There the class whose examples
    have the nearest neighbours takes nearly all queries, the more the closer α is to 1, unless the
    encoder was trained with it: for an encoder that was trained elsewhere lower α then.

    `fit` learns the encoder through the solution, and s; what is among the nearest counts as fixed.
    The published network learns a length scale for each example from its feature maps; here the
    scale is the task's own, m, so that an encoder that was trained elsewhere will do, and s is one
    number for all.

    An answer depends on the queries that are asked together, in adapted models and exports as well.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen.
        neighbors: k, of a node; as published.
        alpha: α, between 0 and 1: how far labels spread; as published.
        length_scale: s, positive, as it begins.
        symmetric: Whether S is taken in the place of P.
        learn_length_scale: Whether the outer loop trains s.
        **kwargs: Those of `PrototypicalNetwork` that are not its distance's.

    Raises:
        TypeError: If `encoder` is not a Keras model, or `neighbors` is no integer.
        ValueError: If a value is out of range.

    Example:
        ```python
        learner = tfmeta.LabelPropagation(encoder)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.fit(sampler.dataset(8), steps_per_epoch=500, epochs=20)
        print(tfmeta.evaluate(learner, test_sampler))
        ```
    """

    def __init__(
        self,
        encoder: keras.Model,
        neighbors: int = 20,
        alpha: float = 0.99,
        length_scale: float = 0.2,
        *,
        symmetric: bool = False,
        learn_length_scale: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        check_positive("alpha", alpha)
        if alpha >= 1:
            raise ValueError(f"`alpha` must be less than 1. Received: alpha={alpha!r}")
        check_positive("length_scale", length_scale)
        self.neighbors = check_count("neighbors", neighbors)
        self.alpha = alpha
        self.length_scale = length_scale
        self.symmetric = bool(symmetric)
        self.learn_length_scale = learn_length_scale
        self.log_length_scale = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(math.log(length_scale)),
            trainable=learn_length_scale,
            name="log_length_scale",
        )

    def answer_together(self, state: dict[str, Tensor], embedded: Tensor, real: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        examples, votes = state["examples"], state["votes"]
        nodes = tf.concat([examples, embedded], 1)
        there = tf.concat([tf.reduce_sum(votes, -1), real], 1)
        weights = self._graph(tf.cast(nodes, tf.float64), tf.cast(there, tf.float64))
        degrees = tf.reduce_sum(weights, -1)
        joined = tf.cast(degrees > 0, degrees.dtype)  # what only fills up a task is not
        scales = joined * tf.math.rsqrt(degrees + (1 - joined))
        weights *= scales[:, :, None] * scales[:, None, :]
        system = tf.eye(tf.shape(nodes)[1], dtype=weights.dtype) - self.alpha * weights
        queries = tf.zeros_like(embedded[..., :1]) * tf.zeros_like(votes[:, :1])
        labels = tf.cast(tf.concat([votes, queries], 1), weights.dtype)
        if not self.symmetric:  # I − αP = D^½ (I − αS) D^(−½)
            labels *= scales[..., None]
        spread = tf.linalg.cholesky_solve(tf.linalg.cholesky(system), labels)
        if not self.symmetric:
            spread *= (scales * degrees)[..., None]
        return tf.cast(spread[:, tf.shape(examples)[1] :], embedded.dtype)

    def _graph(self, nodes: Tensor, there: Tensor) -> Tensor:
        """Return the weights `[tasks, nodes, nodes]` that join nodes, 0 for those not `there`."""
        size = tf.shape(nodes)[1]
        pairs = there[:, :, None] * there[:, None, :] * (1 - tf.eye(size, dtype=nodes.dtype))
        distances = _squared_distances(nodes, there)
        total = tf.reduce_sum(pairs * distances, [1, 2], keepdims=True)
        mean = tf.math.divide_no_nan(total, tf.reduce_sum(pairs, [1, 2], keepdims=True))
        ratio = tf.math.divide_no_nan(distances, mean)
        scale = tf.exp(-2 * tf.cast(self.log_length_scale, nodes.dtype)) / 2
        weights = pairs * tf.exp(-scale * ratio)
        least = tf.math.top_k(weights, tf.minimum(self.neighbors, size)).values[..., -1:]
        near = weights >= least
        near |= tf.linalg.matrix_transpose(near)
        return weights * tf.cast(near, weights.dtype)


def _squared_distances(nodes: Tensor, there: Tensor) -> Tensor:
    """Return `‖z_i − z_j‖²` `[tasks, n, n]` in double precision, by products."""
    number = tf.reduce_sum(there, 1)[:, None, None]
    middle = tf.reduce_sum(there[..., None] * nodes, 1, keepdims=True) / number
    nodes = nodes - middle  # far from the origin the squares would cancel all that matters
    products = tf.matmul(nodes, nodes, transpose_b=True)
    squares = tf.linalg.diag_part(products)
    return tf.nn.relu(squares[:, :, None] + squares[:, None, :] - 2 * products)
