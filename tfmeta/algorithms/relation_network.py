"""Relation Networks: a second network compares queries with classes.

Sung, Yang, Zhang, Xiang, Torr and Hospedales, *Learning to Compare: Relation Network for Few-Shot
Learning*, CVPR 2018.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.algorithms.relations import check_scores, usual_relation
from tfmeta.functional import batch_norm_layers, check_layers
from tfmeta.ops import prototypes
from tfmeta.padding import put_back
from tfmeta.types import Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class RelationNetwork(EmbeddingLearner):
    """Classify queries by a learnt comparison with each class.

    `relation` gives a score of a pair: the mean embedding c_k of class k's support examples and a
    query's f(x), one behind the other in their last axis. The scores of all classes are the logits.
    The encoder may give vectors `[n, d]`, of which pairs are `[n, 2d]`, or as the paper's maps
    `[n, h, w, c]`, of which they are `[n, h, w, 2c]`. Both networks are trained; with a frozen
    encoder the relation alone.

    The paper sums embeddings over the examples of a class, where this takes the mean: a factor, at
    a fixed number of shots, but free of it at others. Its loss is the squared error of the scores
    behind a sigmoid, for which any loss of class numbers may stand here. The crossentropy is the
    usual one; the paper's is

        ```python
        @keras.saving.register_keras_serializable()
        def squared_error(y, scores):
            y = tf.one_hot(tf.cast(y, tf.int32), tf.shape(scores)[-1])
            y = tf.reshape(y, tf.shape(scores))
            return tf.reduce_mean((tf.sigmoid(scores) - y) ** 2, -1)
        ```

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]` or `[n, h, w, c]`, trainable or frozen.
        relation: A `keras.Model` of pairs to scores `[n, 1]`, without a sigmoid. If `None`, for
            vectors two dense layers of 64 ReLUs and one of a single output; for maps the paper's:
            two blocks of a 3×3 convolution with 64 filters, batch normalisation, ReLU and 2×2
            max-pooling, then 8 ReLUs, then one output. Once the learner is built, `relation` is
            that network.
        **kwargs: Those of `PrototypicalNetwork`.

    Raises:
        TypeError: If `encoder` or `relation` is not a Keras model.
        ValueError: When it is built, if `relation` does not take such pairs or gives something
            else than `[n, 1]`. In training under XLA, if `relation` has batch normalisation: it
            would see classes that are not there.

    Example:
        ```python
        learner = tfmeta.RelationNetwork(tfmeta.models.conv4((28, 28, 1)))
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                        metrics=["accuracy"])
        learner.fit(sampler.dataset(8), steps_per_epoch=100, epochs=20)
        ```
    """

    has_layers = True
    takes_maps = True

    def __init__(
        self, encoder: keras.Model, relation: keras.Model | None = None, **kwargs: Any
    ) -> None:
        super().__init__(encoder, **kwargs)
        if not isinstance(relation, keras.Model | None):
            raise TypeError(f"`relation` must be a keras.Model. Received: relation={relation!r}")
        self.relation = relation

    def build(self, input_shape: Any) -> None:
        """Build the encoder, and the relation for pairs of its embeddings."""
        super().build(input_shape)
        one = self.outputs_of_model().shape[1:]
        if None in one:
            raise ValueError(
                "`encoder` must return vectors or maps of a known size. "
                f"Received: shape={(None, *one)}"
            )
        shape = (*one[:-1], 2 * one[-1])
        if self.relation is None:
            self.relation = usual_relation(shape, self.variable_dtype)
        check_scores(self.relation, shape, self.variable_dtype)
        check_layers(self.relation)
        self.synchronize(self.relation)

    def learn(
        self, embedded: Tensor, labels: Tensor, ways: Tensor, *, training: bool = False
    ) -> dict[str, Tensor]:
        """Return the class means, the `prototypes` `[tasks, ways, ...]`."""
        del training
        sizes = tf.shape(embedded)
        flat = tf.reshape(embedded, [sizes[0], sizes[1], embedded.shape[2:].num_elements()])
        means = prototypes(flat, labels, ways)
        return {"prototypes": tf.reshape(means, [sizes[0], ways, *embedded.shape[2:]])}

    def answer(
        self,
        state: dict[str, Tensor],
        embedded: Tensor,
        *,
        training: bool = False,
        real: Tensor | None = None,
    ) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        assert self.relation is not None  # for it is built
        if training and self.compiled and self.jit_compile and batch_norm_layers(self.relation):
            raise ValueError(
                "`jit_compile` must be False for a relation with batch normalisation: XLA, which "
                "cannot know how many classes there are, has it see some that are not. Received: "
                f"jit_compile=True, and a relation {self.relation.name!r} with batch normalisation"
            )
        means = state["prototypes"]
        tasks, queries, ways = tf.shape(embedded)[0], tf.shape(embedded)[1], tf.shape(means)[1]
        size = list(embedded.shape[2:])
        pairs = tf.concat(
            [
                tf.broadcast_to(means[:, None], [tasks, queries, ways, *size]),
                tf.broadcast_to(embedded[:, :, None], [tasks, queries, ways, *size]),
            ],
            -1,
        )
        if real is None:
            scores = self.relation(tf.reshape(pairs, [-1, *pairs.shape[3:]]), training=training)
            scores = tf.reshape(scores, [tasks, queries, ways])
        else:
            scores = self.relation(tf.boolean_mask(pairs, real), training=training)
            scores = put_back(real, scores)[..., 0]
        # Some kernels of activations make numbers of NaN.
        numbers = tf.math.is_finite(tf.reduce_sum(pairs, list(range(3, len(pairs.shape)))))
        return tf.where(numbers, tf.cast(scores, embedded.dtype), math.nan)
