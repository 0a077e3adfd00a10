"""`GradientBased`: what learners share whose inner loop takes steps down a task's support loss."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.rates import check_enough, given_rate
from tfmeta.checks import check_count, check_positive
from tfmeta.constraints import Constraint
from tfmeta.copies import copy_of
from tfmeta.devices import room
from tfmeta.differentiation import Loop, Unrolled
from tfmeta.distribution import replicas_here
from tfmeta.ends import kind_of_output, makers
from tfmeta.fast_weights import FastWeights, Parts
from tfmeta.foreign.derivatives import TRACING, exact_derivatives
from tfmeta.functional import (
    BATCH_NORM_MODES,
    BatchNormMode,
    Called,
    Statistics,
    batch_norm_layers,
    chosen_variables,
    functional_call,
    per_step_layers,
    written_weights,
)
from tfmeta.inner_loop import InnerStep, Path
from tfmeta.inner_optimizers import SGD, UpdateRule, check_rule
from tfmeta.inputs import known_example
from tfmeta.kernels import gpus
from tfmeta.labels import Labels
from tfmeta.layers import BatchAtHandNormalization, ordinary_batch_norm
from tfmeta.meta_learner import MetaLearner
from tfmeta.packed import packed_call, spread_weights, task_axes, tried
from tfmeta.query_batch_norm import MODES
from tfmeta.task_map import side_by_side
from tfmeta.types import Inputs, Nest, Params, Rates, Tensor

# Keeps the gradients of a mean loss above what float16 can hold.
_HALF_PRECISION_SCALE = 1024.0

# How many examples to count with where a data set does not say.
_EXAMPLES = 25

# So many activations make operations large, and no longer worth it to have more tasks in them: with
# fewer, more of them stay in a core's cache.
_ENOUGH = 800_000


class GradientBased(MetaLearner):
    """A learner with an inner loop of gradient steps, `φ_{k+1} = φ_k − α_k ∇L_S(φ_k)`.

    A method says how the end of the loop is differentiated, `differentiation`, and overrides those
    of the methods below in which it differs: where a task starts, what a step is, what is
    predicted at given weights, what the outer loss is.

    Args:
        model: Any `keras.Model`; its weights are the initialisation θ.
        inner_learning_rate: α, positive; a sequence has one for each inner step.
        inner_steps: K, in training.
        evaluation_steps: K in evaluation, prediction and `adapt`; `inner_steps` if `None`.
        inner_optimizer: A rule of `tfmeta.inner_optimizers`, with a learning rate of its own, in
            the place of plain gradient descent with `inner_learning_rate`.
        inner_clip_norm: Scale an inner gradient down to this norm over all weights, if it is
            longer.
        adapt_layers: Which weights the inner loop changes; see `MAML`.
        batch_norm: Which statistics batch normalisation uses; see `MAML`.
        **kwargs: `task_axis`, `task_chunk`, `name` and `dtype`, as in `MetaLearner`.
    """

    # How the end of the inner loop is differentiated; see `tfmeta.differentiation`.
    differentiation: Any = Unrolled()
    # λ of a joint outer loss `L_Q(φ_K) + λ L_Q(θ)`.
    joint_weight = 0.0
    # Stop a task's inner loop when its support loss falls by less; see MAMLPlusPlus.
    tolerance: float | None = None
    # After how many inner steps the queries are scored.
    scored_steps = 1
    # How many copies of the weights one task adapts.
    copies = 1
    # Whether batch normalisation may have weights for each inner step.
    takes_per_step = False

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 1,
        *,
        evaluation_steps: int | None = None,
        inner_optimizer: UpdateRule | None = None,
        inner_clip_norm: float | None = None,
        adapt_layers: str | Sequence[str] | Callable[[keras.Variable], bool] | None = None,
        batch_norm: BatchNormMode = "transductive",
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
        if batch_norm not in BATCH_NORM_MODES:
            raise ValueError(
                f"`batch_norm` must be one of {', '.join(map(repr, BATCH_NORM_MODES))}. "
                f"Received: batch_norm={batch_norm!r}"
            )
        if inner_clip_norm is not None:
            check_positive("inner_clip_norm", inner_clip_norm)
        self.rule = _rule(inner_optimizer, inner_learning_rate)
        self.inner_learning_rate = inner_learning_rate
        self.inner_steps = inner_steps
        self.evaluation_steps = evaluation_steps
        self.inner_optimizer = inner_optimizer
        self.inner_clip_norm = inner_clip_norm
        self.adapt_layers = adapt_layers
        self.batch_norm = batch_norm
        self._writes: dict[Any, list[bool]] = {}
        self._check_steps()

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and check that it has what `adapt_layers` chooses."""
        super().build(input_shape)
        for layer in batch_norm_layers(self.model):
            if getattr(layer, "renorm", False) and self.batch_norm != "running":
                raise ValueError(
                    "`batch_norm` must be 'running' for batch renormalisation, which never uses "
                    "the statistics of a batch alone. Received: "
                    f"batch_norm={self.batch_norm!r}; layer {layer.name!r} has renorm=True"
                )
        self.adapted_weights()

    # What a method may change.

    def start(
        self, support_x: Nest, support_y: Nest, *, training: bool
    ) -> tuple[FastWeights, Params]:
        """Return the weights that a task starts from, θ, and the state of the model, as tensors."""
        del support_y, training  # for learners whose start depends on the task
        params = [tf.convert_to_tensor(v) for v in self.model.trainable_variables]
        state = [tf.convert_to_tensor(v) for v in self.model.non_trainable_variables]
        if side_by_side():
            tasks = tf.nest.flatten(support_x)[0].shape[0]
            params, state = spread_weights(self.model, params, state, tasks)
        return FastWeights(params, []), state

    def head_weights(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return name and shape of each weight that `start` adds to the model's."""
        return []

    def chosen(self) -> list[bool]:
        """Return for each weight of model and head whether the inner loop adapts it."""
        chosen = chosen_variables(self.model, self.adapt_layers)
        return chosen + [True] * len(self.head_weights())

    def rates_of_step(self, k: Tensor) -> Rates:
        """Return the rate of inner step k for each tensor that is adapted."""
        rate = given_rate(self.rule.learning_rate, k, self.variable_dtype)
        return [rate] * sum(self.chosen())

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
        """Compute the predictions at given weights, as those of inner step `step`."""
        call: Callable[..., Called] = packed_call if side_by_side() else functional_call
        return call(
            self.model,
            weights.model,
            state,
            x,
            training=training,
            statistics=statistics,
            step=step,
        )

    def inner_step(
        self, support_x: Nest, support_y: Nest, weights: FastWeights, *, training: bool
    ) -> InnerStep:
        """Return how the inner loop takes a step; `weights` has those that don't change."""
        if not self.compiled:
            raise ValueError(
                f"{type(self).__name__} needs a loss for its inner loop: call compile(loss=...) "
                "first."
            )
        parts = self.parts(training)

        def support_loss(adapted: Params, changed: Params, k: Tensor) -> tuple[Any, Params, Params]:
            at, state = parts.put(weights, adapted, changed)
            called = self.forward(
                at, state, support_x, training=training, statistics=self.mode.inner, step=k
            )
            with TRACING, exact_derivatives(), self.losses_at(called.params):
                loss = self.losses_of_tasks(support_y, called.outputs, training=training)
            loss += sum(tf.cast(x, loss.dtype) for x in called.activity_losses)
            written, changed = parts.taken(at._replace(model=called.params), called.state)
            return loss, changed, written

        return InnerStep(
            support_loss,
            self.rule,
            self.rates_of_step,
            [name for name, _ in self.adapted_weights()],
            clip_norm=self.inner_clip_norm,
            loss_scale=_HALF_PRECISION_SCALE if self.model.compute_dtype == "float16" else 1.0,
            task_axes=self.task_axes() if side_by_side() else None,
            constraints=self._constraints(),
        )

    def task_loss(
        self, x: Inputs, y: Nest, sample_weight: Nest = None, **how: Any
    ) -> tuple[Tensor, Nest]:
        """Return `L_Q(φ_K) + λ L_Q(θ)` of one task, and the query predictions at φ_K."""
        support_x = x["support_x"]
        path = self.path(support_x, x["support_y"], training=True, **how)
        called = self.query(
            self.task_state(path.params[-1], path.states[-1], support_x, training=True),
            x["query_x"],
            training=True,
        )
        loss = self.query_loss(x, y, called, sample_weight)
        joint, state = self.joint_loss(x, y, called.state, sample_weight)
        self.keep(state)
        return loss + joint, called.outputs

    # What the methods are made of.

    def adapt_task(self, support_x: Nest, support_y: Nest, *, training: bool) -> Nest:
        """Return the adapted weights φ_K and the model's state, for `predict_task`."""
        path = self.path(support_x, support_y, training=training)
        return self.task_state(path.params[-1], path.states[-1], support_x, training=training)

    def predict_task(self, state: Nest, query_x: Nest, *, training: bool) -> Nest:
        """Return the predictions `[queries, outputs]` at the adapted weights."""
        called = self.query(state, query_x, training=training)
        if training:
            self.keep(called.state)
        return called.outputs

    def test_task(self, x: Inputs, y: Nest, sample_weight: Nest = None) -> tuple[Tensor, Nest]:
        """Return `L_Q(φ_K)` of one task in evaluation, and the query predictions."""
        state = self.adapt_task(x["support_x"], x["support_y"], training=False)
        called = self.query(state, x["query_x"], training=False)
        return self.query_loss(x, y, called, sample_weight), called.outputs

    def path(
        self,
        support_x: Nest,
        support_y: Nest,
        *,
        training: bool,
        every: bool = False,
        differentiation: Any = None,
    ) -> Path:
        """Run the inner loop: all weights at φ_K, and the model's state after the last step.

        With `every` those of all steps. `differentiation` is the learner's, if not given.
        """
        weights, state = self.start(support_x, support_y, training=training)
        self._keep_written(weights, state, support_x, training=training)
        parts = self.parts(training)
        adapted, changed = parts.taken(weights, state)
        path = (differentiation or self.differentiation)(
            Loop(
                lambda fixed: self.inner_step(support_x, support_y, fixed, training=training),
                weights,
                adapted,
                changed,
                self.steps(training),
                training=training,
                every=every,
                tolerance=self.tolerance,
            )
        )
        whole = [parts.put(weights, *end) for end in zip(path.params, path.states, strict=True)]
        found: Path = path._replace(params=[w for w, _ in whole], states=[s for _, s in whole])
        return found

    def task_state(
        self,
        weights: FastWeights,
        state: Params,
        support_x: Nest,
        *,
        training: bool,
        step: int = -1,
    ) -> Nest:
        """Return what `query` needs to know of a task at the weights of inner step `step`."""
        if self.mode.settles and batch_norm_layers(self.model):
            # The last inner step saw the statistics at the weights before it.
            called = self.forward(
                weights, state, support_x, training=training, statistics="batch", step=step
            )
            weights, state = weights._replace(model=called.params), called.state
        return (weights, state, support_x) if self.sees_support else (weights, state)

    def query(self, task_state: Nest, query_x: Nest, *, training: bool, step: int = -1) -> Called:
        """Compute the query predictions, with the batch normalisation that was chosen."""
        weights, state, *support = task_state
        weights = FastWeights(*weights)  # a state that was saved and loaded is a plain tuple

        def call(x: Nest) -> Called:
            return self.forward(
                weights, state, x, training=training, statistics=self.mode.query, step=step
            )

        if not support:
            return call(query_x)
        called: Called = self.mode.outputs(call, query_x, support[0])
        return called._replace(params=weights.model)

    def query_loss(self, x: Inputs, y: Nest, called: Called, sample_weight: Nest) -> Tensor:
        """Return the loss of query predictions, with regularisation losses of their activities."""
        loss = self.losses_of_tasks(y, called.outputs, sample_weight, x=x)
        return loss + sum(tf.cast(value, loss.dtype) for value in called.activity_losses)

    def joint_loss(
        self, x: Inputs, y: Nest, state: Params, sample_weight: Nest
    ) -> tuple[Tensor, Params]:
        """Return `λ L_Q(θ)` and the model's state after it."""
        if not self.joint_weight:
            return 0.0, state
        weights, _ = self.start(x["support_x"], x["support_y"], training=True)
        called = self.forward(
            weights, state, x["query_x"], training=True, statistics=self.mode.inner, step=0
        )
        with self.losses_at(called.params):
            loss = self.query_loss(x, y, called, sample_weight)
        return self.joint_weight * loss, called.state

    def steps(self, training: bool) -> int:
        """Return the number of inner steps, K."""
        return self.inner_steps if training else self.evaluation_steps or self.inner_steps

    @property
    def mode(self) -> Any:
        """Which statistics batch normalisation uses: see `tfmeta.query_batch_norm`."""
        return MODES[self.batch_norm]

    @property
    def sees_support(self) -> bool:
        """Whether queries are seen together with the support set."""
        return self.mode.sees_support and bool(batch_norm_layers(self.model))

    @property
    def transductive(self) -> bool:
        """Whether batch normalisation makes a prediction depend on the queries beside it."""
        return self.mode.transductive and bool(batch_norm_layers(self.model))

    def parts(self, training: bool) -> Parts:
        """Return which weights an inner step changes."""
        return Parts(self.chosen(), self.written(training))

    def written(self, training: bool) -> list[bool]:
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

    def adapted_weights(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the name and shape of each tensor that the inner loop changes."""
        own = [(v.path, tuple(v.shape)) for v in self.model.trainable_variables]
        return list(itertools.compress([*own, *self.head_weights()], self.chosen()))

    def task_axes(self) -> list[int]:
        """Return which axis of each tensor that is adapted is that of the tasks, when packed."""
        axes = task_axes(self.model)
        own = [axes[id(v)] for v in self.model.trainable_variables]
        heads = [0] * len(self.head_weights())
        return list(itertools.compress([*own, *heads], self.chosen()))

    def losses_at(self, params: Params) -> Tensor:
        """Return a context for a loss with regularisation of the model's weights at `params`.

        It is outside of metrics: the losses' own metrics are for the queries at φ_K.
        """
        # Packed models have no regularisation.
        variables = [] if side_by_side() else self.model.trainable_variables
        return keras.StatelessScope(list(zip(variables, params, strict=False)))

    def keep(self, state: Params) -> None:
        """Keep a task's random seeds, and its moving statistics if evaluation will use them."""
        passing = self._passing()
        if side_by_side():
            # All that a rule can change but the seeds are statistics of batches.
            stored = self.model.non_trainable_variables
            passing |= {id(v) for v in stored if keras.backend.is_float_dtype(v.dtype)}
        for variable, value in zip(self.model.non_trainable_variables, state, strict=True):
            if id(variable) not in passing:
                variable.assign(value)

    def own_statistics(self) -> list[keras.Variable]:
        """Return the moving statistics, where they are kept."""
        passing = self._passing()
        return [v for v in super().own_statistics() if id(v) not in passing]

    # How tasks are executed.

    def why_not_packed(self) -> str | None:
        """Return the layer or the option that needs one task after another, if there is one."""
        if self.one_task is not None:
            return super().why_not_packed()
        norms = batch_norm_layers(self.model)
        if norms and not self.mode.packs:
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
        steps = self.differentiation.kept(self.inner_steps)
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

    # What labels and outputs are, and what leaves.

    @property
    def labels(self) -> Labels:
        """Class numbers below the width of the model's output, or what else the loss takes."""
        outputs = self.outputs_of_model() if self.built else None
        width = None if outputs is None or tf.nest.is_nested(outputs) else outputs.shape[-1]
        return self.labels_by_loss(width)

    def outputs_are(self) -> list[str | None]:
        """Return whether the outputs of the model are logits, by its last activations."""
        if self.gives_logits:
            return super().outputs_are()
        return [kind_of_output(layer) for layer in makers(self.model)]

    def output_spec(self) -> Nest:
        """Return what the model returns for symbolic examples."""
        return self.outputs_of_model()

    def named_state(self, state: Nest) -> dict[str, Tensor]:
        """Return the weights that are adapted, and the statistics that queries are normalised by.

        With `batch_norm="with_support"` the support set itself, too.
        """
        weights, model_state, *support = state
        passed = zip(
            self.names(),
            [*weights.model, *weights.head, *model_state],
            [*self.chosen(), *self._state_differs()],
            strict=True,
        )
        named = {name: value for name, value, differs in passed if differs}
        return {**named, **({"support_x": support[0]} if support else {})}

    def state_of(self, tensors: dict[str, Tensor], structure: Nest) -> Nest:
        """Return weights and state of a task: those given, and the learner's own in between."""
        weights, _, *support = structure
        head = [None] * len(weights.head)
        own = [*self.model.trainable_variables, *head, *self.model.non_trainable_variables]
        every = [
            tensors[name] if name in tensors else tf.convert_to_tensor(variable)
            for name, variable in zip(self.names(), own, strict=True)
        ]
        model = len(weights.model)
        end = model + len(head)
        state = FastWeights(every[:model], every[model:end]), every[end:]
        return (*state, tensors["support_x"]) if support else state

    def names(self) -> list[str]:
        """Return a name for each weight and then of the model's state, as identifiers."""
        paths = [v.path for v in self.model.trainable_variables]
        paths += [name for name, _ in self.head_weights()]
        paths += [v.path for v in self.model.non_trainable_variables]
        own = f"{self.model.name}/"
        names = [re.sub(r"\W", "_", path.removeprefix(own)) for path in paths]
        # Models within models may have layers of one name.
        again = [names[:i].count(name) for i, name in enumerate(names)]
        return [f"{name}_{n}" if n else name for name, n in zip(names, again, strict=True)]

    def adapted_model(self, state: Nest) -> keras.Model:
        """Return the user's model with the adapted weights.

        With `batch_norm="transductive"` its batch normalisation uses the batch at hand, like the
        learner's; with `"support"` it has the support set's statistics stored. With
        `"with_support"` the support set is in it. Per-step batch normalisation becomes an
        ordinary one, that of the last step. Where the model cannot be copied or its batch
        normalisation exchanged, it is called as the learner calls it, with weights of its own.
        """
        model = self.ordinary_model(state)
        return super().adapted_model(state) if model is None else model

    def ordinary_model(self, state: Nest) -> keras.Model | None:
        """Return a model for one task without tfmeta's learner in it; `None` if there cannot be."""
        adapted = None if self.sees_support else self._copy_for_a_task()
        if adapted is None:
            return None
        weights, model_state = state
        for variables, values in (
            (adapted.trainable_variables, weights.model),
            (adapted.non_trainable_variables, model_state),
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value if variable.shape == value.shape else value[-1])
        return adapted

    def _check_weights(self) -> None:
        """Check that the inner loop has something to change: weights of the model, or a head."""
        if not self.head_weights():
            super()._check_weights()

    def _create_variables(self, targets: Nest, *, training: bool = False) -> None:
        # Here the learner is built, and no step was taken.
        if training and not self.trainable_variables:
            raise ValueError(
                f"{type(self).__name__} must have something to train. Received: a model "
                f"{self.model.name!r} without trainable weights, and no rates that are learnt; "
                "evaluate, adapt and export work without `fit`"
            )
        super()._create_variables(targets, training=training)

    def _check_steps(self) -> None:
        """Check that each inner step has its rate and its batch normalisation."""
        for layer in per_step_layers(self.model):
            if not self.takes_per_step:
                raise ValueError(
                    "`model` must have ordinary batch normalisation for "
                    f"{type(self).__name__}. Received: per-step batch normalisation in layer "
                    f"{layer.name!r}"
                )
            if {self.inner_steps, self.evaluation_steps or self.inner_steps} != {layer.steps}:
                raise ValueError(
                    "`inner_steps` and `evaluation_steps` must be those of per-step batch "
                    f"normalisation. Received: {self.inner_steps} and {self.evaluation_steps}; "
                    f"layer {layer.name!r} has {layer.steps}"
                )
        # A method that has rates of its own checks them itself, once it knows them.
        if type(self).rates_of_step is GradientBased.rates_of_step:
            check_enough(self.rule.learning_rate, None, self.inner_steps, self.evaluation_steps)

    def _keep_written(
        self, weights: FastWeights, state: Params, support_x: Nest, *, training: bool
    ) -> None:
        """Keep in the model what its layers write to weights at θ, as training in Keras would."""
        written = self.written(training) if training else []
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
            weights, state, support_x, training=True, statistics=self.mode.inner, step=0
        )
        pairs = zip(variables, called.params, strict=True)
        for variable, value in itertools.compress(pairs, written):
            variable.assign(value)

    def _constraints(self) -> list[Constraint | None] | None:
        """Return Keras's constraint of each weight that is adapted; `None` if there is none."""
        found = [v.constraint for v in self.model.trainable_variables]
        heads = [None] * len(self.head_weights())
        chosen = list(itertools.compress([*found, *heads], self.chosen()))
        # Packed layers have none.
        return None if side_by_side() or not any(chosen) else chosen

    def _state_differs(self) -> list[bool]:
        """Return for each part of the model's state whether queries see a task's own of it."""
        changed: list[bool] = []

        def call(x: Nest) -> Nest:
            weights, state = GradientBased.start(self, x, None, training=False)
            called = GradientBased.forward(
                self, weights, state, x, training=False, statistics=self.mode.inner
            )
            changed[:] = [a is not b for a, b in zip(called.state, state, strict=True)]
            return called.outputs

        spec = keras.tree.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), self.example)
        tf.function(call, autograph=False).get_concrete_function(spec)
        norms = [] if self.mode.passed else batch_norm_layers(self.model)
        unseen = {id(v) for layer in norms for v in layer.non_trainable_variables}
        state = self.model.non_trainable_variables
        return [c and id(v) not in unseen for c, v in zip(changed, state, strict=True)]

    def _copy_for_a_task(self) -> keras.Model | None:
        """Return a copy of the model, with the batch normalisation that a task needs."""
        at_hand = self.transductive
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
        norms = [] if self.mode.kept else batch_norm_layers(self.model)
        return {id(v) for layer in norms for v in layer.non_trainable_variables}


def _rule(rule: UpdateRule | None, learning_rate: Any) -> UpdateRule:
    if rule is None:
        try:
            return SGD(learning_rate)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("learning_rate", "inner_learning_rate")) from None
    return check_rule("inner_optimizer", rule)
