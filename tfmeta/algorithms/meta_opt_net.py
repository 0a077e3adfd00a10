"""MetaOptNet: a support vector machine on embeddings, solved for each task.

Lee, Maji, Ravichandran and Soatto, *Meta-Learning with Differentiable Convex Optimization*,
CVPR 2019.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.algorithms.support_vectors import solution
from tfmeta.checks import check_count, check_positive
from tfmeta.types import Tensor

# Of the greatest squared norm, so that a support set may hold an example twice.
_LEAST = 1e-10
_MUST = (
    "The quadratic program of each task must be solved to `tolerance` within `steps` steps, and "
    "the embeddings must be finite"
)


@keras.saving.register_keras_serializable(package="tfmeta")
class MetaOptNet(EmbeddingLearner):
    """Classify queries by a multi-class support vector machine, solved for each task.

    Its weights W `[d, ways]` minimise, over the embeddings z of a support set and their classes y,
    `½ ‖W‖² + C Σ_i max_k(1 − [k = y_i] + z_i·w_k − z_i·w_{y_i})`, which is scikit-learn's
    `LinearSVC(multi_class="crammer_singer", fit_intercept=False)`; the logits are `γ z W`. A
    primal-dual interior-point method solves the dual, a quadratic program of n·ways numbers
    however large d is, for all tasks at once and in double precision. The gradient for the encoder
    is that of the solution, by the implicit function theorem on its active set, and not that of the
    steps. `fit` learns the encoder and γ.

    A task is solved when the duality gap is at most `tolerance`, as a part of what the loss is at
    weights of zero, `C n`. `‖W − W*‖² ≤ 2 C n · tolerance` then; mostly W is far nearer, for a last
    step solves the equations of the active set. A task that is not solved is an error, and under
    XLA, which knows none, NaN: `fit` says so after the epoch.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen.
        C: What an example costs by whose score another class is too near or ahead, positive.
        scale: γ, as it begins, positive. Logits grow with the squared length of embeddings: of
            those of length 1 they are small, and 30 trains far faster than 1.
        learn_scale: Whether the outer loop trains γ.
        steps: How many steps the method may take; it needs 10 to 20.
        tolerance: Positive.
        **kwargs: Those of `PrototypicalNetwork`.

    Raises:
        TypeError: If `encoder` is not a Keras model, or `steps` is no integer.
        ValueError: If a value is out of range. In use: if a task is not solved.

    Example:
        ```python
        learner = tfmeta.MetaOptNet(tfmeta.models.conv4((32, 32, 3)))
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                        metrics=["accuracy"])
        learner.fit(sampler.dataset(8), steps_per_epoch=500, epochs=20)
        ```
    """

    def __init__(
        self,
        encoder: keras.Model,
        C: float = 0.1,  # noqa: N803  # the name that everybody knows
        scale: float = 1.0,
        *,
        learn_scale: bool = True,
        steps: int = 40,
        tolerance: float = 1e-9,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        check_positive("C", C)
        check_positive("scale", scale)
        check_positive("tolerance", tolerance)
        self.C = C
        self.scale = scale
        self.learn_scale = learn_scale
        self.steps = check_count("steps", steps)
        self.tolerance = tolerance
        self.gamma = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(scale),
            trainable=learn_scale,
            name="gamma",
        )

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return the `weights` W `[tasks, d, ways]`."""
        z = tf.cast(embedded, tf.float64)
        targets = tf.one_hot(labels, ways, dtype=z.dtype)
        gram = self.C * tf.matmul(z, z, transpose_b=True)
        least = _LEAST * (1 + tf.reduce_max(tf.linalg.diag_part(gram), -1)[:, None, None])
        kernel = gram + tf.stop_gradient(least) * tf.eye(tf.shape(z)[1], dtype=z.dtype)
        alpha, gap = solution(kernel, targets, self.steps, self.tolerance)
        alpha = self._solved(alpha, gap)
        weights = self.C * tf.matmul(z, alpha, transpose_a=True)
        return {"weights": tf.cast(weights, embedded.dtype)}

    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        return tf.cast(self.gamma, embedded.dtype) * tf.matmul(embedded, state["weights"])

    def _solved(self, alpha: Tensor, gap: Tensor) -> Tensor:
        """Return α, NaN where a task is not solved; and raise if there is such a one."""
        solved = gap <= self.tolerance
        # The first that is not.
        worst = tf.gather(gap, tf.argmin(tf.cast(solved, tf.int32)))
        given = f"steps={self.steps}, tolerance={self.tolerance}"
        text = f"{_MUST}. Received: {given}, a duality gap of"
        if tf.executing_eagerly():
            if not tf.reduce_all(solved):
                raise ValueError(f"{text} {float(worst):.3g}")
            return alpha
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(solved), [text, worst])]):
            return tf.where(solved[:, None, None], alpha, float("nan"))
