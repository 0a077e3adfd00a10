"""How the end of an inner loop is differentiated: apart from how its steps are taken.

Each way is called with the `Loop` of one task, and returns a `tfmeta.inner_loop.Path`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfmeta.derivatives import dense, gradients_or_zeros
from tfmeta.inner_loop import InnerStep, Path, inner_path, inner_solution
from tfmeta.types import Params, Tensor


class Loop(NamedTuple):
    """The inner loop of one task.

    Attributes:
        step_at: How a step is taken, made of the tensors that no step changes.
        fixed: These tensors, a nest.
        adapted: The tensors that the steps change, as the first one finds them.
        state: What passes from step to step beside them.
        steps: How many steps, K.
        training: Whether somebody will differentiate.
        every: Whether an unrolled path has the ends of all steps, and not of the last alone.
        tolerance: Of an unrolled loop, stop a task when its loss has not fallen by so much.
    """

    step_at: Callable[[Any], InnerStep]
    fixed: Any
    adapted: Params
    state: Params
    steps: int
    training: bool = True
    every: bool = False
    tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """Differentiate through the steps, as in MAML.

    Attributes:
        first_order: Take the inner gradient as a constant, so that `∂φ/∂θ = I`.
        recompute: Compute the activations of each step once more for the gradient.
    """

    first_order: bool = False
    recompute: bool = False

    def kept(self, steps: int) -> int:
        """Return of how many steps the activations are kept at once."""
        return 1 if self.first_order or self.recompute else steps

    def __call__(self, loop: Loop) -> Path:
        """Take the steps."""
        return inner_path(
            lambda fixed: loop.step_at(fixed)._replace(first_order=self.first_order),
            loop.fixed,
            loop.adapted,
            loop.state,
            loop.steps,
            every=loop.every,
            tolerance=loop.tolerance,
            recompute=self.recompute and loop.training,
        )


@dataclasses.dataclass(frozen=True)
class Detached:
    """Don't differentiate: the end is a constant. Memory does not grow with the steps.

    Attributes:
        slots: Those that the inner optimizer begins with; new ones if `None`.
    """

    slots: Params | None = None

    def kept(self, steps: int) -> int:
        """Return of how many steps the activations are kept at once."""
        return 1

    def __call__(self, loop: Loop) -> Path:
        """Take the steps; the path has the last one, and the slots."""
        step = loop.step_at(loop.fixed)
        slots = step.rule.init(loop.adapted) if self.slots is None else self.slots
        end, state, slots = inner_solution(step, loop.adapted, loop.state, slots, loop.steps)
        return Path([end], [state], tf.cast(loop.steps, end[0].dtype), slots)


@dataclasses.dataclass(frozen=True)
class Implicit:
    """Differentiate the solution `φ* = argmin L(φ) + (λ/2)‖φ − θ‖²` that the steps lead to.

    The gradient at θ is `v` with `((1 + δ) I + H/λ) v = g`, H the Hessian of L at φ* and g the
    gradient there, and that at the fixed tensors is `−(1/λ) ∂⟨∇L(φ*), v⟩`. It is exact where the
    steps have arrived. v is found by conjugate gradients, with Hessian-vector products.

    Attributes:
        proximal: λ, positive.
        cg_steps: Steps of conjugate gradients.
        cg_damping: δ, at least 0.
        report: Is told `‖((1 + δ) I + H/λ) v − g‖ / ‖g‖`, if there is one.

    Reference:
        Rajeswaran et al., *Meta-Learning with Implicit Gradients*, NeurIPS 2019.
    """

    proximal: float
    cg_steps: int = 5
    cg_damping: float = 0.0
    report: Callable[[Any], Any] | None = None

    def kept(self, steps: int) -> int:
        """Return of how many steps the activations are kept at once."""
        return 1

    def __call__(self, loop: Loop) -> Path:
        """Take the steps; the path has the last one, to which the implicit gradient is attached."""
        start = [tf.stop_gradient(x) for x in loop.adapted]
        path = Detached()(
            loop._replace(
                step_at=lambda fixed: self._near(start, loop.step_at(fixed)),
                fixed=tf.nest.map_structure(tf.stop_gradient, loop.fixed),
                adapted=start,
            )
        )
        (solution,), (end,) = path.params, path.states

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def attached(*inputs: Any) -> Any:
            given = list(inputs[len(start) :])

            def gradient(*upstream: Tensor) -> Any:
                step = loop.step_at(tf.nest.pack_sequence_as(loop.fixed, given))
                at_end = [dense(g) for g in upstream]
                return self._at_inputs(step, at_end, solution, end, given)

            return [tf.identity(x) for x in solution], gradient

        fixed = tf.nest.flatten(loop.fixed)
        return path._replace(params=[list(attached(*loop.adapted, *fixed))])

    def _near(self, start: Params, step: InnerStep) -> InnerStep:
        """Return a step on the loss with the proximal term."""

        def proximal_loss(adapted: Params, state: Params, k: Tensor) -> tuple[Any, Params, Params]:
            loss, state, written = step.support_loss(adapted, state, k)
            square = sum(tf.reduce_sum((a - s) ** 2) for a, s in zip(adapted, start, strict=True))
            return loss + tf.cast(self.proximal / 2 * square, loss.dtype), state, written

        return step._replace(support_loss=proximal_loss)

    def _at_inputs(
        self, step: InnerStep, gradient: Params, solution: Params, state: Params, fixed: Params
    ) -> Params:
        """Return the gradient at θ and at the fixed tensors, given the one at the solution."""

        def derivative(v: Params, at: Params) -> Params:
            """Return the derivative of `⟨∇L(φ*), v⟩` at some tensors."""
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
        if self.report is not None:
            self.report(residual)
        # What the steps leave alone moves their solution, too.
        return [*v, *(-x / self.proximal for x in derivative(v, fixed))]


def conjugate_gradients(
    matrix: Callable[[Params], Params], b: Params, steps: int
) -> tuple[Params, Tensor]:
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

    def body(k: Tensor, x: Params, r: Params, p: Params, square: Tensor) -> Any:
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


def _dot(first: Params, second: Params) -> Tensor:
    return tf.add_n([tf.reduce_sum(a * b) for a, b in zip(first, second, strict=True)])
