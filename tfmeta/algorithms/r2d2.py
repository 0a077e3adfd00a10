"""R2D2: ridge regression on embeddings, in closed form.

Bertinetto, Henriques, Torr and Vedaldi, *Meta-learning with Differentiable Closed-form Solvers*,
ICLR 2019.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.checks import check_positive
from tfmeta.types import Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class R2D2(EmbeddingLearner):
    """Classify queries by ridge regression from embeddings to classes, solved for each task.

    Of the embeddings `Z` `[n, d]` of a support set and its labels `Y` `[n, ways]`, one-hot, it
    takes the weights `W = Zᵀ (Z Zᵀ + λ I)⁻¹ Y`, a system of n equations however large d is, and
    gives `α z W + β`. `fit` learns the encoder through the solution, and λ, α and β with it.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen.
        ridge: λ, positive, as it begins.
        scale: α, as it begins. W answers with numbers near 0 and 1, the labels, which as logits
            would be next to no answer, and training would take long to widen them.
        learn_ridge: Whether the outer loop trains λ (as `log λ`), α and β.
        **kwargs: Those of `PrototypicalNetwork`.

    Raises:
        TypeError: If `encoder` is not a Keras model.
        ValueError: If `ridge` or `scale` is not positive.

    Example:
        ```python
        learner = tfmeta.R2D2(tfmeta.models.conv4((32, 32, 3)))
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                        metrics=["accuracy"])
        learner.fit(sampler.dataset(8), steps_per_epoch=500, epochs=20)
        ```
    """

    def __init__(
        self,
        encoder: keras.Model,
        ridge: float = 1.0,
        scale: float = 10.0,
        *,
        learn_ridge: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        check_positive("ridge", ridge)
        check_positive("scale", scale)
        self.ridge = ridge
        self.scale = scale
        self.learn_ridge = learn_ridge
        starts = {"log_ridge": math.log(ridge), "alpha": scale, "beta": 0.0}
        self.log_ridge, self.alpha, self.beta = (
            self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(start),
                trainable=learn_ridge,
                name=name,
            )
            for name, start in starts.items()
        )

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return the `weights` W `[tasks, d, ways]`; `examples` and `labels`, which they are of."""
        targets = tf.one_hot(labels, ways, dtype=embedded.dtype)
        gram = tf.matmul(embedded, embedded, transpose_b=True)
        ridge = tf.cast(tf.exp(self.log_ridge), gram.dtype)
        gram += ridge * tf.eye(tf.shape(gram)[-1], dtype=gram.dtype)
        solution = tf.linalg.cholesky_solve(tf.linalg.cholesky(gram), targets)
        weights = tf.matmul(embedded, solution, transpose_a=True)
        # These for one class more or less, which gives other weights for all.
        return {"weights": weights, "examples": embedded, "labels": tf.cast(labels, tf.int32)}

    def kept(self, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the examples and their labels."""
        return state["examples"], state["labels"]

    def named_state(self, state: Any) -> dict[str, Tensor]:
        """Return the weights alone, which are all that a prediction takes."""
        return {"weights": state["weights"]}

    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        alpha, beta = (tf.cast(v, embedded.dtype) for v in (self.alpha, self.beta))
        return alpha * tf.matmul(embedded, state["weights"]) + beta
