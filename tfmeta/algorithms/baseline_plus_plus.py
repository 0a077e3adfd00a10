"""Baseline++: a cosine classifier, trained on each support set.

Chen, Liu, Kira, Wang and Huang, *A Closer Look at Few-shot Classification*, ICLR 2019.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.algorithms.prototype_head import model_of_prototypes
from tfmeta.algorithms.rates import given_rate
from tfmeta.checks import check_count, check_positive
from tfmeta.copies import copy_of
from tfmeta.inner_optimizers import SGD, UpdateRule, check_rule
from tfmeta.ops import cosine_similarity, prototypes
from tfmeta.types import Nest, Tensor

# Of a squared length that is taken for zero.
_ZERO = 1e-12
# The logit of a class that is not there.
_NEVER = -1e9


@keras.saving.register_keras_serializable(package="tfmeta")
class BaselinePlusPlus(EmbeddingLearner):
    """Classify queries by cosine similarity to class vectors that are trained on a support set.

    The logits are `s cos(z, w_k)`. In a fixed number of steps on the whole support set,
    `inner_optimizer` makes the mean over it of `−log softmax(s cos(z_i, ·))_{y_i}` smaller. The
    class vectors w_k start, without chance, as the directions of the class means of embeddings of
    length 1: after no step this is the nearest class mean by cosine. All tasks are computed side by
    side.

    It is meant for an encoder that was trained before, as an ordinary classifier. `fit` trains one
    all the same where it has weights, through all steps. The paper starts from random vectors,
    draws batches of 4 from the support set, and has a weight decay, which this has not: the length
    of w_k counts for nothing in a cosine.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen.
        steps: How many steps are taken.
        scale: s, positive; cosines alone would be small for logits.
        inner_optimizer: A rule of `tfmeta.inner_optimizers`; `SGD(0.1)` if `None`.
        **kwargs: Those of `PrototypicalNetwork`.

    Raises:
        TypeError: If `encoder` is not a Keras model, `steps` is no integer, or `inner_optimizer` is
            no such rule.
        ValueError: If `steps` is less than 1, or more than there are rates; or `scale` is not
            positive.

    Example:
        ```python
        encoder.trainable = False
        learner = tfmeta.BaselinePlusPlus(encoder, steps=100)
        adapted = learner.adapt(support_x, support_y)
        ```
    """

    def __init__(
        self,
        encoder: keras.Model,
        steps: int = 100,
        scale: float = 10.0,
        *,
        inner_optimizer: UpdateRule | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        check_positive("scale", scale)
        self.steps = check_count("steps", steps)
        self.scale = scale
        rule = SGD(0.1) if inner_optimizer is None else inner_optimizer
        self.inner_optimizer = check_rule("inner_optimizer", rule)
        rates = self.inner_optimizer.learning_rate
        if isinstance(rates, tuple) and len(rates) < self.steps:
            raise ValueError(
                "`steps` must be at most the number of rates of `inner_optimizer`. "
                f"Received: steps={steps}, {len(rates)} rates"
            )

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return the class vectors, the `weights` `[tasks, ways, d]`."""
        x = tf.math.l2_normalize(embedded, -1, _ZERO)
        targets = tf.one_hot(labels, ways, dtype=x.dtype)
        real = tf.reduce_sum(targets, -1, keepdims=True)
        absent = _NEVER * (1 - tf.reduce_max(targets, 1, keepdims=True))
        share = self.scale * real / tf.reduce_sum(real, 1, keepdims=True)
        rule = self.inner_optimizer

        def step(k: Tensor, weights: Tensor, *slots: Tensor) -> tuple[Tensor, ...]:
            inverse = tf.math.rsqrt(tf.maximum(tf.reduce_sum(weights**2, -1, True), _ZERO))
            unit = weights * inverse
            logits = self.scale * tf.matmul(x, unit, transpose_b=True) + absent
            # The gradient for vectors of length 1, of which the part along them changes nothing.
            slope = tf.matmul(share * (tf.nn.softmax(logits) - targets), x, transpose_a=True)
            slope = inverse * (slope - unit * tf.reduce_sum(slope * unit, -1, keepdims=True))
            rate = given_rate(rule.learning_rate, k, x.dtype)
            (weights,), new = rule.update([slope], list(slots), [weights], [rate])
            return k + 1, weights, *new

        start = tf.math.l2_normalize(prototypes(x, labels, ways), -1, _ZERO)
        _, weights, *_ = tf.while_loop(
            lambda k, *_: k < self.steps,
            step,
            (tf.constant(0), start, *rule.init([start])),
            maximum_iterations=self.steps,
        )
        return {"weights": weights}

    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        return self.scale * cosine_similarity(embedded, state["weights"])

    def adapted_model(self, state: Nest) -> keras.Model:
        """Return encoder and head as one model of Keras's own layers, with the same logits.

        An encoder that cannot be copied is called as the learner calls it, with weights of its own.
        """
        # Under XLA there are vectors of absent classes, too.
        weights = tf.boolean_mask(state["weights"], state["present"])
        encoder = copy_of(self.model)
        if encoder is None:
            return super().adapted_model({"weights": weights})
        scale = tf.constant(self.scale, weights.dtype)
        return model_of_prototypes(
            encoder, self.example, weights, "cosine", scale, of_classes=False
        )
