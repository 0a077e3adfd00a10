"""Model-agnostic meta-learning.

Finn, Abbeel and Levine, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*,
ICML 2017.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.rates import (
    LEARNED_RATES,
    Filled,
    LearnedRates,
    check_enough,
    given_rate,
    shapes_of_rates,
)
from tfmeta.checks import check_at_least_zero, check_count, check_positive
from tfmeta.constraints import Constraint
from tfmeta.copies import copy_of
from tfmeta.devices import room
from tfmeta.distribution import replicas_here
from tfmeta.ends import kind_of_output, makers
from tfmeta.functional import (
    BATCH_NORM_MODES,
    TRACING,
    BatchNormMode,
    Called,
    Statistics,
    batch_norm_layers,
    chosen_variables,
    exact_derivatives,
    functional_call,
    per_step_layers,
    written_weights,
)
from tfmeta.inner_loop import InnerStep, Path, inner_path
from tfmeta.inner_optimizers import SGD, UpdateRule
from tfmeta.inputs import known_example
from tfmeta.kernels import gpus
from tfmeta.labels import Labels
from tfmeta.layers import BatchAtHandNormalization, ordinary_batch_norm
from tfmeta.meta_learner import MetaLearner
from tfmeta.packed import packed_call, spread_weights, task_axes, tried
from tfmeta.task_map import map_tasks, side_by_side
from tfmeta.types import Inputs, Params, Rates

# Keeps the gradients of a mean loss above what float16 can hold.
_HALF_PRECISION_SCALE = 1024.0

# How many examples to count with where a data set does not say.
_EXAMPLES = 25

# So many activations make operations large, and no longer worth it to have more tasks in them: with
# fewer, more of them stay in a core's cache.
_ENOUGH = 800_000


@keras.saving.register_keras_serializable(package="tfmeta")
class MAML(MetaLearner):
    """Learn an initialisation from which a few gradient steps solve a new task.

    `φ_0 = θ`, `φ_{k+1} = φ_k − α ∇L_S(φ_k)`; the outer loss is the mean over tasks of `L_Q(φ_K)`,
    differentiated through the inner steps. Both losses are the one given to `compile`, the mean
    over examples. (The authors' code steps on a support loss that is not averaged, so that its
    inner rate of 0.4 for 5-way 1-shot Omniglot is 2.0 here.) Regularisation losses of weights count
    at φ_k in the support loss, and at θ in the outer loss.

    Args:
        model: Any `keras.Model`; its weights are the initialisation θ, and `fit` changes them.
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
        adapt_layers: Which weights the inner loop changes: names of layers, paths of variables, or a
            function of a variable that says yes or no; all by default, but for those of per-step
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

    # Stop a task's inner loop when its support loss falls by less; see MAMLPlusPlus.
    tolerance: float | None = None
    # After how many inner steps the queries are scored.
    scored_steps: int = 1
    # How many copies of the weights one task adapts.
    copies: int = 1

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        *,
        evaluation_steps: int | None = None,
        inner_optimizer: UpdateRule | None = None,
        inner_clip_norm: float | None = None,
        learned_rates: LearnedRates | None = None,
        joint_weight: float = 0.0,
        adapt_layers: str | Sequence[str] | Callable[[Any], bool] | None = None,
        batch_norm: BatchNormMode = "transductive",
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        if "adapt" in kwargs:
            warnings.warn(
                "The argument `adapt` is called `adapt_layers` now, for `adapt` is a method.",
                DeprecationWarning,
                stacklevel=2,
            )
            adapt_layers = kwargs.pop("adapt")
        super().__init__(model, **kwargs)
        check_count("inner_steps", inner_steps)
        if evaluation_steps is not None:
            check_count("evaluation_steps", evaluation_steps)
        for name, value, known in (
            ("batch_norm", batch_norm, BATCH_NORM_MODES),
            ("learned_rates", learned_rates, (None, *LEARNED_RATES)),
        ):
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, known))}. "
                    f"Received: {name}={value!r}"
                )
        if inner_clip_norm is not None:
            check_positive("inner_clip_norm", inner_clip_norm)
        check_at_least_zero("joint_weight", joint_weight)
        self.rule = _rule(inner_optimizer, inner_learning_rate)
        self.inner_optimizer = inner_optimizer
        self.inner_clip_norm = inner_clip_norm
        self.learned_rates = learned_rates
        self.joint_weight = joint_weight
        self.adapt_layers = adapt_layers
        self.inner_learning_rate = inner_learning_rate
        self.inner_steps = inner_steps
        self.first_order = first_order
        self.evaluation_steps = evaluation_steps
        self.batch_norm = batch_norm
        self.recompute = recompute
        self._writes: dict[Any, list[bool]] = {}
        self._check_steps()

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, check that it has what `adapt_layers` chooses, make learned rates."""
        super().build(input_shape)
        for layer in batch_norm_layers(self.model):
            if getattr(layer, "renorm", False) and self.batch_norm != "running":
                raise ValueError(
                    "`batch_norm` must be 'running' for batch renormalisation, which never uses "
                    "the statistics of a batch alone. Received: "
                    f"batch_norm={self.batch_norm!r}; layer {layer.name!r} has renorm=True"
                )
        adapted = self.adapted_weights()
        if self.learned_rates is None:
            return
        initial = Filled(self.rule.learning_rate, self.inner_steps)
        self.rates = [
            self.add_weight(shape=shape, initializer=initial, name=f"rate_{i}")
            for i, shape in enumerate(
                shapes_of_rates(self.learned_rates, self.inner_steps, [x for _, x in adapted])
            )
        ]

    def own_statistics(self) -> list[Any]:
        """Return the moving statistics, where they are kept."""
        passing = self._passing()
        return [v for v in super().own_statistics() if id(v) not in passing]

    def adapted_weights(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the name and shape of each tensor that the inner loop changes."""
        chosen = chosen_variables(self.model, self.adapt_layers)
        variables = itertools.compress(self.model.trainable_variables, chosen)
        return [(v.path, tuple(v.shape)) for v in variables]

    def adapt_task(self, support_x: Any, support_y: Any, *, training: bool) -> Any:
        """Return the adapted weights φ_K and the model's state, for `predict_task`."""
        path = self.path(support_x, support_y, training=training)
        return self.task_state(path.params[-1], path.states[-1], support_x, training=training)

    def predict_task(self, state: Any, query_x: Any, *, training: bool) -> Any:
        """Return the predictions `[queries, outputs]` at the adapted weights."""
        called = self.query(state, query_x, training=training)
        if training:
            self._keep(called.state)
        return called.outputs

    def task_loss(
        self, x: Inputs, y: Any, sample_weight: Any = None, *, first_order: bool | None = None
    ) -> tuple[Any, Any]:
        """Return `L_Q(φ_K) + λ L_Q(θ)` of one task, and the query predictions at φ_K."""
        support_x = x["support_x"]
        path = self.path(support_x, x["support_y"], training=True, first_order=first_order)
        called = self.query(
            self.task_state(path.params[-1], path.states[-1], support_x, training=True),
            x["query_x"],
            training=True,
        )
        loss = self.outer_loss(x, y, called, sample_weight)
        joint, state = self.joint_loss(x, y, called.state, sample_weight)
        self._keep(state)
        return loss + joint, called.outputs

    def test_task(self, x: Inputs, y: Any, sample_weight: Any = None) -> tuple[Any, Any]:
        """Return `L_Q(φ_K)` of one task in evaluation, and the query predictions."""
        state = self.adapt_task(x["support_x"], x["support_y"], training=False)
        called = self.query(state, x["query_x"], training=False)
        return self.outer_loss(x, y, called, sample_weight), called.outputs

    def path(
        self,
        support_x: Any,
        support_y: Any,
        *,
        training: bool,
        first_order: bool | None = None,
        every: bool = False,
    ) -> Path:
        """Run the inner loop: φ_K, all of the model's weights, and its state behind the last step.

        With `every` those of all steps.
        """
        params, state = self.start(support_x, support_y, training=training)
        if first_order is None:
            first_order = self.first_order
        self._keep_written(params, state, support_x, training=training)
        adapted, state = self._parted(params, state, training=training)

        def step_at(params: Params) -> InnerStep:
            step = self.inner_step(support_x, support_y, params, training=training)
            return step._replace(first_order=first_order)

        path = inner_path(
            step_at,
            params,
            adapted,
            state,
            self.steps(training),
            every=every,
            tolerance=self.tolerance,
            recompute=self.recompute and training,
        )
        by_step = zip(path.params, path.states, strict=True)
        whole = [self._whole(params, *end, training=training) for end in by_step]
        return path._replace(params=[p for p, _ in whole], states=[s for _, s in whole])

    def start(self, support_x: Any, support_y: Any, *, training: bool) -> tuple[Params, Params]:
        """Return θ and the state of the model, as tensors."""
        del support_y, training  # for learners whose start depends on the task
        params = [tf.convert_to_tensor(v) for v in self.model.trainable_variables]
        state = [tf.convert_to_tensor(v) for v in self.model.non_trainable_variables]
        if side_by_side():
            tasks = tf.nest.flatten(support_x)[0].shape[0]
            params, state = spread_weights(self.model, params, state, tasks)
        return params, state

    def inner_step(
        self, support_x: Any, support_y: Any, params: Params, *, training: bool
    ) -> InnerStep:
        """Return how the inner loop takes a step; `params` has the weights that don't change."""
        if not self.compiled:
            raise ValueError(
                f"{type(self).__name__} needs a loss for its inner loop: call compile(loss=...) "
                "first."
            )

        def support_loss(adapted: Params, state: Params, k: Any) -> tuple[Any, Params, Params]:
            weights, state = self._whole(params, adapted, state, training=training)
            called = self.forward(
                weights,
                state,
                support_x,
                training=training,
                statistics=self._inner_statistics(),
                step=k,
            )
            with TRACING, exact_derivatives(), self._losses_at(called.params):
                loss = self.losses_of_tasks(support_y, called.outputs, training=training)
            loss += sum(tf.cast(x, loss.dtype) for x in called.activity_losses)
            written, state = self._parted(called.params, called.state, training=training)
            return loss, state, written

        return InnerStep(
            support_loss,
            self.rule,
            self._rates_of_step,
            [name for name, _ in self.adapted_weights()],
            clip_norm=self.inner_clip_norm,
            loss_scale=_HALF_PRECISION_SCALE if self.model.compute_dtype == "float16" else 1.0,
            task_axes=self._task_axes() if side_by_side() else None,
            constraints=self._constraints(),
        )

    def forward(
        self,
        params: Params,
        state: Params,
        x: Any,
        *,
        training: bool,
        statistics: Statistics,
        step: Any = -1,
    ) -> Called:
        """Compute the predictions at given weights, as those of inner step `step`."""
        call = packed_call if side_by_side() else functional_call
        return call(
            self.model, params, state, x, training=training, statistics=statistics, step=step
        )

    def task_state(
        self, params: Params, state: Params, support_x: Any, *, training: bool, step: int = -1
    ) -> Any:
        """Return what `query` needs to know of a task at the weights of inner step `step`."""
        if self.batch_norm == "support" and batch_norm_layers(self.model):
            # The last inner step saw the statistics at the weights before it.
            _, state, _, params = self.forward(
                params, state, support_x, training=training, statistics="batch", step=step
            )
        if self._sees_support():
            return params, state, support_x
        return params, state

    def query(self, task_state: Any, query_x: Any, *, training: bool, step: int = -1) -> Called:
        """Compute the query predictions, with the batch normalisation that was chosen."""
        params, state = task_state[:2]
        statistics: dict[str, Statistics] = {
            "transductive": "batch",
            "support": "stored",
            "running": "training",
            "with_support": "batch",
        }

        def call(x: Any) -> Called:
            return self.forward(
                params,
                state,
                x,
                training=training,
                statistics=statistics[self.batch_norm],
                step=step,
            )

        return (
            self._one_by_one(call, query_x, task_state[2])._replace(params=params)
            if self._sees_support()
            else call(query_x)
        )

    def outer_loss(self, x: Inputs, y: Any, called: Called, sample_weight: Any) -> Any:
        """Return the loss of query predictions, with regularisation losses of their activities."""
        loss = self.losses_of_tasks(y, called.outputs, sample_weight, x=x)
        return loss + sum(tf.cast(value, loss.dtype) for value in called.activity_losses)

    def joint_loss(
        self, x: Inputs, y: Any, state: Params, sample_weight: Any
    ) -> tuple[Any, Params]:
        """Return `λ L_Q(θ)` and the model's state behind it."""
        if not self.joint_weight:
            return 0.0, state
        params, _ = self.start(x["support_x"], x["support_y"], training=True)
        called = self.forward(
            params, state, x["query_x"], training=True, statistics=self._inner_statistics(), step=0
        )
        with self._losses_at(called.params):
            loss = self.outer_loss(x, y, called, sample_weight)
        return self.joint_weight * loss, called.state

    def steps(self, training: bool) -> int:
        """Return the number of inner steps, K."""
        return self.inner_steps if training else self.evaluation_steps or self.inner_steps

    def why_not_packed(self) -> str | None:
        """Return the layer or the option that needs one task after another, if there is one."""
        norms = batch_norm_layers(self.model)
        if norms and self.batch_norm in ("running", "with_support"):
            return f"layer {norms[0].name!r} with batch_norm={self.batch_norm!r}"
        trial = tried(self.model, self.example)
        self.activations = trial.activations
        return trial.obstacle

    def tasks_in_flight(self, inputs: Inputs) -> int:
        """Return how many tasks are in flight where `task_chunk` does not say.

        On a GPU as many as its memory holds, in one chunk where that are all. On a CPU at most 8,
        or one for each core, and where each core computes a chunk, no more than make its operations
        large. Activations of each inner step are kept, forward and backward, where the outer
        gradient goes through it.
        """
        support, query = (
            keras.tree.flatten(inputs[name])[0].shape[1] or _EXAMPLES
            for name in ("support_x", "query_x")
        )
        steps = 1 if self.first_order or self.recompute else self.inner_steps
        each = max(1, self.activations) * self.copies
        numbers = each * (2 * steps * support + self.scored_steps * query)
        held: int = room() // (numbers * tf.as_dtype(self.model.compute_dtype).size)
        if gpus():
            return max(1, held)
        cores = self.chunks_at_once()
        most = min(held, max(cores, super().tasks_in_flight(inputs) // self.copies))
        if cores > 1:
            most = min(most, cores * max(1, _ENOUGH // (each * (support + query))))
        return max(1, most)

    def outputs_are(self) -> list[str | None]:
        """Return whether the outputs of the model are logits, by its last activations."""
        return [kind_of_output(layer) for layer in makers(self.model)]

    def output_spec(self) -> Any:
        """Return what the model returns for symbolic examples."""
        return self.outputs_of_model()

    @property
    def labels(self) -> Labels:
        """Class numbers below the width of the model's output, or what else the loss takes."""
        outputs = self.outputs_of_model() if self.built else None
        width = None if outputs is None or tf.nest.is_nested(outputs) else outputs.shape[-1]
        return self.labels_by_loss(width)

    @property
    def transductive(self) -> bool:
        """Whether batch normalisation makes a prediction depend on the queries beside it."""
        return self.batch_norm == "transductive" and bool(batch_norm_layers(self.model))

    def named_state(self, state: Any) -> dict[str, Any]:
        """Return the weights that are adapted, and the statistics that queries are normalised by.

        With `batch_norm="with_support"` the support set itself, too.
        """
        params, model_state, *support = state
        passed = zip(
            self._names(params),
            [*params, *model_state],
            [*self._chosen(params), *self._state_differs()],
            strict=True,
        )
        named = {name: value for name, value, differs in passed if differs}
        return {**named, **({"support_x": support[0]} if support else {})}

    def state_of(self, tensors: dict[str, Any], structure: Any) -> Any:
        """Return weights and state of a task: those given, and the learner's own in between."""
        params, _, *support = structure
        head = [None] * (len(params) - len(self.model.trainable_variables))
        own = [*self.model.trainable_variables, *head, *self.model.non_trainable_variables]
        every = [
            tensors[name] if name in tensors else tf.convert_to_tensor(variable)
            for name, variable in zip(self._names(params), own, strict=True)
        ]
        state = every[: len(params)], every[len(params) :]
        return (*state, tensors["support_x"]) if support else state

    def adapted_model(self, state: Any) -> keras.Model:
        """Return the user's model with the adapted weights.

        With `batch_norm="transductive"` its batch normalisation uses the batch at hand, like the
        learner's; with `"support"` it has the support set's statistics stored. With
        `"with_support"` the support set is in it. Per-step batch normalisation becomes an
        ordinary one, that of the last step. Where the model cannot be copied or its batch
        normalisation exchanged, it is called as the learner calls it, with weights of its own.
        """
        model = self.ordinary_model(state)
        return super().adapted_model(state) if model is None else model

    def ordinary_model(self, state: Any) -> keras.Model | None:
        """Return a model for one task without tfmeta's learner in it; `None` if there cannot be."""
        adapted = None if self._sees_support() else self._copy_for_a_task()
        if adapted is None:
            return None
        params, model_state = state
        for variables, values in (
            (adapted.trainable_variables, params),
            (adapted.non_trainable_variables, model_state),
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value if variable.shape == value.shape else value[-1])
        return adapted

    def _check_steps(self) -> None:
        """Check that each inner step has its rate and its batch normalisation."""
        for layer in per_step_layers(self.model):
            if {self.inner_steps, self.evaluation_steps or self.inner_steps} != {layer.steps}:
                raise ValueError(
                    "`inner_steps` and `evaluation_steps` must be those of per-step batch "
                    f"normalisation. Received: {self.inner_steps} and {self.evaluation_steps}; "
                    f"layer {layer.name!r} has {layer.steps}"
                )
        check_enough(
            self.rule.learning_rate, self.learned_rates, self.inner_steps, self.evaluation_steps
        )

    def _rates_of_step(self, k: Any) -> Rates:
        number = len(self.adapted_weights())
        if self.learned_rates is None:
            return [given_rate(self.rule.learning_rate, k, self.variable_dtype)] * number
        rates = [tf.convert_to_tensor(r) for r in self.rates]
        if "step" in self.learned_rates:
            rates = [r[k] for r in rates]
        if self.learned_rates == "weight" and side_by_side():
            rates = [
                tf.expand_dims(rate, axis) if rate.shape.rank else rate
                for rate, axis in zip(rates, self._task_axes(), strict=True)
            ]
        return rates if len(rates) == number else rates * number

    def _chosen(self, params: Params) -> list[bool]:
        """Return for each of `params` whether the inner loop changes it; those at the end it does.

        A learner may have weights behind the model's own, that are made anew for each task.
        """
        chosen = chosen_variables(self.model, self.adapt_layers)
        return chosen + [True] * (len(params) - len(chosen))

    def _written(self, training: bool) -> list[bool]:
        """Return for each trainable weight of the model whether its layers write to it."""
        variables = self.model.trainable_variables
        if side_by_side():
            return [False] * len(variables)  # no layer that has a rule does
        # Freezing a layer makes other weights trainable.
        key = training, *map(id, variables)
        if key not in self._writes:
            # A learner whose task is computed by hand need not be built, if its model is.
            example = self.example if self.built else known_example(self.model)
            self._writes[key] = written_weights(self.model, example, training=training)
        return self._writes[key]

    def _beside(self, params: Params, *, training: bool) -> list[bool]:
        """Return for each of `params` whether layers write to it and the inner loop does not."""
        beside = zip(self._written(training), self._chosen(params), strict=False)
        return [written and not chosen for written, chosen in beside]

    def _parted(self, params: Params, state: Params, *, training: bool) -> tuple[Params, Params]:
        """Return those of `params` that are adapted, and all else that an inner step changes."""
        beside = self._beside(params, training=training)
        return (
            list(itertools.compress(params, self._chosen(params))),
            [*state, *itertools.compress(params, beside)],
        )

    def _whole(
        self, params: Params, adapted: Params, state: Params, *, training: bool
    ) -> tuple[Params, Params]:
        """Return weights and state of the model: the reverse of `_parted`, the rest of `params`."""
        own = len(self.model.non_trainable_variables)
        params = _merged(params, self._beside(params, training=training), state[own:])
        return _merged(params, self._chosen(params), adapted), state[:own]

    def _keep_written(
        self, params: Params, state: Params, support_x: Any, *, training: bool
    ) -> None:
        """Keep in the model what its layers write to weights at θ, as training in Keras would."""
        written = self._written(training) if training else []
        if not any(written):
            return
        variables = self.model.trainable_variables
        if replicas_here() > 1:
            path = next(itertools.compress(variables, written)).path
            raise ValueError(
                "`model` must have layers that write to no trainable weight in their call for "
                f"training with several replicas. Received: one that writes to {path!r}"
            )
        called = self.forward(
            params,
            state,
            support_x,
            training=True,
            statistics=self._inner_statistics(),
            step=0,
        )
        for variable, value in itertools.compress(
            zip(variables, called.params, strict=False), written
        ):
            variable.assign(value)

    def _constraints(self) -> list[Constraint | None] | None:
        """Return Keras's constraint of each weight that is adapted; `None` if there is none."""
        variables = self.model.trainable_variables
        chosen = itertools.compress(variables, self._chosen(variables))
        found = [v.constraint for v in chosen]
        if side_by_side() or not any(found):
            return None  # packed layers have none
        # The weights that a learner has behind the model's have none.
        return found + [None] * (len(self.adapted_weights()) - len(found))

    def _task_axes(self) -> list[int]:
        """Return which axis of each tensor that is adapted is that of the tasks, when packed."""
        axes = task_axes(self.model)
        by_path = {v.path: axes[id(v)] for v in self.model.trainable_variables}
        # The weights that a learner has behind the model's have it in front.
        return [by_path.get(name, 0) for name, _ in self.adapted_weights()]

    def _losses_at(self, params: Params) -> Any:
        """Return a context for a loss with regularisation of `params`, outside of metrics.

        The losses' own metrics are for the queries at φ_K.
        """
        # A learner may have weights behind the model's own; packed models have no regularisation.
        variables = [] if side_by_side() else self.model.trainable_variables
        return keras.StatelessScope(list(zip(variables, params, strict=False)))

    def _inner_statistics(self) -> Statistics:
        return "training" if self.batch_norm == "running" else "batch"

    def _sees_support(self) -> bool:
        return self.batch_norm == "with_support" and bool(batch_norm_layers(self.model))

    def _one_by_one(self, call: Callable[[Any], Called], query_x: Any, support_x: Any) -> Called:
        """Call a model with each query behind the whole support set, and keep the query's part."""

        def one(query: Any) -> Any:
            together = tf.nest.map_structure(
                lambda s, q: tf.concat([s, q[None]], 0), support_x, query
            )
            called = call(together)
            outputs = tf.nest.map_structure(lambda x: x[-1], called.outputs)
            penalties = [tf.cast(x, self.variable_dtype) for x in called.activity_losses]
            return outputs, called.state, tf.add_n([tf.zeros((), self.variable_dtype), *penalties])

        query_x = tf.nest.map_structure(tf.convert_to_tensor, query_x)
        outputs, states, penalties = map_tasks(one, query_x)
        return Called(outputs, [x[-1] for x in states], [tf.reduce_mean(penalties)], [])

    def _names(self, params: Params) -> list[str]:
        """Return a name for each of `params` and then of the model's state, as identifiers."""
        weights = self.model.trainable_variables
        head = len(params) - len(weights)
        paths = [v.path for v in weights]
        # The weights that a learner has behind the model's are always adapted.
        paths += [name for name, _ in self.adapted_weights()[-head:]] if head else []
        paths += [v.path for v in self.model.non_trainable_variables]
        own = f"{self.model.name}/"
        names = [re.sub(r"\W", "_", path.removeprefix(own)) for path in paths]
        # Models within models may have layers of one name.
        again = [names[:i].count(name) for i, name in enumerate(names)]
        return [f"{name}_{n}" if n else name for name, n in zip(names, again, strict=True)]

    def _state_differs(self) -> list[bool]:
        """Return for each part of the model's state whether queries see a task's own of it."""
        changed: list[bool] = []

        def call(x: Any) -> Any:
            params, state = MAML.start(self, x, None, training=False)
            called = MAML.forward(
                self, params, state, x, training=False, statistics=self._inner_statistics()
            )
            changed[:] = [a is not b for a, b in zip(called.state, state, strict=True)]
            return called.outputs

        spec = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), self.example)
        tf.function(call, autograph=False).get_concrete_function(spec)
        norms = [] if self.batch_norm in ("support", "running") else batch_norm_layers(self.model)
        unseen = {id(v) for layer in norms for v in layer.non_trainable_variables}
        state = self.model.non_trainable_variables
        return [c and id(v) not in unseen for c, v in zip(changed, state, strict=True)]

    def _copy_for_a_task(self) -> keras.Model | None:
        """Return a copy of the model, with the batch normalisation that a task needs."""
        at_hand = self.batch_norm == "transductive" and bool(batch_norm_layers(self.model))
        if not at_hand and not per_step_layers(self.model):
            return copy_of(self.model)
        cls = BatchAtHandNormalization if at_hand else keras.layers.BatchNormalization
        copy = copy_of(self.model, lambda layer: ordinary_batch_norm(layer, cls))
        # Only layers of Functional and Sequential models are exchanged.
        wrong = (
            copy is None
            or per_step_layers(copy)
            or (at_hand and not all(isinstance(x, cls) for x in batch_norm_layers(copy)))
        )
        return None if wrong else copy

    def _passing(self) -> set[int]:
        """Return the statistics that a task's query set leaves no trace in, by `id`."""
        norms = [] if self.batch_norm == "running" else batch_norm_layers(self.model)
        return {id(v) for layer in norms for v in layer.non_trainable_variables}

    def _keep(self, model_state: Params) -> None:
        """Keep a task's random seeds, and its moving statistics if evaluation will use them."""
        passing = self._passing()
        if side_by_side():
            # All that a rule can change but the seeds are statistics of batches.
            stored = self.model.non_trainable_variables
            passing |= {id(v) for v in stored if keras.backend.is_float_dtype(v.dtype)}
        for variable, value in zip(self.model.non_trainable_variables, model_state, strict=True):
            if id(variable) not in passing:
                variable.assign(value)


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


def refuse(learner: MAML, model: Any, arguments: dict[str, Any], *names: str) -> None:
    """Raise if a learner that does not differentiate through its inner steps is asked to.

    Raises:
        TypeError: If one of `names` is among the arguments.
        ValueError: If the model has per-step batch normalisation, whose steps must be unrolled.
    """
    method = type(learner).__name__
    for name in names:
        if name in arguments:
            raise TypeError(f"{method} has no argument `{name}`. Received: {arguments[name]!r}")
    if isinstance(model, keras.Model) and per_step_layers(model):
        raise ValueError(
            f"`model` must have ordinary batch normalisation for {method}. Received: per-step "
            f"batch normalisation in layer {per_step_layers(model)[0].name!r}"
        )


def _rule(rule: UpdateRule | None, learning_rate: Any) -> UpdateRule:
    if rule is None:
        try:
            return SGD(learning_rate)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("learning_rate", "inner_learning_rate")) from None
    if (
        isinstance(rule, str)
        or not all(
            hasattr(rule, name) for name in ("learning_rate", "init", "update", "get_config")
        )
        or isinstance(rule, keras.optimizers.Optimizer)
    ):
        raise TypeError(
            "`inner_optimizer` must be a rule of tfmeta.inner_optimizers: SGD, RMSprop or Adam, as "
            "in inner_optimizer=tfmeta.inner_optimizers.Adam(0.01). Keras's optimizers cannot be "
            f"differentiated through. Received: inner_optimizer={rule!r}"
        )
    return rule


def _merged(params: Params, chosen: list[bool], adapted: Params) -> Params:
    # Behind the model's weights a learner may have others.
    new, more = iter(adapted), [False] * (len(params) - len(chosen))
    return [next(new) if c else p for c, p in zip([*chosen, *more], params, strict=True)]
