"""MAML with implicit gradients.

Rajeswaran, Finn, Kakade and Levine, *Meta-Learning with Implicit Gradients*, NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.checks import check_at_least_zero, check_count, check_positive
from tfmeta.differentiation import Implicit


@keras.saving.register_keras_serializable(package="tfmeta")
class ImplicitMAML(GradientBased):
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
        joint_weight: As in `MAML`.
        **kwargs: `evaluation_steps`, `inner_optimizer`, `inner_clip_norm`, `adapt_layers`,
            `batch_norm`, `task_axis`, `task_chunk`, `name` and `dtype`, as in `MAML`.

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

    one_task = "conjugate gradients are those of one task"

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 16,
        *,
        proximal: float = 2.0,
        cg_steps: int = 5,
        cg_damping: float = 0.0,
        joint_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, inner_learning_rate, inner_steps, **kwargs)
        check_positive("proximal", proximal)
        check_count("cg_steps", cg_steps)
        check_at_least_zero("cg_damping", cg_damping)
        self.proximal = proximal
        self.cg_steps = cg_steps
        self.cg_damping = cg_damping
        check_at_least_zero("joint_weight", joint_weight)
        self.joint_weight = joint_weight
        self.residual = keras.metrics.Mean(name="cg_residual")

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and check that its inner loop ends where a gradient is zero."""
        super().build(input_shape)
        variables = self.model.trainable_variables
        for found, what in (
            (self.written(training=True), "one that a layer writes to in its call"),
            ([v.constraint is not None for v in variables], "one with a constraint"),
        ):
            both = zip(variables, found, self.chosen(), strict=True)
            path = next((v.path for v, has, chosen in both if has and chosen), None)
            if path is not None:
                raise ValueError(
                    "`model` must have weights that nothing but the inner steps changes for "
                    "ImplicitMAML, whose gradient is that of a solution at which the inner "
                    f"gradient is zero; tfmeta.MAML takes them. Received: {path!r}, {what}"
                )

    @property
    def differentiation(self) -> Implicit:
        """How the outer gradient is that of the solution."""
        return Implicit(self.proximal, self.cg_steps, self.cg_damping, self.residual.update_state)

    def test_step(self, data: Any) -> Any:
        """Score a meta-batch: Keras's own step, without the residual, for there is no gradient."""
        logs = super().test_step(data)
        return {name: value for name, value in logs.items() if name != self.residual.name}
