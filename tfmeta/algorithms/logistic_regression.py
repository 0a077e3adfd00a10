"""Logistic regression on embeddings, solved for each task and differentiated at the solution."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.algorithms.newton import solution
from tfmeta.checks import check_count, check_positive
from tfmeta.types import Tensor

# Of the greatest squared norm, so that a support set may hold an example twice.
_LEAST = 1e-10


@keras.saving.register_keras_serializable(package="tfmeta")
class LogisticRegression(EmbeddingLearner):
    """Classify queries by multinomial logistic regression on the embeddings of a support set.

    Its weights W `[d, ways]` and offsets b minimise, over the support set,
    `Σ_i −log softmax(z_i W + b)_{y_i} + (λ/2) ‖W‖²`, which is scikit-learn's
    `LogisticRegression(C=1/λ)`. Newton steps find them, in the space that the n
    embeddings span: n·ways numbers however large d is. The gradient for the encoder is that of the
    solution, by the implicit function theorem: one more Newton step, whose matrix counts as fixed.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen.
        l2: λ, positive.
        steps: How many Newton steps are taken at most; of each, the part that lowers the loss most.
        **kwargs: Those of `PrototypicalNetwork`.

    Raises:
        TypeError: If `encoder` is not a Keras model, or `steps` is no integer.
        ValueError: If `l2` is not positive, or `steps` is less than 1.

    Example:
        ```python
        learner = tfmeta.LogisticRegression(encoder, l2=1.0)
        adapted = learner.adapt(support_x, support_y)
        ```
    """

    def __init__(
        self, encoder: keras.Model, l2: float = 1.0, steps: int = 12, **kwargs: Any
    ) -> None:
        super().__init__(encoder, **kwargs)
        check_positive("l2", l2)
        self.l2 = l2
        self.steps = check_count("steps", steps)

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return the `weights` W `[tasks, d, ways]` and the `offsets` b `[tasks, ways]`."""
        # In double precision: embeddings that are nearly alike make a system that is nearly
        # singular, and it is small.
        z = tf.cast(embedded, tf.float64)
        targets = tf.one_hot(labels, ways, dtype=z.dtype)
        # Z = L Q with a triangular L `[n, n]` and rows of Q that are orthonormal, so that the
        # examples may as well have the features L: W = Qᵀ V has the logits L V and the same norm.
        gram = tf.matmul(z, z, transpose_b=True)
        least = _LEAST * (1 + tf.reduce_max(tf.linalg.diag_part(gram), -1)[:, None, None])
        factor = tf.linalg.cholesky(gram + least * tf.eye(tf.shape(z)[1], dtype=z.dtype))
        found = solution(factor, targets, self.l2, self.steps)
        rows = tf.linalg.triangular_solve(factor, found[:, :-1], lower=True, adjoint=True)
        learnt = {"weights": tf.matmul(z, rows, transpose_a=True), "offsets": found[:, -1]}
        return {name: tf.cast(x, embedded.dtype) for name, x in learnt.items()}

    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        return tf.matmul(embedded, state["weights"]) + state["offsets"][:, None]
