"""TIM: class weights that make the answers to a task's queries say as much as they can.

Boudiaf et al., *Information Maximization for Few-Shot Learning*, NeurIPS 2020 (TIM); Veilleux et
al., *Realistic Evaluation of Transductive Few-Shot Learning*, NeurIPS 2021 (α-TIM).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.transductive_learner import TransductiveLearner
from tfmeta.checks import check_count, check_positive
from tfmeta.inner_optimizers import Adam
from tfmeta.types import Tensor

# The least share of a class in the answers, whose logarithm is taken.
_LEAST = 1e-12
# The logit of a class that a task does not have.
_NEVER = -1e9


@keras.saving.register_keras_serializable(package="tfmeta")
class TIM(TransductiveLearner):
    """Classify all queries of a task together, by class weights of most mutual information.

    Of embeddings of length 1, `p_ik = softmax_k(−(t/2) ‖w_k − z_i‖²)` are the answers. The weights
    w begin as the class means, and Adam lowers, by a fixed number of steps,
    `a · CE + b · mean_i H_α(p_i) − c · H_α(mean_i p_i)`: the crossentropy CE of the support set,
    and over the queries how undecided answers are less how evenly they are spread over the
    classes. `H_α(p) = (1 − Σ_k p_k^α) / (α − 1)` is Tsallis's entropy, and for α = 1 Shannon's. The
    logits are `−(t/2) ‖w_k − z_i‖²` of the last w.

    The defaults are those of α-TIM for 1 shot, which is meant for queries that may be of some
    classes more than of others; for 5 shots and more it was published with `alpha=7`. TIM itself,
    which takes classes for equally likely, is `alpha=1, marginal_weight=10`.

    It is for encoders that were trained before; nothing is differentiated through the steps, and
    `fit` says that there is nothing to train. An answer depends on the queries that are asked
    together, in adapted models and exports as well.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`.
        alpha: α, positive.
        steps: How many steps of Adam are taken.
        learning_rate: Their size.
        temperature: t.
        support_weight: a.
        conditional_weight: b.
        marginal_weight: c.
        **kwargs: Those of `PrototypicalNetwork` that are not its distance's.

    Raises:
        TypeError: If `encoder` is not a Keras model, or `steps` is no integer.
        ValueError: If a value is out of range.

    Example:
        ```python
        learner = tfmeta.TIM(encoder)
        print(tfmeta.evaluate(learner, test_sampler))
        adapted = learner.adapt(support_x, support_y)
        adapted.predict(all_queries_of_the_task)
        ```
    """

    trains = False

    def __init__(
        self,
        encoder: keras.Model,
        alpha: float = 2.0,
        steps: int = 1000,
        learning_rate: float = 1e-4,
        temperature: float = 15.0,
        *,
        support_weight: float = 1.0,
        conditional_weight: float = 1.0,
        marginal_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        self.alpha = alpha
        self.steps = check_count("steps", steps)
        self.learning_rate = learning_rate
        self.temperature = temperature
        self.support_weight = support_weight
        self.conditional_weight = conditional_weight
        self.marginal_weight = marginal_weight
        for name in ("alpha", "learning_rate", "temperature", "support_weight"):
            check_positive(name, getattr(self, name))
        for name in ("conditional_weight", "marginal_weight"):
            check_positive(name, getattr(self, name))

    def answer_together(self, state: dict[str, Tensor], embedded: Tensor, real: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        examples, queries = (tf.math.l2_normalize(z, -1) for z in (state["examples"], embedded))
        weights = tf.stop_gradient(self._weights(examples, state["votes"], queries, real))
        return self._logits(weights, queries)

    # Compiled, for an adapted model is called outside of a graph, too.
    @tf.function(autograph=False, reduce_retracing=True)  # type: ignore[untyped-decorator]
    def _weights(self, examples: Tensor, votes: Tensor, queries: Tensor, real: Tensor) -> Tensor:
        """Return the class weights `[tasks, ways, d]` after all steps."""
        counts = tf.reduce_sum(votes, 1)[..., None]
        start = tf.math.divide_no_nan(tf.matmul(votes, examples, transpose_a=True), counts)
        rule = Adam(self.learning_rate)

        def step(i: Tensor, weights: Tensor, *slots: Tensor) -> tuple[Tensor, ...]:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = self._loss(weights, examples, votes, queries, real)
            slope = tape.gradient(loss, weights)
            moved, kept = rule.update([slope], list(slots), [weights], [self.learning_rate])
            return i + 1, *moved, *kept

        first = (tf.constant(0), start, *rule.init([start]))
        return tf.while_loop(lambda i, *_: i < self.steps, step, first)[1]

    def _loss(
        self, weights: Tensor, examples: Tensor, votes: Tensor, queries: Tensor, real: Tensor
    ) -> Tensor:
        """Return what the steps lower, summed over tasks, each of which has its own weights."""
        absent = _NEVER * (1 - tf.reduce_max(votes, 1, keepdims=True))
        of_support = tf.nn.log_softmax(self._logits(weights, examples) + absent)
        right = tf.reduce_sum(votes * of_support, [1, 2]) / tf.reduce_sum(votes, [1, 2])
        logs = tf.nn.log_softmax(self._logits(weights, queries) + absent)
        share = real / tf.reduce_sum(real, 1, keepdims=True)
        undecided = tf.reduce_sum(share * entropies(logs, self.alpha), 1)
        mean = tf.reduce_sum(share[..., None] * tf.exp(logs), 1)
        spread = entropies(tf.math.log(tf.maximum(mean, _LEAST)), self.alpha)
        return tf.reduce_sum(
            self.conditional_weight * undecided
            - self.marginal_weight * spread
            - self.support_weight * right
        )

    def _logits(self, weights: Tensor, z: Tensor) -> Tensor:
        squares = tf.reduce_sum(weights**2, -1)[:, None] + tf.reduce_sum(z**2, -1, keepdims=True)
        return self.temperature * (tf.matmul(z, weights, transpose_b=True) - squares / 2)


def entropies(logs: Tensor, alpha: float) -> Tensor:
    """Return Tsallis's entropy of each row of probabilities, given their logarithms."""
    if alpha == 1:
        return -tf.reduce_sum(tf.exp(logs) * logs, -1)
    return (1 - tf.reduce_sum(tf.exp(alpha * logs), -1)) / (alpha - 1)
