"""Bayesian MAML: several particles of weights, which keep apart while they adapt.

Yoon, Kim, Dia, Kim, Bengio and Ahn, *Bayesian Model-Agnostic Meta-Learning*, NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tfmeta.algorithms.posterior import PosteriorMAML
from tfmeta.checks import check_at_least_zero, check_count, check_positive
from tfmeta.copies import remade
from tfmeta.differentiation import Loop, Unrolled
from tfmeta.fast_weights import FastWeights
from tfmeta.functional import Called, Statistics
from tfmeta.inner_loop import InnerStep
from tfmeta.layers import ParticleMean
from tfmeta.losses import task_losses
from tfmeta.packed import packed_call, task_axes
from tfmeta.svgd import descent_direction
from tfmeta.task_map import side_by_side
from tfmeta.types import Inputs, Nest, Params, Tensor

OUTER_LOSSES = ("chaser", "query")


@keras.saving.register_keras_serializable(package="tfmeta")
class BayesianMAML(PosteriorMAML):
    """Learn M initialisations, whose adapted weights are samples of a task's posterior.

    The inner loop takes steps of Stein variational gradient descent on all particles at once, the
    log posterior being the negative support loss: see `tfmeta.svgd.descent_direction`. The outer
    loss is the chaser loss `Σ_m ‖φ_m − φ*_m‖²`, where φ*, a constant, goes on from φ for
    `leader_steps` on support and query set together; or the mean of the particles' query losses.
    One particle with the latter is MAML.

    Predictions are the mean over particles: of class probabilities (as their logarithm, where the
    loss takes logits) or of the outputs themselves. `moments` has the variance too.

    Args:
        model: A `keras.Model` whose layers can be computed side by side. Its weights are the first
            particle.
        inner_learning_rate: ε, positive; a sequence has one for each inner step.
        inner_steps: K, in training.
        first_order: Take the direction of each step as a constant.
        particles: M.
        outer_loss: `"chaser"` or `"query"`.
        leader_steps: How many more steps the leader takes.
        repulsion: ρ, how much the particles push each other away, at least 0. The loss is a mean
            over examples; with a sum over n of them as the likelihood, ρ is 1/n.
        jitter: How the other particles start. `None`: at new draws of the model's initialisers.
            A number: at the model's weights plus normal noise of this standard deviation, for
            models that come with trained weights.
        from_logits: Whether outputs are logits of classes; by default as the loss has it.
        **kwargs: `evaluation_steps`, `inner_optimizer`, `adapt_layers`, `batch_norm`
            (`"transductive"` or `"support"`), `recompute`, `task_axis`, `task_chunk`, `name` and
            `dtype`, as in `MAML`.

    Raises:
        TypeError: If an argument is unknown here, or a number is no number.
        ValueError: If a value is out of range, or a layer cannot be computed side by side.

    Example:
        ```python
        learner = tfmeta.BayesianMAML(tfmeta.models.mlp((1,), 1), 0.01, 5, particles=10)
        learner.compile("adam", "mean_squared_error")
        learner.fit(sampler.dataset(meta_batch_size=10), steps_per_epoch=500, epochs=20)
        mean, variance = learner.moments(inputs)
        ```
    """

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        *,
        particles: int = 10,
        outer_loss: Literal["chaser", "query"] = "chaser",
        leader_steps: int = 1,
        repulsion: float = 1.0,
        jitter: float | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("inner_clip_norm") is not None:
            raise TypeError(
                "BayesianMAML has no argument `inner_clip_norm`: particles are not clipped alone. "
                f"Received: inner_clip_norm={kwargs['inner_clip_norm']!r}"
            )
        check_count("particles", particles)
        check_count("leader_steps", leader_steps)
        check_at_least_zero("repulsion", repulsion)
        if jitter is not None:
            check_positive("jitter", jitter)
        if outer_loss not in OUTER_LOSSES:
            raise ValueError(
                f"`outer_loss` must be one of {', '.join(map(repr, OUTER_LOSSES))}. "
                f"Received: outer_loss={outer_loss!r}"
            )
        super().__init__(model, inner_learning_rate, inner_steps, first_order, **kwargs)
        if self.batch_norm not in ("transductive", "support"):
            raise ValueError(
                "`batch_norm` must be 'transductive' or 'support' for BayesianMAML. "
                f"Received: batch_norm={self.batch_norm!r}"
            )
        self.particles = self.copies = particles
        self.outer_loss = outer_loss
        self.leader_steps = leader_steps
        self.repulsion = repulsion
        self.jitter = jitter

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and make the other particles."""
        super().build(input_shape)
        reason = self.why_not_packed()
        if reason is not None:
            raise ValueError(
                "`model` must have layers that can be computed side by side, as the particles are. "
                f"Received: {reason}"
            )
        others = [self._another() for _ in range(self.particles - 1)]
        self.others = []
        for i, variable in enumerate(self.model.trainable_variables if others else []):
            weight = self.add_weight(
                shape=(len(others), *variable.shape), dtype=variable.dtype, name=f"particles_{i}"
            )
            weight.assign(tf.stack([tf.convert_to_tensor(other[i]) for other in others]))
            self.others.append(weight)

    def start(
        self, support_x: Nest, support_y: Nest, *, training: bool
    ) -> tuple[FastWeights, Params]:
        """Return the particles and the state of each, as tensors with an axis of `tasks*M`."""
        del support_y, training
        tasks = tf.nest.flatten(support_x)[0].shape[0] if side_by_side() else 1
        axes = task_axes(self.model)

        def spread(variable: keras.Variable, others: list[Any]) -> Any:
            if not keras.backend.is_float_dtype(variable.dtype):
                return tf.convert_to_tensor(variable)
            first = tf.convert_to_tensor(variable)[None]
            rest = [tf.convert_to_tensor(x) for x in others] or [first] * (self.particles - 1)
            every = tf.tile(tf.concat([first, *rest], 0), [tasks, *[1] * len(variable.shape)])
            axis = axes[id(variable)]
            return tf.transpose(every, [*range(1, axis + 1), 0, *range(axis + 1, len(every.shape))])

        others = [[x] for x in self.others] or [[]] * len(self.model.trainable_variables)
        params = list(map(spread, self.model.trainable_variables, others))
        state = [spread(v, []) for v in self.model.non_trainable_variables]
        return FastWeights(params, []), state

    def inner_step(
        self, support_x: Nest, support_y: Nest, weights: FastWeights, *, training: bool
    ) -> InnerStep:
        """Return how the inner loop takes a step on all particles."""
        step = super().inner_step(support_x, support_y, weights, training=training)
        axes = self.task_axes()

        def direction(gradients: Params, particles: Params) -> Params:
            return descent_direction(gradients, particles, axes, self.particles, self.repulsion)

        return step._replace(task_axes=None, direction=direction)

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
        """Compute the predictions of each particle, `[tasks*M, n, outputs]`."""
        how: dict[str, Any] = {"training": training, "statistics": statistics, "step": step}
        return packed_call(self.model, weights.model, state, self._for_each(x), **how)

    def losses_of_tasks(
        self,
        y: Nest,
        y_pred: Nest,
        sample_weight: Nest = None,
        *,
        x: Inputs | None = None,
        training: bool = True,
    ) -> Tensor:
        """Return the mean over particles of the compiled loss, of one task or `[tasks]`."""
        del x
        y, sample_weight = self._for_each(y), self._for_each(sample_weight)
        losses = task_losses(self, None, y, y_pred, sample_weight, training=training)
        return self.of_tasks(tf.reduce_mean(tf.reshape(losses, [-1, self.particles]), axis=1))

    def task_loss(
        self, x: Inputs, y: Nest, sample_weight: Nest = None, **how: Any
    ) -> tuple[Tensor, Nest]:
        """Return the outer loss of one task, and the mean of the query predictions."""
        support_x, support_y, query_x = x["support_x"], x["support_y"], x["query_x"]
        path = self.path(support_x, support_y, training=True, **how)
        weights, model_state = path.params[-1], path.states[-1]
        state = self.task_state(weights, model_state, support_x, training=True)
        called = self.query(state, query_x, training=True)
        if self.outer_loss == "query":
            loss = self.query_loss(x, y, called, sample_weight)
        else:
            axis = 1 if side_by_side() else 0
            both_x, both_y = (
                tf.nest.map_structure(lambda a, b: tf.concat([a, tf.cast(b, a.dtype)], axis), *two)
                for two in ((support_x, query_x), (support_y, y))
            )
            loss = self._chaser_loss(both_x, both_y, weights, model_state)
        self.keep(called.state)
        return loss, self.mean(called.outputs)

    def by_draw(self, outputs: Tensor) -> Nest:
        """Return `[tasks, M, ...]` of `[tasks*M, ...]`."""
        return tf.reshape(outputs, tf.concat([[-1, self.particles], tf.shape(outputs)[1:]], 0))

    def ordinary_model(self, state: Nest) -> keras.Model | None:
        """Return the particles as one model, an ensemble with the mean of their predictions.

        Its layer `"particles"` has the predictions of each, `[n, M, outputs]`.
        """
        weights, model_state = state
        pairs = (
            (self.model.trainable_variables, weights.model),
            (self.model.non_trainable_variables, model_state),
        )
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(x.shape[1:], dtype=x.dtype), self.example
        )
        outputs = []
        for m in range(self.particles):
            model_weights, model_state = (
                [self._particle(m, v, x) for v, x in zip(*pair, strict=True)] for pair in pairs
            )
            model = super().ordinary_model((FastWeights(model_weights, []), model_state))
            if model is None:
                return None
            model.name = f"particle_{m}"
            outputs.append(model(inputs))
        if self.particles == 1:
            return model
        together = keras.layers.Concatenate(axis=1, name="particles")(
            [keras.ops.expand_dims(y, 1) for y in outputs]
        )
        mean = ParticleMean(self.takes_logits(), name="mean")(together)
        return keras.Model(inputs, mean, name="adapted")

    def _another(self) -> list[Any]:
        """Return the weights of another particle."""
        if self.jitter is None:
            return list(remade(self.model).trainable_variables)
        return [
            v + keras.random.normal(v.shape, stddev=self.jitter, dtype=v.dtype)
            for v in self.model.trainable_variables
        ]

    def _particle(self, m: int, variable: keras.Variable, values: Tensor) -> Any:
        """Return what particle m of a single task has in the place of a variable of the model."""
        if not keras.backend.is_float_dtype(variable.dtype):
            return values
        return tf.gather(values, m, axis=task_axes(self.model)[id(variable)])

    def _for_each(self, values: Nest) -> Any:
        """Return values of one task, or of several, for each particle: `[tasks*M, ...]`."""
        if not side_by_side():
            values = tf.nest.map_structure(lambda x: None if x is None else x[None], values)
        return tf.nest.map_structure(
            lambda x: None if x is None else tf.repeat(x, self.particles, axis=0), values
        )

    def _chaser_loss(self, x: Inputs | None, y: Nest, weights: FastWeights, state: Params) -> Any:
        """Return how far the particles are from where more steps on `x`, `y` would bring them."""
        particles, changed = self.parts(training=True).taken(weights, state)
        leader = Unrolled(first_order=True)(
            Loop(
                lambda fixed: self.inner_step(x, y, fixed, training=True),
                weights,
                particles,
                changed,
                self.leader_steps,
            )
        )
        squares = []
        for a, b, axis in zip(particles, leader.params[-1], self.task_axes(), strict=True):
            others = [i for i in range(len(a.shape)) if i != axis]
            squares.append(tf.reduce_sum((a - tf.stop_gradient(b)) ** 2, others))
        return self.of_tasks(tf.reduce_sum(self.by_draw(tf.add_n(squares)), axis=1))

    def written(self, training: bool) -> list[bool]:
        """Return that no layer that has a rule writes to weights."""
        return [False] * len(self.model.trainable_variables)

    def keep(self, state: Params) -> None:
        """Keep the random seeds of dropout: all else of the state is a particle's of a task."""
        for variable, value in zip(self.model.non_trainable_variables, state, strict=True):
            if not keras.backend.is_float_dtype(variable.dtype):
                variable.assign(value)

    def losses_at(self, params: Params) -> Tensor:
        """Return a context for a loss outside of metrics; packed models have no regularisation."""
        return keras.StatelessScope()
