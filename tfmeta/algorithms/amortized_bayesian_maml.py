"""Amortised Bayesian meta-learning: a normal distribution over weights that adapts like MAML's.

Ravi and Beatson, *Amortized Bayesian Meta-Learning*, ICLR 2019.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.posterior import PosteriorMAML
from tfmeta.checks import check_at_least_zero, check_count, check_positive
from tfmeta.fast_weights import FastWeights
from tfmeta.functional import Called, Statistics, functional_call
from tfmeta.inner_loop import InnerStep
from tfmeta.random_weights import Noise, check_rules, drawn_once, random_weights
from tfmeta.types import Inputs, Nest, Params, Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class AmortizedBayesianMAML(PosteriorMAML):
    """Learn mean and variance of weights, from which a few steps lead to a task's posterior.

    `θ = (μ, log σ)` is both the prior `p(φ|θ) = N(μ, σ²)` of a task's weights and where their
    posterior `q = N(μ_k, σ_k²)` starts. The inner loop takes K steps down

        `E_q[L_S(φ)] + β/n KL(q ‖ p(φ|θ))`

    for n support examples, L_S being their mean loss: so that with β = 1 and a loss that is a
    negative log likelihood it is a part of the negative evidence bound. The outer loss is the same
    of the query set at q_K, less `w log p(θ)` with `p(θ) = N(μ; 0, 1) Gamma(1/σ²; a, b)`.
    Expectations are means over `samples` draws. Predictions, too, and always over the same draws:
    of class probabilities (as their logarithm, where the loss takes logits) or of the outputs.

    Args:
        model: A `keras.Model` with weights in dense, convolutional and normalisation layers; its
            weights are μ.
        inner_learning_rate: α, positive, for μ and log σ alike.
        inner_steps: K, in training.
        samples: Draws of the weights.
        kl_weight: β, at least 0.
        initial_std: σ at the start of training, positive.
        prior_weight: w, at least 0; 1 over the number of training tasks for one prior over all.
        prior: `(a, b)`, shape and rate of the Gamma distribution, both positive.
        from_logits: Whether outputs are logits of classes; by default as the loss has it.
        **kwargs: `first_order`, `evaluation_steps`, `inner_optimizer`, `inner_clip_norm`,
            `batch_norm`, `recompute`, `task_axis`, `task_chunk`, `name` and `dtype`, as in `MAML`.

    Raises:
        TypeError: If an argument is unknown here, or a number is no number.
        ValueError: If a value is out of range, or a layer has weights that cannot be random.

    Example:
        ```python
        learner = tfmeta.AmortizedBayesianMAML(tfmeta.models.conv4((28, 28, 1), 5), 0.1, 5)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.fit(sampler.dataset(meta_batch_size=8), steps_per_epoch=500, epochs=20)
        ```
    """

    one_task = "its layers draw their noise for each example of one task"

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        *,
        samples: int = 5,
        kl_weight: float = 1.0,
        initial_std: float = 0.01,
        prior_weight: float = 0.0,
        prior: tuple[float, float] = (1.0, 0.01),
        **kwargs: Any,
    ) -> None:
        check_count("samples", samples)
        check_at_least_zero("kl_weight", kl_weight)
        check_positive("initial_std", initial_std)
        check_at_least_zero("prior_weight", prior_weight)
        a, b = prior
        check_positive("prior", a)
        check_positive("prior", b)
        super().__init__(model, inner_learning_rate, inner_steps, first_order, **kwargs)
        if self.batch_norm == "with_support":
            raise ValueError(
                "`batch_norm` must be 'transductive', 'support' or 'running' for "
                "AmortizedBayesianMAML. Received: batch_norm='with_support'"
            )
        self.samples = samples
        self.kl_weight = kl_weight
        self.initial_std = initial_std
        self.prior_weight = prior_weight
        self.prior = (a, b)

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and make log σ."""
        super().build(input_shape)
        check_rules(self.model)
        for variable in self.model.trainable_variables:
            if variable.constraint is not None:
                raise ValueError(
                    "`model` must have no constraints for AmortizedBayesianMAML, as draws of the "
                    f"weights would not keep to them. Received: {variable.path!r} with "
                    f"{type(variable.constraint).__name__}"
                )
        start = keras.initializers.Constant(math.log(self.initial_std))
        self.log_stds = [
            self.add_weight(shape=v.shape, dtype=v.dtype, initializer=start, name=f"log_std_{i}")
            for i, v in enumerate(self.model.trainable_variables)
        ]

    def start(
        self, support_x: Nest, support_y: Nest, *, training: bool
    ) -> tuple[FastWeights, Params]:
        """Return the weights μ with the head log σ, and the state of the model, as tensors."""
        weights, state = super().start(support_x, support_y, training=training)
        return weights._replace(head=[tf.convert_to_tensor(v) for v in self.log_stds]), state

    def head_weights(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return name and shape of each log σ."""
        return [(f"{v.path}/log_std", tuple(v.shape)) for v in self.model.trainable_variables]

    def chosen(self) -> list[bool]:
        """Return for each mean, then for each log σ, whether the inner loop changes it."""
        chosen = super().chosen()[: len(self.model.trainable_variables)]
        return [*chosen, *chosen]

    def inner_step(
        self, support_x: Nest, support_y: Nest, weights: FastWeights, *, training: bool
    ) -> InnerStep:
        """Return how the inner loop takes a step on the negative evidence bound."""
        step = super().inner_step(support_x, support_y, weights, training=training)
        start = list(itertools.compress([*weights.model, *weights.head], self.chosen()))
        weight = self._kl_weight(support_x)

        def bound(adapted: Params, state: Params, k: Tensor) -> tuple[Any, Params, Params]:
            likelihood, state, written = step.support_loss(adapted, state, k)
            likelihood += tf.cast(weight * divergence(adapted, start), likelihood.dtype)
            return likelihood, state, written

        return step._replace(support_loss=bound)

    def forward(
        self,
        weights: FastWeights,
        state: Params,
        x: Nest,
        *,
        training: bool,
        statistics: Statistics,
        step: Any = -1,
    ) -> Called:
        """Compute the predictions `[samples*n, outputs]` at draws of the weights."""
        noise = Noise(training, self.model.compute_dtype)
        drawn = drawn_once(self.model, weights.model, weights.head, noise)
        with random_weights(self.model, weights.head, noise):
            called = functional_call(
                self.model,
                drawn,
                state,
                self._repeated(x),
                training=training,
                statistics=statistics,
                step=step,
            )
        # No layer with random weights writes to them.
        return called._replace(params=weights.model)

    def losses_of_tasks(
        self,
        y: Nest,
        y_pred: Nest,
        sample_weight: Nest = None,
        *,
        x: Inputs | None = None,
        training: bool = True,
    ) -> Tensor:
        """Return the mean over draws of the compiled loss of one task."""
        y, sample_weight = self._repeated(y), self._repeated(sample_weight)
        return super().losses_of_tasks(y, y_pred, sample_weight, x=x, training=training)

    def task_loss(
        self, x: Inputs, y: Nest, sample_weight: Nest = None, **how: Any
    ) -> tuple[Tensor, Nest]:
        """Return the outer loss of one task, and the mean of the query predictions."""
        support_x, query_x = x["support_x"], x["query_x"]
        path = self.path(support_x, x["support_y"], training=True, **how)
        weights, state = path.params[-1], path.states[-1]
        called = self.query(
            self.task_state(weights, state, support_x, training=True), query_x, training=True
        )
        start, _ = self.start(support_x, x["support_y"], training=True)
        theta = [*start.model, *start.head]
        loss = self.query_loss(x, y, called, sample_weight)
        distance = divergence([*weights.model, *weights.head], theta)
        loss += tf.cast(self._kl_weight(query_x) * distance, loss.dtype)
        loss -= tf.cast(self.prior_weight * log_prior(theta, *self.prior), loss.dtype)
        self.keep(called.state)
        return loss, self.mean(called.outputs)

    def by_draw(self, outputs: Tensor) -> Nest:
        """Return `[1, samples, n, ...]` of `[samples*n, ...]`."""
        sizes = tf.concat([[1, self.samples, -1], tf.shape(outputs)[1:]], 0)
        return tf.ensure_shape(
            tf.reshape(outputs, sizes), [1, self.samples, None, *outputs.shape[1:]]
        )

    def ordinary_model(self, state: Nest) -> None:
        """Return none, for a model of one task draws its weights as the learner does."""
        del state

    def _kl_weight(self, x: Inputs | None) -> Any:
        """Return β over the number of examples."""
        n = tf.shape(tf.nest.flatten(x)[0])[0]
        return self.kl_weight / tf.cast(n, self.variable_dtype)

    def _repeated(self, values: Nest) -> Any:
        """Return all examples once for each draw: `[samples*n, ...]`."""

        def repeated(x: Any) -> Any:
            if x is None:
                return None
            return tf.tile(x, [self.samples, *[1] * (len(x.shape) - 1)])

        return tf.nest.map_structure(repeated, values)


def divergence(params: Params, start: Params) -> Tensor:
    """Return `KL(N(μ, σ²) ‖ N(μ₀, σ₀²))` of independent numbers.

    `Σ log(σ₀/σ) + (σ² + (μ − μ₀)²)/(2σ₀²) − ½`

    Args:
        params: `[*μ, *log σ]`.
        start: `[*μ₀, *log σ₀]`.
    """
    half = len(params) // 2
    terms = []
    for mean, log_std, mean_0, log_std_0 in zip(
        params[:half], params[half:], start[:half], start[half:], strict=True
    ):
        ratio = log_std - log_std_0
        distance = (mean - mean_0) * tf.exp(-log_std_0)
        terms.append(tf.reduce_sum((tf.exp(2 * ratio) + distance**2 - 1) / 2 - ratio))
    return tf.add_n(terms)


def log_prior(theta: Params, a: float, b: float) -> Tensor:
    """Return `log N(μ; 0, 1) Gamma(1/σ²; a, b)`, summed over all weights."""
    half = len(theta) // 2
    count = sum(math.prod(x.shape) for x in theta[:half])
    constant = count * (a * math.log(b) - math.lgamma(a) - math.log(2 * math.pi) / 2)
    terms = [-tf.reduce_sum(mean**2) / 2 for mean in theta[:half]]
    terms += [
        tf.reduce_sum(-2 * (a - 1) * log_std - b * tf.exp(-2 * log_std)) for log_std in theta[half:]
    ]
    return tf.add_n(terms) + constant
