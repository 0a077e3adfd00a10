"""Logistic regression on embeddings, solved for each task and differentiated at the solution."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.checks import check_count, check_positive
from tfmeta.types import Tensor

# Of the greatest squared norm, so that a support set may hold an example twice.
_LEAST = 1e-10
# The logit of a class that is not there.
_NEVER = -1e9
# In how many ways a Newton step is tried: whole, half, a quarter …
_HALVINGS = 6
# A step that is less, of the greatest weight, is the last.
_STILL = 1e-8
# Of conjugate gradients: the residual, of the right side, of a Newton step and of the last one; its
# square where it is nothing but rounding; and how many there are at most.
_ROUGHLY, _EXACTLY, _NOTHING, _ITERATIONS = 1e-3, 1e-9, 1e-24, 200


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


def solution(features: Tensor, targets: Tensor, l2: float, steps: int) -> Tensor:
    """Return what minimises the loss of logistic regression, with its derivative.

    Args:
        features: `[tasks, n, f]`.
        targets: One-hot `[tasks, n, ways]`; rows of zeros don't count, and a class without an
            example has the probability 0.
        l2: λ.
        steps: How many Newton steps are taken.

    Returns:
        `[tasks, f + 1, ways]`, the weights and in the last row the offsets.
    """
    real = tf.reduce_sum(targets, -1, keepdims=True)
    absent = _NEVER * (1 - tf.reduce_max(targets, 1, keepdims=True))
    x = tf.concat([features, tf.ones_like(real)], -1)
    # Offsets are free.
    penalty = (
        l2 * tf.concat([tf.ones_like(features[:, 0]), tf.zeros_like(real[:, 0])], -1)[..., None]
    )

    def loss(at: Tensor) -> Tensor:
        logs = tf.nn.log_softmax(tf.matmul(x, at) + absent)
        return tf.reduce_sum(penalty * at**2, [1, 2]) / 2 - tf.reduce_sum(targets * logs, [1, 2])

    def newton_step(at: Tensor, residual: float) -> Tensor:
        """Return a step to the least of the loss, where its second derivative counts as fixed."""
        p = tf.nn.softmax(tf.matmul(x, at) + absent)
        slope = tf.matmul(x, real * p - targets, transpose_a=True) + penalty * at
        fixed_x, fixed_p = tf.stop_gradient(x), tf.stop_gradient(p)

        def curved(v: Tensor) -> Tensor:
            u = tf.matmul(fixed_x, v)
            u = fixed_p * (u - tf.reduce_sum(fixed_p * u, -1, keepdims=True))
            return tf.matmul(fixed_x, real * u, transpose_a=True) + penalty * v

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def solved(right: Tensor) -> Any:
            # The matrix is symmetric, and so its inverse is its own derivative's.
            inverse = functools.partial(conjugate_gradients, curved, residual=residual)
            return inverse(right), inverse

        return -solved(slope)

    def body(at: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        step = newton_step(at, _ROUGHLY)
        tried = [at + step / 2**i for i in range(_HALVINGS)]
        best = tf.argmin(tf.stack([loss(x) for x in tried]), output_type=tf.int32)
        going = tf.reduce_max(tf.abs(step)) > _STILL * (1 + tf.reduce_max(tf.abs(at)))
        return tf.gather(tf.stack(tried, 1), best, batch_dims=1), going

    start = tf.stop_gradient(tf.zeros_like(tf.matmul(x, targets, transpose_a=True)))
    end, _ = tf.while_loop(
        lambda _, going: going, body, (start, tf.constant(True)), maximum_iterations=steps
    )
    end = tf.stop_gradient(end)
    return end + newton_step(end, _EXACTLY)


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], right: Tensor, residual: float
) -> Tensor:
    """Return v with `matrix(v) = right`, of each task by itself, `[tasks, rows, columns]`.

    That of `tfmeta.differentiation` takes a given number of steps on one system; here each task has
    its own, and the steps end when all are solved.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return tf.reduce_sum(a * b, [1, 2], keepdims=True)

    enough = residual**2 * dot(right, right) + _NOTHING

    def body(v: Tensor, r: Tensor, p: Tensor, square: Tensor) -> tuple[Tensor, ...]:
        product = matrix(p)
        # A task that is done stands still while others go on.
        step = tf.math.divide_no_nan(square, dot(p, product)) * tf.cast(square > enough, r.dtype)
        v, r = v + step * p, r - step * product
        now = dot(r, r)
        return v, r, r + tf.math.divide_no_nan(now, square) * p, now

    start = (tf.zeros_like(right), right, right, dot(right, right))
    v, *_ = tf.while_loop(
        lambda v, r, p, square: tf.reduce_any(square > enough),
        body,
        start,
        maximum_iterations=_ITERATIONS,
    )
    return v
