"""k nearest neighbours of embeddings."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.checks import check_count
from tfmeta.ops import squared_euclidean
from tfmeta.types import Tensor

# Of a class that no neighbour is of: the logarithm must be finite.
_NO_VOTE = 1e-12


@keras.saving.register_keras_serializable(package="tfmeta")
class KNearestNeighbors(EmbeddingLearner):
    """Classify queries by the classes of the nearest support examples in an embedding.

    With v_k of the k neighbours at the smallest Euclidean distance in class k, the logits are the
    logarithms of the shares, `log max(v_k / k, 1e-12)`. Of a task with fewer than k support
    examples, all are neighbours. Of equal shares the lowest class is the answer.

    A vote has no derivative, so there is nothing to train, and `fit` says so: the encoder comes
    from somewhere else.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`.
        k: How many neighbours vote.
        **kwargs: Those of `PrototypicalNetwork`.

    Raises:
        TypeError: If `encoder` is not a Keras model, or `k` is no integer.
        ValueError: If `k` is less than 1.

    Example:
        ```python
        learner = tfmeta.KNearestNeighbors(encoder, k=3)
        adapted = learner.adapt(support_x, support_y)
        ```
    """

    trains = False

    def __init__(self, encoder: keras.Model, k: int = 1, **kwargs: Any) -> None:
        super().__init__(encoder, **kwargs)
        self.k = check_count("k", k)

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return the `examples` `[tasks, n, d]`, and their `votes` `[tasks, n, ways]`."""
        return {"examples": embedded, "votes": tf.one_hot(labels, ways, dtype=embedded.dtype)}

    def kept(self, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the examples, and the classes that they vote for."""
        return state["examples"], tf.argmax(state["votes"], -1)

    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        examples, votes = state["examples"], state["votes"]
        distances = squared_euclidean(embedded, examples)
        # Votes know no NaN, which must not pass for an answer.
        nothing = 0 * tf.reduce_sum(distances, -1, keepdims=True)
        # What only fills up a task has no vote, and is nobody's neighbour.
        real = tf.reduce_any(votes > 0, -1)[:, None]
        distances = tf.where(real, distances, distances.dtype.max)
        _, nearest = tf.math.top_k(-distances, tf.minimum(self.k, tf.shape(examples)[1]))
        found = tf.reduce_sum(tf.gather(votes, nearest, batch_dims=1), axis=2)
        shares = found / tf.reduce_sum(found, -1, keepdims=True)
        return tf.math.log(tf.maximum(shares, _NO_VOTE)) + nothing
