"""Soft k-means: class means that examples without labels refine.

Ren et al., *Meta-Learning for Semi-Supervised Few-Shot Classification*, ICLR 2018.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.prototypical import PrototypicalNetwork
from tfmeta.checks import check_count, check_positive
from tfmeta.meta_learner import MetaLearner
from tfmeta.types import Nest, Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class SoftKMeans(PrototypicalNetwork):
    """A Prototypical Network whose class means are refined by examples without labels.

    An episode's `unlabelled_x` `[tasks, u, ...]` belong to the classes in shares
    `w_jk = softmax_k(−t ‖z_j − c_k‖²)`, and a step of soft k-means makes the means
    `c_k = (Σ_{i: y_i = k} z_i + Σ_j w_jk z_j) / (n_k + Σ_j w_jk)`, over the support set with n_k
    examples of class k and the unlabelled ones. Queries are classified by these means as by a
    Prototypical Network's; without `unlabelled_x` it is one. `EpisodeSampler(..., unlabelled=n)`
    draws such episodes, and `adapt` takes `unlabelled_x` too. An export adapts by support sets
    alone; to export what unlabelled examples have taught, export the adapted model.

    With `transductive=True` the queries of an episode are such examples themselves, after
    `unlabelled_x` if there are any, with the same steps and the means and shares so far in the
    place of the support set's. An answer then depends on the queries that are asked together, in
    adapted models and exports as well.

    Among unlabelled examples there may be some of no class of the episode, distractors. With
    `distractor_cluster=True` they have a class of their own at the origin, of the length scale r,
    which takes shares by the logit `−t ‖z_j‖² / r² − log r`; those of the classes have the length
    scale 1. No query is given to it. Whether r fits depends on how large embeddings are: it is
    learnt in `fit`, from examples with distractors.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen.
        steps: How many steps of soft k-means are taken.
        transductive: Whether queries refine the means that classify them.
        distractor_cluster: Whether there is a class for distractors.
        length_scale: r, as it begins.
        **kwargs: Those of `PrototypicalNetwork`: with a `temperature` t above 1 shares are more
            decided.

    Raises:
        TypeError: If `encoder` is not a Keras model, or `steps` is no integer.
        ValueError: If a value is out of range, or there is a distractor cluster with
            `distance="cosine"`, to which the origin is at no distance.

    Example:
        ```python
        sampler = tfmeta.data.EpisodeSampler(classes, 5, 1, 5, unlabelled=5, distractors=5)
        learner = tfmeta.SoftKMeans(tfmeta.models.conv4((32, 32, 3)), distractor_cluster=True)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.fit(sampler.dataset(8), steps_per_epoch=500, epochs=20)
        adapted = learner.adapt(support_x, support_y, unlabelled_x)
        ```
    """

    takes_unlabelled = True
    of_classes = ()  # unlabelled examples have a share in each
    # In the place of the property, for each learner has its own.
    transductive: bool = False

    def __init__(
        self,
        encoder: keras.Model,
        steps: int = 1,
        *,
        transductive: bool = False,
        distractor_cluster: bool = False,
        length_scale: float = 100.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        check_positive("length_scale", length_scale)
        if distractor_cluster and self.distance == "cosine":
            raise ValueError(
                "`distance` must be 'squared_euclidean' where there is a distractor cluster, which "
                "is at the origin. Received: distance='cosine', distractor_cluster=True"
            )
        self.steps = check_count("steps", steps)
        self.transductive = bool(transductive)
        self.distractor_cluster = bool(distractor_cluster)
        self.length_scale = length_scale
        self.log_length_scale = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(math.log(length_scale)),
            trainable=self.distractor_cluster,
            name="log_length_scale",
        )

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return the `prototypes` `[tasks, ways, d]`, and of how much each is, `counts`."""
        counts = tf.reduce_sum(tf.one_hot(labels, ways, dtype=embedded.dtype), 1)
        return {**super().learn(embedded, labels, ways), "counts": counts}

    def learn_unlabelled(
        self, state: dict[str, Tensor], embedded: Tensor, real: Tensor
    ) -> dict[str, Tensor]:
        """Return the same, refined by examples without labels."""
        means, counts = state["prototypes"], state["counts"]
        labelled = counts[..., None] * means
        for _ in range(self.steps):
            shares = real[..., None] * self._shares(means, state["counts"], embedded)
            counts = state["counts"] + tf.reduce_sum(shares, 1)
            totals = labelled + tf.matmul(shares, embedded, transpose_a=True)
            means = tf.math.divide_no_nan(totals, counts[..., None])
        return {"prototypes": means, "counts": counts}

    def answer_together(self, state: dict[str, Tensor], embedded: Tensor, real: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        if self.transductive:
            state = self.learn_unlabelled(state, embedded, real)
        return self.answer(state, embedded)

    def adapted_model(self, state: Nest) -> keras.Model:
        """Return a model for one task, of Keras's own layers where it is not transductive."""
        if self.transductive:
            return MetaLearner.adapted_model(self, state)
        return super().adapted_model(state)

    def _shares(self, means: Tensor, counts: Tensor, embedded: Tensor) -> Tensor:
        """Return how much of each example is in each class, `[tasks, n, ways]`."""
        logits = self.answer({"prototypes": means}, embedded)
        # A class without examples takes nothing.
        logits = tf.where(counts[:, None] > 0, logits, logits.dtype.min / 2)
        if not self.distractor_cluster:
            return tf.nn.softmax(logits)
        t, log_scale = (tf.cast(v, logits.dtype) for v in (self.temperature, self.log_length_scale))
        squares = tf.reduce_sum(embedded**2, -1, keepdims=True)
        origin = -t * squares * tf.exp(-2 * log_scale) - log_scale
        return tf.nn.softmax(tf.concat([logits, origin], -1))[..., :-1]
