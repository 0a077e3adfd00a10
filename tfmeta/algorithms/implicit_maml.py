"""MAML with implicit gradients.

Rajeswaran, Finn, Kakade and Levine, *Meta-Learning with Implicit Gradients*, NeurIPS 2019.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.maml import MAML, refuse
from tfmeta.checks import check_at_least_zero, check_count, check_positive
from tfmeta.derivatives import dense, gradients_or_zeros
from tfmeta.inner_loop import InnerStep, Path, inner_solution
from tfmeta.meta_learner import MetaLearner
from tfmeta.types import Params


@keras.saving.register_keras_serializable(package="tfmeta")
class ImplicitMAML(MAML):
    """Solve `φ* = argmin L_S(φ) + (λ/2)‖φ − θ‖²` in the inner loop, and differentiate the solution.

    The outer gradient is `v` with `(I + H/λ) v = ∇L_Q(φ*)`, H the Hessian of `L_S` at φ*, found by
    conjugate gradients with Hessian-vector products. It needs φ* and not the way there, so memory
    does not grow with the number of inner steps; it is exact where the inner loop has arrived, the
    gradient of `L_S(φ) + (λ/2)‖φ − θ‖²` being zero. The metric `cg_residual` is the mean of
    `‖(I + H/λ) v − ∇L_Q‖ / ‖∇L_Q‖`.

    Args:
        model: Any `keras.Model`; its weights are the initialisation θ, and `fit` changes them.
        inner_learning_rate: Rate of the inner loop.
        inner_steps: Steps of the inner loop, many enough to arrive.
        proximal: λ, positive: how strongly the solution is held near θ.
        cg_steps: Steps of conjugate gradients.
        cg_damping: δ of `((1 + δ) I + H/λ) v = ∇L_Q(φ*)`, at least 0; steadies the solution where
            H is far from positive.
        **kwargs: Those of `MAML` but `first_order`, `learned_rates` and `recompute`, as no gradient
            goes through the inner steps.

    Raises:
        TypeError: If a number is no number.
        ValueError: If a value is out of range, or the model has per-step batch normalisation.

    Example:
        ```python
        learner = tfmeta.ImplicitMAML(model, inner_learning_rate=0.1, inner_steps=16, proximal=2.0)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.fit(sampler.dataset(meta_batch_size=16), steps_per_epoch=500, epochs=20)
        ```
    """

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 16,
        *,
        proximal: float = 2.0,
        cg_steps: int = 5,
        cg_damping: float = 0.0,
        **kwargs: Any,
    ) -> None:
        refuse(self, model, kwargs, "first_order", "learned_rates", "recompute")
        super().__init__(model, inner_learning_rate, inner_steps, **kwargs)
        check_positive("proximal", proximal)
        check_count("cg_steps", cg_steps)
        check_at_least_zero("cg_damping", cg_damping)
        self.proximal = proximal
        self.cg_steps = cg_steps
        self.cg_damping = cg_damping
        self.residual = keras.metrics.Mean(name="cg_residual")

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and check that its inner loop ends where a gradient is zero."""
        super().build(input_shape)
        variables = self.model.trainable_variables
        for found, what in (
            (self._written(training=True), "one that a layer writes to in its call"),
            ([v.constraint is not None for v in variables], "one with a constraint"),
        ):
            both = zip(variables, found, self._chosen(variables), strict=True)
            path = next((v.path for v, has, chosen in both if has and chosen), None)
            if path is not None:
                raise ValueError(
                    "`model` must have weights that nothing but the inner steps changes for "
                    "ImplicitMAML, whose gradient is that of a solution at which the inner "
                    f"gradient is zero; tfmeta.MAML takes them. Received: {path!r}, {what}"
                )

    def path(
        self,
        support_x: Any,
        support_y: Any,
        *,
        training: bool,
        first_order: bool | None = None,
        every: bool = False,
    ) -> Path:
        """Run the inner loop to φ*, to which the implicit gradient is attached."""
        params, state = self.start(support_x, support_y, training=training)
        chosen = self._chosen(params)
        fixed = [tf.stop_gradient(p) for p in params]
        start = list(itertools.compress(fixed, chosen))
        step = self.inner_step(support_x, support_y, fixed, training=training)

        def proximal_loss(adapted: Params, state: Params, k: Any) -> tuple[Any, Params, Params]:
            loss, state, written = step.support_loss(adapted, state, k)
            square = sum(tf.reduce_sum((a - s) ** 2) for a, s in zip(adapted, start, strict=True))
            return loss + tf.cast(self.proximal / 2 * square, loss.dtype), state, written

        solution, state, _ = inner_solution(
            step._replace(support_loss=proximal_loss),
            start,
            state,
            step.rule.init(start),
            self.steps(training),
        )

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def attached(*params: Any) -> Any:
            def gradient(*upstream: Any) -> Any:
                step = self.inner_step(support_x, support_y, list(params), training=training)
                at_end = [dense(g) for g in upstream]
                return self._implicit(step, at_end, solution, state, params, chosen)

            return [tf.identity(x) for x in solution], gradient

        solved = iter(attached(*params))
        whole = [next(solved) if c else p for c, p in zip(chosen, params, strict=True)]
        return Path([whole], [state], tf.cast(self.steps(training), solution[0].dtype))

    def test_step(self, data: Any) -> Any:
        """Score a meta-batch: Keras's own step, without the residual, for there is no gradient."""
        logs = super().test_step(data)
        return {name: value for name, value in logs.items() if name != self.residual.name}

    # Conjugate gradients are for one task.
    why_not_packed = MetaLearner.why_not_packed

    def _implicit(
        self,
        step: InnerStep,
        gradient: Params,
        solution: Params,
        state: Params,
        params: Sequence[Any],
        chosen: list[bool],
    ) -> Params:
        """Return the gradient at all `params`, given the one at the solution."""

        def derivative(v: Params, at: Params) -> Params:
            """Return the derivative of `⟨∇L_S(φ*), v⟩` at some tensors."""
            with tf.GradientTape(watch_accessed_variables=False) as outer:
                outer.watch(at)
                with tf.GradientTape(watch_accessed_variables=False) as inner:
                    inner.watch(solution)
                    loss, *_ = step.support_loss(solution, state, 0)
                    loss *= step.loss_scale
                product = _dot(gradients_or_zeros(inner, loss, solution), v)
            found = gradients_or_zeros(outer, product, at)
            return [g / step.loss_scale for g in found]

        def matrix(v: Params) -> Params:
            products = derivative(v, solution)
            damped = 1 + self.cg_damping
            return [damped * x + h / self.proximal for x, h in zip(v, products, strict=True)]

        v, residual = conjugate_gradients(matrix, gradient, self.cg_steps)
        self.residual.update_state(residual)
        rest = [p for c, p in zip(chosen, params, strict=True) if not c]
        # Weights that the inner loop leaves alone move its solution, too.
        mixed = iter([-x / self.proximal for x in derivative(v, rest)] if rest else [])
        solved = iter(v)
        return [next(solved) if c else next(mixed) for c in chosen]


