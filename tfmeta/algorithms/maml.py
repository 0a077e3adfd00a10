"""Model-agnostic meta-learning.

Finn, Abbeel and Levine, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*,
ICML 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.algorithms.rates import (
    LEARNED_RATES,
    LearnedRates,
    check_enough,
    learned_at,
    weights_of_rates,
)
from tfmeta.checks import check_at_least_zero
from tfmeta.differentiation import Unrolled
from tfmeta.task_map import side_by_side
from tfmeta.types import Rates, Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class MAML(GradientBased):
    """Learn an initialisation from which a few gradient steps solve a new task.

    `φ_0 = θ`, `φ_{k+1} = φ_k − α ∇L_S(φ_k)`; the outer loss is the mean over tasks of `L_Q(φ_K)`,
    differentiated through the inner steps. Both losses are the one given to `compile`, the mean
    over examples. (The authors' code steps on a support loss that is not averaged, so that its
    inner rate of 0.4 for 5-way 1-shot Omniglot is 2.0 here.) Regularisation losses of weights count
    at φ_k in the support loss, and at θ in the outer loss.

    Args:
        model: Any `keras.Model`; its weights are the initialisation θ, and `fit` changes them.
            Behind layers that were trained before, begin with a last layer of zeros
            (`kernel_initializer="zeros"`): random weights there are in the way of good features.
        inner_learning_rate: α, positive; a sequence has one for each inner step.
        inner_steps: K, in training.
        first_order: Take the inner gradient as a constant, so that `∂φ/∂θ = I`.
        evaluation_steps: K in evaluation, prediction and `adapt`; `inner_steps` if `None`.
        inner_optimizer: A rule of `tfmeta.inner_optimizers`, with a learning rate of its own, in
            the place of plain gradient descent with `inner_learning_rate`.
        inner_clip_norm: Scale an inner gradient down to this norm over all weights, if it is
            longer.
        learned_rates: Let the outer loop train the inner rates, from the given ones: one rate in
            all (`"scalar"`), one for each inner step (`"step"`), one for each tensor of weights
            (`"tensor"`), one for each of both (`"tensor_step"`, MAML++), or one for each single
            weight (`"weight"`, Meta-SGD). Learnt rates may become negative, as in the papers.
        joint_weight: λ of the joint outer loss `L_Q(φ_K) + λ L_Q(θ)`, at least 0.
        adapt_layers: Which weights the inner loop changes: names of layers, paths of variables, or
            a function of a variable that says yes or no; all by default, but for those of per-step
            batch normalisation. The outer loop trains all.
        batch_norm: Which statistics batch normalisation uses. `"transductive"`, as published:
            those of the batch at hand, for the query set too. `"support"`: those of the support
            set at the adapted weights. `"with_support"`: those of the whole support set and the
            one query at hand, as Reptile's non-transductive evaluation. `"running"`: as in
            ordinary Keras training, moving averages in evaluation.
        recompute: Compute the activations of each inner step once more for the outer gradient, and
            keep the weights only: memory for many inner steps, at the price of time. XLA decides
            for itself what it keeps.
        **kwargs: `task_axis`, `task_chunk`, `name` and `dtype`, as in `MetaLearner`.

    Raises:
        TypeError: If `model` is not a Keras model, or a number is no number.
        ValueError: If a value is out of range, there are fewer rates than steps, or the model has
            no trainable weights.

    Example:
        ```python
        learner = tfmeta.MAML(tfmeta.models.conv4((28, 28, 1), 5), inner_learning_rate=0.4)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.fit(sampler.dataset(meta_batch_size=32), steps_per_epoch=500, epochs=20)
        adapted = learner.adapt(support_x, support_y)
        ```
    """

    takes_per_step = True

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        *,
        learned_rates: LearnedRates | None = None,
        joint_weight: float = 0.0,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        if learned_rates not in (None, *LEARNED_RATES):
            raise ValueError(
                f"`learned_rates` must be one of {', '.join(map(repr, (None, *LEARNED_RATES)))}. "
                f"Received: learned_rates={learned_rates!r}"
            )
        check_at_least_zero("joint_weight", joint_weight)
        super().__init__(model, inner_learning_rate, inner_steps, **kwargs)
        self.first_order = first_order
        self.learned_rates = learned_rates
        self.joint_weight = joint_weight
        self.recompute = recompute
        check_enough(
            self.rule.learning_rate, learned_rates, self.inner_steps, self.evaluation_steps
        )

    @property
    def differentiation(self) -> Unrolled:
        """How the outer gradient goes through the inner steps."""
        return Unrolled(self.first_order, self.recompute)

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and make learned rates."""
        super().build(input_shape)
        if self.learned_rates is not None:
            shapes = [shape for _, shape in self.adapted_weights()]
            self.rates = weights_of_rates(self, self.learned_rates, shapes)

    def rates_of_step(self, k: Tensor) -> Rates:
        """Return the rate of inner step k for each tensor that is adapted."""
        if self.learned_rates is None:
            return super().rates_of_step(k)
        axes = self.task_axes() if side_by_side() else None
        return learned_at(self.rates, self.learned_rates, k, sum(self.chosen()), axes)


def FOMAML(  # noqa: N802
    model: keras.Model,
    inner_learning_rate: float | Sequence[float] = 0.01,
    inner_steps: int = 1,
    **kwargs: Any,
) -> MAML:
    """Return first-order MAML: `MAML(..., first_order=True)`.

    The outer gradient is the query loss's gradient at the adapted weights, `∇L_Q(φ_K)`. Arguments
    are those of `MAML` without `first_order`.

    Example:
        >>> learner = tfmeta.FOMAML(tfmeta.models.conv4((28, 28, 1), 5), inner_learning_rate=0.4)
    """
    return MAML(model, inner_learning_rate, inner_steps, first_order=True, **kwargs)