def conjugate_gradients(
    matrix: Callable[[Params], Params], b: Params, steps: int
) -> tuple[Params, Any]:
    """Solve `A x = b` for a symmetric, positive definite A, from x = 0.

    Args:
        matrix: A vector, as a list of tensors, to its product with A.
        b: The right-hand side.
        steps: How many steps.

    Returns:
        `(x, ‖b − A x‖ / ‖b‖)`.

    Reference:
        Hestenes and Stiefel, *Methods of Conjugate Gradients for Solving Linear Systems*, 1952.
    """

    def body(k: Any, x: Params, r: Params, p: Params, square: Any) -> Any:
        product = matrix(p)
        # After an exact solution there is nothing left to divide.
        length = tf.math.divide_no_nan(square, _dot(p, product))
        x = [a + length * d for a, d in zip(x, p, strict=True)]
        r = [a - length * d for a, d in zip(r, product, strict=True)]
        new = _dot(r, r)
        turn = tf.math.divide_no_nan(new, square)
        return k + 1, x, r, [a + turn * d for a, d in zip(r, p, strict=True)], new

    square = _dot(b, b)
    start = (tf.constant(0), [tf.zeros_like(x) for x in b], b, b, square)
    _, x, _, _, left = tf.while_loop(lambda k, *_: k < steps, body, start)
    return x, tf.sqrt(tf.math.divide_no_nan(left, square))


def _dot(first: Params, second: Params) -> Any:
    return tf.add_n([tf.reduce_sum(a * b) for a, b in zip(first, second, strict=True)])
