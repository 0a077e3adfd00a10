"""`MetaLearner`: what every few-shot learner has in common."""

from __future__ import annotations

import abc
import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.agreement import check_agreement, ignored_class, not_warned_again
from tfmeta.arguments import arguments_of, loaded, missing
from tfmeta.checks import check_count
from tfmeta.class_weights import weighed
from tfmeta.copies import unbuilt_copy_of
from tfmeta.derivatives import gradients_or_zeros
from tfmeta.distribution import (
    LOST,
    lost,
    replica_here,
    replicas_here,
    shared_out,
)
from tfmeta.export.preprocessing import Preprocessing
from tfmeta.export.saved_model import saved_learner
from tfmeta.finite_loss import watching
from tfmeta.foreign.derivatives import NoDerivative
from tfmeta.foreign.of_keras import (
    FROM_WITHIN_FIT,
    build_metrics,
    forget_validation_data,
    layers_of,
    metrics_are_built,
)
from tfmeta.functional import batch_norm_layers, check_layers, plain
from tfmeta.given import batches, first_of, named
from tfmeta.inputs import (
    arrays,
    check_examples,
    check_finite,
    check_ids,
    check_masks,
    check_support,
    check_targets,
    dtype_of,
    episode_inputs,
    example_of,
    known_example,
    refuse_unlabelled,
    refusing_unscaled,
)
from tfmeta.labels import Labels, Numbers, labels_of_loss
from tfmeta.losses import task_losses
from tfmeta.low_rank import LowRankWeights, low_rank_weights
from tfmeta.notes import keeping_notes, noted, with_notes
from tfmeta.padding import (
    is_padded,
    masks_of,
    most_ways,
    put_back,
    real_task,
    without_padding,
)
from tfmeta.readable import readable
from tfmeta.replicated import Replicated
from tfmeta.states.save_state import saving
from tfmeta.task_map import (
    TASK_AXES,
    TaskAxis,
    chunks_at_once,
    counted_from,
    in_one_axis,
    map_tasks,
    not_differentiated,
    real_sum,
    side_by_side,
    sum_over_tasks,
)
from tfmeta.task_model import TaskModel
from tfmeta.threshold import Threshold
from tfmeta.types import Inputs, Nest, Tensor

_IN_FLIGHT = 8
# What `keras.Model` takes.
_OF_KERAS = ("name", "dtype", "trainable", "activity_regularizer", "autocast")


class MetaLearner(Replicated, abc.ABC):
    """A model that adapts to a task from its support set, and is trained on episodes.

    A new algorithm supplies `adapt_task` and `predict_task` for one task. `fit`, `evaluate`,
    `predict`, `compile`, callbacks and `.keras` files are Keras's own; the loss given to `compile`
    is the outer loss on the query set and, for learners with an inner loop, the support loss.

    Args:
        model: The wrapped `keras.Model`, unchanged; whatever weights it has are the initialisation.
        task_axis: How the tasks of a meta-batch are computed. `"loop"`: one after another, with any
            model. `"packed"`: several side by side, in the axis of channels, which is faster and
            needs a learner and layers that know how. `"auto"`: packed where that can be; which
            layer is in the way is logged once.
        task_chunk: How many tasks are in flight; memory grows with it, and not with the meta-batch.
            `None` takes as many in a loop as there are cores, 2 to 8; packed on a GPU as many as
            half of its memory holds, and on a CPU at most 8, or one for each core: fewer where they
            would have more than 192 MB of activations, or where fewer keep each core busy.
            `docs/meta_step.md` says what else can be turned.
        **kwargs: `name` and `dtype`, for `keras.Model`. The dtype is that of the learner's own
            weights; the wrapped model computes in its own, which may be mixed precision.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model has no trainable weights, `task_chunk` is less than 1, or
            `task_axis="packed"` is asked of a learner or, when built, a model that cannot.

    Example:
        ```python
        class NearestMean(tfmeta.MetaLearner):
            def adapt_task(self, support_x, support_y, *, training):
                z = self.model(support_x, training=training)
                return tfmeta.ops.prototypes(z[None], support_y[None], ways=5)

            def predict_task(self, state, query_x, *, training):
                z = self.model(query_x, training=training)
                return -tfmeta.ops.squared_euclidean(z[None], state)[0]
        ```
    """

    # Whether outputs are logits whatever the wrapped model returns.
    gives_logits = False
    # Whether `adapt_task` and `predict_task` take several tasks at once as well, whose tensors have
    # an axis of tasks in front; `embed` makes embeddings of either.
    batched = False
    # Whether episodes may hold examples without labels, `unlabelled_x`, as for `EmbeddingLearner`s.
    takes_unlabelled = False
    # Why the method itself computes one task at a time, if it does; nobody need hear of it.
    one_task: str | None = None

    # Whether `compile` has warned that the loss takes logits, and outputs are probabilities.
    _warned = False
    # Whether `compile` is called for a learner that is being loaded.
    _restored = False
    # What the wrapped model returns, once it was asked for.
    _outputs: Any = None

    def __init__(
        self,
        model: keras.Model,
        *,
        task_axis: TaskAxis = "auto",
        task_chunk: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
        for name in kwargs:
            if name not in _OF_KERAS:
                raise TypeError(
                    f"{type(self).__name__} has no argument `{name}`. Received: {kwargs[name]!r}"
                )
        # With a mixed policy Keras would hand out half-precision copies of the weights.
        super().__init__(**{"dtype": model.variable_dtype, **kwargs})
        if task_chunk is not None:
            check_count("task_chunk", task_chunk)
        if task_axis not in TASK_AXES:
            raise ValueError(
                f"`task_axis` must be one of {', '.join(map(repr, TASK_AXES))}. "
                f"Received: task_axis={task_axis!r}"
            )
        self.model = model
        self.task_axis = task_axis
        self.task_chunk = task_chunk
        # What `build` cannot see in shapes, for models that don't say what they take.
        self.support_dtypes: Any = None
        if model.built:
            self._check_weights()

    @abc.abstractmethod
    def adapt_task(self, support_x: Nest, support_y: Nest, *, training: bool) -> Nest:
        """Return what is learnt from one support set.

        Args:
            support_x: `[ways*shots, ...]`, or a nest of such for a model of several inputs.
            support_y: `[ways*shots]` (or `[ways*shots, ...]` in regression), or a nest of such.
            training: Whether this happens inside `fit`.

        Returns:
            A nest of tensors, for `predict_task`.
        """

    @abc.abstractmethod
    def predict_task(self, state: Nest, query_x: Nest, *, training: bool) -> Nest:
        """Return the predictions `[queries, outputs]` for one task's query set.

        Args:
            state: What `adapt_task` returned.
            query_x: `[queries, ...]`.
            training: Whether this happens inside `fit`.
        """

    def embed(self, x: Any, *, training: bool, model: keras.Model | None = None) -> Tensor:
        """Return what the wrapped model makes of examples, in the precision of the weights.

        Of several tasks at once it computes all examples in one call. In training batch
        normalisation sees them all, and elsewhere it uses its moving averages.

        Args:
            x: `[n, ...]`, of several tasks at once `[tasks, n, ...]`; or a nest of such.
            training: The Keras flag.
            model: Another model of the learner in the place of the wrapped one.

        Returns:
            `[n, d]`, or `[tasks, n, d]`.
        """
        model = self.model if model is None else model
        if not side_by_side():
            return tf.cast(model(x, training=training), self.variable_dtype)
        flat = tf.nest.map_structure(in_one_axis, x)
        embedded = tf.cast(model(flat, training=training), self.variable_dtype)
        first = tf.nest.flatten(x)[0]
        tasks, n = (
            tf.shape(first)[i] if size is None else size for i, size in enumerate(first.shape[:2])
        )
        return tf.reshape(embedded, [tasks, n, *embedded.shape[1:]])

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model for the shape of `support_x` without its task axis."""
        self.labels_shape = input_shape.get("support_y")
        self.example = example_of(self.model, input_shape["support_x"], self.support_dtypes)
        # What fails, as with examples of a wrong shape, fails with a model that nobody needs.
        first = None if self.model.built else unbuilt_copy_of(self.model)
        for model in (first, self.model):
            for training in (True, False):
                # A layer may be called in one of them only. Nothing but weights comes of it.
                if model and not all(layer.built for layer in layers_of(model)):
                    model(self.example, training=training)
        self._check_weights()
        check_layers(self.model)
        super().build(input_shape)
        self.packs = self._can_pack()
        if self.batched and self.distribute_strategy.num_replicas_in_sync > 1:
            # As with one replica, batch normalisation sees all tasks of a meta-batch.
            for layer in batch_norm_layers(self.model):
                layer.synchronized = True

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        *args: Any,
        auto_scale_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        """Choose optimizer, loss and metrics as `keras.Model.compile` does.

        The loss is that of the inner loop as well. Where the wrapped model computes in float16, the
        optimizer scales the loss, as Keras's own training does. Where it takes logits and the
        learner returns probabilities, there is a warning.

        Raises:
            ValueError: If the loss takes probabilities and the learner returns logits.
        """
        if not self._restored:
            self._warned = check_agreement(
                type(self).__name__, loss, self.outputs_are(), always=self.gives_logits
            )
        if auto_scale_loss and self.model.compute_dtype == "float16":
            optimizer = keras.optimizers.get(optimizer)
            if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.loss_weights = loss_weights
        super().compile(
            optimizer, loss, loss_weights, *args, auto_scale_loss=auto_scale_loss, **kwargs
        )

    def outputs_are(self) -> list[str | None]:
        """Return whether each output is `"logits"` or `"probabilities"`, or `None` if unknown."""
        return ["logits" if self.gives_logits else None]

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as when saved; Keras asks for this method where `compile` is overridden."""
        self._restored = True  # what could be saved can be loaded, whatever its loss
        try:
            self.compile(**keras.saving.deserialize_keras_object(config))
        finally:
            self._restored = False
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the learner as Keras does, with examples that the wrapped model takes."""
        if isinstance(inputs, dict):
            self.check_examples(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Inputs, training: bool | None = None) -> Nest:
        """Adapt to each task and predict its queries.

        Args:
            inputs: `support_x` `[tasks, ways*shots, ...]`, `support_y` `[tasks, ways*shots]`,
                `query_x` `[tasks, ways*queries, ...]`; where tasks differ in size, `support_mask`
                `[tasks, ways*shots]` and `query_mask` `[tasks, ways*queries]` as well, true where
                there is an example. Predictions are zeros where there is none.
            training: The Keras flag.

        Returns:
            `[tasks, queries, outputs]`.
        """

        def one_task(padded: Inputs) -> Any:
            (task,) = real_task(padded)
            state = self.adapt_task(task["support_x"], task["support_y"], training=bool(training))
            predictions = self.predict_task(state, task["query_x"], training=bool(training))
            return with_notes(put_back(padded.get("query_mask"), predictions, columns))

        inputs = self.labels.held(self.parts_of(inputs))
        columns = most_ways(inputs)
        return noted(map_tasks(one_task, inputs, **self._execution(inputs)))

    def fit(self, x: Any = None, *args: Any, shuffle: bool = False, **kwargs: Any) -> Any:
        """Train on episodes as `keras.Model.fit` does.

        The first meta-batch, and that of `validation_data`, are checked beforehand, for in the
        graph an error would be hard to read, and under XLA there would be none. The default of
        `shuffle` differs: samplers draw at random already, and Keras would warn that it cannot
        shuffle a `tf.data.Dataset`. With `tfmeta.callbacks.SaveState` among `callbacks`, a training
        that was interrupted goes on.

        A learner that was made in the scope of a `tf.distribute` strategy shares the tasks of each
        meta-batch out among the replicas, and learns what one replica would learn of all of them:
        see `docs/distributed.md`.

        Args:
            x: A `tf.data.Dataset` of `(inputs, targets)`, a generator of such, a dict of inputs
                with the targets as `y`, or a sampler, which draws `batch_size` tasks (by default 1)
                for each of `steps_per_epoch` meta-batches. `validation_data` likewise.
            *args: Those of `keras.Model.fit`.
            shuffle: Whether Keras shuffles the tasks of arrays.
            **kwargs: Those of `keras.Model.fit`.

        Raises:
            TypeError: If `x` holds no episodes, or examples of a type that the model would misread.
            ValueError: If examples or labels don't fit, the model has a layer without the
                derivative that the learner needs, or a task's support loss is NaN or infinite: it
                names inner step and task, and the weights stay those of the step before. Any other
                loss that is not finite is said at the end of the epoch, with the weights from
                before it; under XLA, which compiles the checks of steps away, all are. If the
                tasks cannot be shared out evenly, or other workers have another learner or other
                episodes.
            ConnectionError: If another worker has ended.
        """
        kwargs = named(keras.Model.fit, self, x, *args, shuffle=shuffle, **kwargs)
        strategy = self.distribute_strategy
        with self._unspoilt():
            x, first = self._episodes(kwargs, "steps_per_epoch", labelled=True, training=True)
            if (weights := kwargs.pop("class_weight", None)) is not None:
                x, kwargs["sample_weight"] = weighed(
                    x, kwargs.get("y"), kwargs.get("sample_weight"), weights, self.loss
                )
            if kwargs.get("validation_data") is not None:
                watched = kwargs["validation_data"]
                pair = watched if isinstance(watched, tuple | list) else (watched,)
                given = {
                    **dict(zip(("x", "y"), pair, strict=False)),
                    "batch_size": kwargs.get("validation_batch_size"),
                    "validation_steps": kwargs.get("validation_steps"),
                }
                watched, _ = self._episodes(given, "validation_steps")
                kwargs["validation_batch_size"] = given["batch_size"]
                kwargs["validation_data"] = shared_out(
                    (watched, *pair[1:]) if len(pair) > 1 else watched, strategy
                )
            shared = shared_out(x, strategy)
            if first is not None:
                self.check_alike(first)
            with saving(kwargs.get("callbacks"), x) as callbacks:
                # After the state was found, which is that of the user's callbacks.
                kwargs["callbacks"] = watching(self, callbacks)
                return super().fit(shared, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Score meta-batches, their tasks shared out among replicas: `keras.Model.evaluate`.

        `x` is what `fit` takes, and its first meta-batch is checked as there; a sampler needs
        `steps`.
        """
        if kwargs.get(FROM_WITHIN_FIT):
            return super().evaluate(x, *args, **kwargs)  # from within `fit`
        kwargs = named(keras.Model.evaluate, self, x, *args, **kwargs)
        with self._unspoilt():
            x, _ = self._episodes(kwargs, "steps", labelled=True)
            return super().evaluate(shared_out(x, self.distribute_strategy), **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict for meta-batches, their tasks shared out among replicas: `keras.Model.predict`.

        `x` is what `fit` takes, and its first meta-batch is checked as there; a sampler needs
        `steps`. Every worker gets all predictions.
        """
        kwargs = named(keras.Model.predict, self, x, *args, **kwargs)
        with self._unspoilt():
            x, _ = self._episodes(kwargs, "steps")
            return super().predict(shared_out(x, self.distribute_strategy), **kwargs)

    def train_on_batch(self, x: Any, y: Nest = None, *args: Any, **kwargs: Any) -> Any:
        """Take one outer step on a meta-batch, once it is checked: `keras.Model.train_on_batch`."""
        with self._unspoilt():
            self.check_inputs(x, y)
            self._create_variables(y, training=True)
            return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Nest = None, *args: Any, **kwargs: Any) -> Any:
        """Score a meta-batch, once it is checked: `keras.Model.test_on_batch`."""
        with self._unspoilt():
            self.check_inputs(x, y)
            self._create_variables(y)
            return super().test_on_batch(x, y, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Predict for a meta-batch, once it is checked: `keras.Model.predict_on_batch`."""
        return self.predict_with_notes(x)[0]

    def predict_with_notes(self, x: Any) -> tuple[Any, Any]:
        """Predict for a meta-batch, once it is checked, and tell which time steps are masked.

        Args:
            x: As for `call`.

        Returns:
            The predictions, and for each of them a dict: under `"_keras_mask"` the mask that Keras
            notes on it, true where a time step counts, if there is one.
        """
        with self._unspoilt():
            self.check_inputs(x)
            return super().predict_with_notes(x)

    def train_step(self, data: Any) -> Any:
        """Take one outer step on a meta-batch; each task's outer gradient is taken by itself."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        tasks = _number_of_tasks(x)

        def gradients(*task: Any) -> Any:
            loss, gradients, predictions = self.task_gradients(*task)
            return [loss, *gradients], predictions

        totals, predictions = self._over_tasks(gradients, x, y, sample_weight)
        self.outer_update(*totals, tasks=tasks)
        return self.compute_metrics(x, y, predictions, sample_weight=sample_weight)

    def test_step(self, data: Any) -> Any:
        """Score a meta-batch: the loss of each task is that of training, of predictions alone."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

        def score(*task: Any) -> Any:
            loss, predictions = self.test_task(*task)
            return [real_sum(loss)], predictions

        (loss,), predictions = self._over_tasks(score, x, y, sample_weight)
        self.log_loss(loss, _number_of_tasks(x))
        return self.compute_metrics(x, y, predictions, sample_weight=sample_weight)

    def predict_step(self, data: Any) -> Any:
        """Predict for a meta-batch: `keras.Model.predict_step`."""
        with not_differentiated():
            return super().predict_step(data)

    def _over_tasks(self, function: Any, x: Any, y: Nest, sample_weight: Nest) -> tuple[Any, Any]:
        """Compute totals and predictions of a meta-batch.

        Args:
            function: What `real_task` returns of a task, or of several side by side, to a list of
                totals and the query predictions.
            x: As for `call`.
            y: Targets, a nest of `[tasks, queries, ...]`.
            sample_weight: A nest of `[tasks, queries]`, or `None`.

        Returns:
            The totals, averaged over tasks or summed as the compiled loss is over examples, and the
            predictions of all tasks.
        """
        if not self.built:
            self.build(tf.nest.map_structure(lambda value: tuple(value.shape), x))
        x = self.labels.held(self.parts_of(x))
        columns, tasks = most_ways(x), _number_of_tasks(x)
        # Those of the replicas before this one.
        first = tasks * replica_here() if replicas_here() > 1 else 0

        def one_task(task: Any) -> Any:
            padded, *others = keras.utils.unpack_x_y_sample_weight(task)
            with counted_from(first):
                totals, predictions = function(*real_task(padded, *others))
            return totals, with_notes(put_back(padded.get("query_mask"), predictions, columns))

        data = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        with not_differentiated():
            totals, predictions = sum_over_tasks(one_task, data, **self._execution(x))
        if not self.sums_over_tasks():
            totals = [total / tf.cast(tasks, total.dtype) for total in totals]
        return totals, noted(predictions)

    def compute_metrics(self, x: Any, y: Nest, y_pred: Nest, sample_weight: Nest = None) -> Any:
        """Update the metrics with the queries of all tasks, one after another as one batch.

        Args:
            x: As for `call`.
            y: Targets, a nest of `[tasks, queries, ...]`.
            y_pred: Predictions, a nest of `[tasks, queries, ...]`.
            sample_weight: A nest of `[tasks, queries]`, or `None`.

        Returns:
            What `keras.Model.compute_metrics` returns.
        """
        given = [y, y_pred, sample_weight]
        if is_padded(x):
            given = without_padding(x["query_mask"], *given)
        else:
            given = [keeping_notes(in_one_axis, part) for part in given]
        return super().compute_metrics(x, *given)

    def task_gradients(
        self, x: Inputs, y: Nest, sample_weight: Nest = None, **options: Any
    ) -> tuple[Tensor, list[Tensor], Nest]:
        """Return the outer loss of one task, its gradients and the query predictions.

        Of tasks side by side, loss and gradients are the sums over them.

        Args:
            x: `support_x`, `support_y` and `query_x` without a task axis.
            y: The query labels.
            sample_weight: Weights of the queries, or `None`.
            **options: For `task_loss`.

        Returns:
            `(loss, gradients, predictions)`; the gradients, one for each trainable variable, are
            those of the loss as the optimizer scales it.

        Raises:
            ValueError: If an operation of model or loss has no derivative of the order needed.
        """
        variables = self.trainable_variables
        try:
            with tf.GradientTape() as tape:
                loss, predictions = self.task_loss(x, y, sample_weight, **options)
                loss = real_sum(loss)
                scaled = self.optimizer.scale_loss(loss)
            gradients = gradients_or_zeros(tape, scaled, variables)
        except LookupError as error:
            if isinstance(error, KeyError | IndexError):
                raise
            # TensorFlow's own ends in the name of the operation.
            own = isinstance(error, NoDerivative)
            operation = str(error) if own else str(error).rsplit(" ", 1)[-1]
            raise ValueError(
                f"`model` and `loss` must have the derivatives that {type(self).__name__} takes. "
                f"Received: the operation {operation}, which lacks one; tfmeta.FOMAML takes the "
                "first only, where learners that differentiate through inner steps take the second."
            ) from error
        return loss, gradients, predictions

    def task_loss(self, x: Inputs, y: Nest, sample_weight: Nest = None) -> tuple[Tensor, Nest]:
        """Return the outer loss of one task in training, and the query predictions.

        Args:
            x: `support_x`, `support_y` and `query_x` without a task axis.
            y: The query labels.
            sample_weight: Weights of the queries, or `None`.
        """
        state = self.adapt_task(x["support_x"], x["support_y"], training=True)
        predictions = self.predict_task(state, x["query_x"], training=True)
        return self.losses_of_tasks(y, predictions, sample_weight, x=x), predictions

    def test_task(self, x: Inputs, y: Nest, sample_weight: Nest = None) -> tuple[Tensor, Nest]:
        """Return the loss of one task's query predictions in evaluation, and these.

        Args:
            x: `support_x`, `support_y` and `query_x` without a task axis.
            y: The query labels.
            sample_weight: Weights of the queries, or `None`.
        """
        state = self.adapt_task(x["support_x"], x["support_y"], training=False)
        predictions = self.predict_task(state, x["query_x"], training=False)
        loss = self.losses_of_tasks(y, predictions, sample_weight, x=x, training=False)
        return loss, predictions

    def losses_of_tasks(
        self,
        y: Nest,
        y_pred: Nest,
        sample_weight: Nest = None,
        *,
        x: Inputs | None = None,
        training: bool = True,
    ) -> Tensor:
        """Return the compiled loss of one task, or `[tasks]` of several side by side."""
        if side_by_side():
            return task_losses(self, x, y, y_pred, sample_weight, training=training)
        return self.compute_loss(x, y, y_pred, sample_weight, training=training)

    def why_not_packed(self) -> str | None:
        """Return why tasks cannot be computed side by side; `None` if they can.

        A learner that can is called with tensors of one more axis in front, that of the tasks.
        """
        if self.batched:
            return None
        reason = f": {self.one_task}" if self.one_task else ""
        return f"{type(self).__name__} computes one task at a time{reason}"

    def tasks_in_flight(self, inputs: Inputs) -> int:
        """Return how many tasks are in flight where `task_chunk` does not say.

        Args:
            inputs: A meta-batch.
        """
        del inputs  # for learners that look at its size
        return _IN_FLIGHT

    def chunks_at_once(self) -> int:
        """Return how many chunks of tasks are worth computing at once.

        One where a model draws random numbers, for each chunk goes on from the seeds that the one
        before it has left; and one for all tasks that share the statistics of a batch.
        """
        if self.batched:
            return 1
        seeds = [v for model in self.models() for v in model.non_trainable_variables]
        if not all(keras.backend.is_float_dtype(v.dtype) for v in seeds):
            return 1
        return chunks_at_once()

    def adapt(self, support_x: Nest, support_y: Nest, unlabelled_x: Nest = None) -> keras.Model:
        """Adapt to one task and return an ordinary model for it; the learner stays as it is.

        Args:
            support_x: `[ways*shots, ...]`, an array, a tensor or a list, no task axis; scaled as in
                training. For a model of several inputs, a nest of such as the model takes it.
            support_y: `[ways*shots]`, for classes the integers `0..ways-1`.
            unlabelled_x: `[u, ...]`, examples of the same kind without labels, for a learner that
                learns from such: `SoftKMeans`.

        Returns:
            A new `keras.Model`: `[n, ...]` → predictions `[n, outputs]`. Where the configuration of
            the wrapped model does not tell all that it does, as with a lambda, the new one calls
            the same layers with weights of its own, which cannot be trained. Until it is
            saved and loaded, it refuses what `support_x` is refused for, unscaled images.

        Raises:
            TypeError: If `support_x` is unscaled 8-bit data, or else of a type that the model would
                misread.
            ValueError: If the two don't match in length or shape, are empty, hold NaN or infinite
                values, the labels don't fit the learner, or what is learnt is not finite; or there
                are `unlabelled_x` for a learner that takes none.

        Example:
            >>> adapted = learner.adapt(support_x, support_y)
            >>> adapted.predict(other_images).argmax(axis=1)
        """
        known = self.example if self.built else known_example(self.model)
        x, y = arrays("support_x", support_x, known), arrays("support_y", support_y)
        check_support(x, y)
        more = {}
        if not self.takes_unlabelled:
            refuse_unlabelled(type(self).__name__, unlabelled_x)
        elif unlabelled_x is not None:
            more["unlabelled_x"] = arrays("unlabelled_x", unlabelled_x, known)
            check_finite("unlabelled_x", more["unlabelled_x"])
        if not self.built:
            named = {"support_x": x, "support_y": y}
            self._build_for(keras.tree.map_structure(lambda part: part[None], named))
        for name, part in {"support_x": x, **more}.items():
            check_examples(part, self.model, self.example, name)
            check_ids(part, self.model, self.example, name)
        if not keras.tree.is_nested(y):
            self.labels.check(y)
        x, y, more = keras.tree.map_structure(tf.constant, (x, y, more))
        with self._unspoilt():
            state = self.adapt_task(x, y, training=False, **more)
        _check_finite(state)
        return refusing_unscaled(self.adapted_model(state), self.model, self.example)

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        *,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        unknown: Threshold | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a SavedModel that adapts when it is called, and needs nothing of tfmeta.

        It works on one task at a time, without a task axis, with as many examples as one likes:

        - `adapt_and_predict(support_x, support_y, query_x)`, which is `serving_default`, gives
          `predictions` `[queries, outputs]` as `call` does.
        - `adapt(support_x, support_y)` gives what was learnt as named tensors: adapted weights (of
          `ANIL` the head's alone), prototypes.
        - `predict(query_x, ...)` takes those tensors by their names and gives `predictions`: adapt
          once, predict often.

        Labels are int64, whatever integers the learner was trained on, and float where the loss is
        not one of class numbers. With `batch_norm="transductive"` predictions depend on the queries
        of the same call, as everywhere; that is said in the log. Wrong shapes and labels are
        refused by assertions in the graph.

        Args:
            filepath: The folder to write.
            format: `"tf_saved_model"`, the one that there is for learners. `tfmeta.export.lite` and
                `tfmeta.export.onnx` write other kinds of files.
            verbose: Whether to print where it was written, as Keras does; by default not.
            class_names: Names of the classes 0, 1, …; the output `labels` is then the name of each
                query's class. Where the number of ways is free, they are the most that there can
                be.
            preprocessing: How uint8 images of any size become what the model takes, in the place
                of `support_x` and `query_x` as the model takes them.
            unknown: What tells which predictions are no answer, as `tfmeta.unknown.fit` returns it;
                the output `unknown` is then true for them, and the label "unknown".
            overwrite: Whether a SavedModel at `filepath` may be replaced; nothing else ever is.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If there is no such format, the learner is not built or has several inputs
                or outputs, `class_names` don't fit its outputs, have one twice or (with a
                threshold) "unknown", or `preprocessing` makes something else than the model takes.
            FileExistsError: If there is something at `filepath` that may not be replaced.
            OSError: If `filepath` cannot be written.

        Example:
            ```python
            learner.export("few_shot")
            few_shot = tf.saved_model.load("few_shot")                 # needs no tfmeta
            task = few_shot.adapt(support_x=support_x, support_y=support_y)
            few_shot.predict(query_x=query_x, **task)["predictions"]
            ```
        """
        if format != "tf_saved_model":
            raise ValueError(
                "`format` must be 'tf_saved_model' for a learner. tfmeta.export.lite(learner, ...) "
                "writes a LiteRT (TFLite) file of it, tfmeta.export.onnx(learner.adapt(support_x, "
                "support_y), ...) an ONNX file of an adapted model, and that model's own "
                f"export(...) takes Keras's formats. Received: format={format!r}"
            )
        saved_learner(
            self,
            filepath,
            class_names=class_names,
            preprocessing=preprocessing,
            unknown=unknown,
            overwrite=overwrite,
        )
        if verbose:
            print(f"Saved artifact at '{os.fspath(filepath)}'.")

    @property
    def _low_rank(self) -> LowRankWeights | None:
        # Keras saves what attributes have, those with an underscore last: after all models.
        return low_rank_weights(self)

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on the queries that are asked together."""
        return False

    def output_spec(self) -> Nest:
        """Return symbolic predictions `[n, outputs]` of a task, or `None` where it is not known."""
        return None

    @property
    def labels(self) -> Labels:
        """What labels of this learner are: `fit`, `adapt` and exports hold theirs to it.

        The default goes by the compiled loss: class numbers for sparse crossentropy, and else
        numbers of the shape of the model's outputs. A learner whose labels are something else
        overrides this, as one of a fixed number of ways:

            @property
            def labels(self):
                return tfmeta.labels.ClassNumbers(self.ways)
        """
        return self.labels_by_loss()

    def labels_by_loss(self, ways: int | None = None) -> Labels:
        """Return what labels the compiled loss takes.

        Args:
            ways: The most classes that a task may have, where they are class numbers.
        """
        if not self.compiled or self.loss is None or not self.built:
            return Numbers(tf.TensorSpec([None], tf.int64))
        return labels_of_loss(
            self.loss,
            self.outputs_of_model(),
            dtype=self.variable_dtype,
            given=self.labels_shape,
            ways=ways,
        )

    def outputs_of_model(self) -> Nest:
        """Return what the wrapped model returns for symbolic examples."""
        if self._outputs is None:
            # Once, for Keras may have to trace the model to tell.
            self._outputs = self.model.compute_output_spec(self.example)
        return self._outputs

    def named_state(self, state: Nest) -> dict[str, Tensor]:
        """Return what of a state an export passes from `adapt` to `predict`, by name.

        A state that is a dict of tensors has its names.

        Args:
            state: What `adapt_task` returned.
        """
        if _is_named(state):
            return dict(state)
        return {f"state_{i}": x for i, x in enumerate(tf.nest.flatten(state))}

    def state_of(self, tensors: dict[str, Tensor], structure: Nest) -> Nest:
        """Return the state for `predict_task`: the reverse of `named_state`.

        Args:
            tensors: What `named_state` returned.
            structure: A nest like the state.
        """
        if _is_named(structure):
            return {name: tensors[name] for name in structure}
        number = len(tf.nest.flatten(structure))
        return tf.nest.pack_sequence_as(structure, [tensors[f"state_{i}"] for i in range(number)])

    def check_inputs(self, inputs: Any, targets: Nest = None) -> None:
        """Raise unless this learner can work on such a meta-batch; build it for it.

        Args:
            inputs: As for `call`.
            targets: `[tasks, queries]`, or `None` where they don't matter.

        Raises:
            TypeError: If examples are of a type that the model would misread.
            ValueError: If shapes, ids or labels don't fit.
        """
        tensors = self.parts_of(inputs)
        check_masks(tensors)
        self.check_examples(tensors)
        if not self.built:
            with self.distribute_strategy.scope():
                self._build_for(tensors)
        for name in masks_of(tensors):
            check_ids(inputs[name], self.model, self.example, name)
        classes = ignored = None
        if not keras.tree.is_nested(tensors["support_y"]):
            labels = np.asarray(inputs["support_y"])
            if is_padded(tensors):
                labels = labels[np.asarray(tensors["support_mask"])]
            described = self.labels
            described.check(labels)
            classes = described.count(labels)
            ignored = None if classes is None else ignored_class(self.loss)
        if targets is not None:
            check_targets(tensors, arrays("targets", targets), classes, ignored)

    def parts_of(self, inputs: Any) -> dict[str, Any]:
        """Return the parts of a meta-batch as tensors, or say what this learner cannot take.

        Args:
            inputs: As for `call`; and for learners that take them, `unlabelled_x` `[tasks, u, ...]`
                and, where tasks differ in size, `unlabelled_mask` `[tasks, u]`.

        Raises:
            ValueError: If a part is missing or does not fit.
        """
        if isinstance(inputs, dict) and not self.takes_unlabelled:
            refuse_unlabelled(type(self).__name__, inputs.get("unlabelled_x"))
        return episode_inputs(inputs)

    def check_examples(self, inputs: Inputs) -> None:
        """Raise unless the wrapped model takes a meta-batch's examples, by their shapes and types.

        A learner that gives the model something else than examples overrides this.

        Args:
            inputs: As for `call`.

        Raises:
            TypeError: If examples are of a type that the model would misread.
            ValueError: If they are nested otherwise, or of another shape.
        """
        example = self.example if self.built else known_example(self.model)
        for name in masks_of(inputs):
            if example is not None and keras.tree.flatten(inputs[name]):
                check_examples(inputs[name], self.model, example, name, axes=2)

    def adapted_model(self, state: Nest) -> keras.Model:
        """Return the model for one task, given what `adapt_task` returned.

        The default calls the learner's `predict_task`, with weights of its own; learners that can
        give an ordinary model without tfmeta in it override this.
        """
        adapted = TaskModel(self.as_it_is(), state)
        adapted(plain(self.example))
        return adapted

    def as_it_is(self) -> Any:
        """Return this learner with the same parts, which other settings don't reach.

        A learner that is given another loss predicts otherwise; what has adapted before does not.
        """
        same = object.__new__(type(self))
        same.__dict__.update(vars(self))
        return same

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving: attributes of the same names.

        Raises:
            TypeError: If there is none for one of them, and no `get_config` of the learner's own.
        """
        without = missing(self, Replicated)
        if without and type(self).get_config is MetaLearner.get_config:
            name = type(self).__name__
            raise TypeError(
                f"{name} must have an attribute for each argument, for it to be saved, or a "
                f"`get_config` of its own. Received: no {name}.{without[0]}"
            )
        return {**super().get_config(), **arguments_of(self, Replicated)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MetaLearner:
        """Make a learner from what `get_config` returned."""
        return cls(**loaded(config))

    def _episodes(
        self, given: dict[str, Any], steps: str, labelled: bool = False, training: bool = False
    ) -> tuple[Any, Any]:
        """Take `x` out of arguments; return it as Keras takes it, and its first inputs, checked."""
        x = given.pop("x", None)
        sampler = not isinstance(x, dict)
        y = given.get("y")
        taken = batches(
            x, y, steps=given.get(steps), named=steps, meta_batch_size=given.get("batch_size")
        )
        if taken is not x and sampler:
            given["batch_size"] = None  # the sampler's data set has it
        inputs, targets, taken = first_of(taken, y)
        if inputs is None:
            return taken, None
        if labelled and targets is None and self.compiled and self.loss is not None:
            raise ValueError(
                "The targets must be given, `y` or the second of a data set's pairs (inputs, "
                "targets). Received: inputs alone"
            )
        self.check_inputs(inputs, targets)
        if labelled:
            self._create_variables(targets, training=training)
        return taken, inputs

    def _create_variables(self, targets: Nest, *, training: bool = False) -> None:
        """Create what optimizer and metrics have of variables, before a step is traced.

        Keras leaves it to the first step, and TensorFlow traces a function that has created a
        variable once more: with several inner steps, that takes many seconds. With replicas Keras
        does it itself.
        """
        if not self.compiled or not self._alone:
            return
        for model in self.models():
            if not model.built:
                raise ValueError(
                    "All models of a learner must be built when it is, for the optimizer to know "
                    f"their weights: build yours in `build`. Received: model {model.name!r}, which "
                    "is not"
                )
        with self.distribute_strategy.scope():
            if training and not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)
            if targets is None or metrics_are_built(self):
                return
            labels = keras.tree.map_structure(
                lambda y: keras.KerasTensor((None, *np.shape(y)[2:]), dtype=y.dtype),
                arrays("targets", targets),
            )
            if (predictions := self.output_spec()) is not None:
                build_metrics(self, labels, predictions)

    @contextlib.contextmanager
    def _unspoilt(self) -> Iterator[None]:
        """Say in words what failed in a graph, and leave no half-made function for the next call.

        Keras keeps its functions from call to call; one whose tracing failed cannot be called, nor
        may validation go on with the data of a `fit` that failed.
        """
        try:
            with not_warned_again() if self._warned else contextlib.nullcontext():
                yield
        except Exception as error:
            self.train_function = self.test_function = self.predict_function = None
            self._predict_here = None
            forget_validation_data(self)
            if isinstance(error, tf.errors.InvalidArgumentError):
                raise readable(error) from error
            if isinstance(error, LOST):
                raise lost(self.distribute_strategy, error) from error
            raise

    def get_build_config(self) -> dict[str, Any] | None:
        """Return what `build` needs, for Keras's saving."""
        config = super().get_build_config()
        return config and {**config, "support_dtypes": self.support_dtypes}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Build as when saved."""
        config = dict(config)
        self.support_dtypes = config.pop("support_dtypes", None)
        super().build_from_config(config)

    def _build_for(self, inputs: Inputs) -> None:
        """Build for a meta-batch, by its shapes and types."""
        self.support_dtypes = keras.tree.map_structure(dtype_of, inputs["support_x"])
        self.build(keras.tree.map_structure(lambda tensor: tuple(tensor.shape), inputs))

    def _can_pack(self) -> bool:
        if self.task_axis == "loop":
            return False
        reason = self.why_not_packed()
        if reason is not None and self.task_axis == "packed":
            raise ValueError(
                "`task_axis` must be 'auto' or 'loop' where tasks cannot be computed side by side. "
                f"Received: task_axis='packed'; {reason}"
            )
        own = type(self).why_not_packed is not MetaLearner.why_not_packed
        if reason is not None and own and not self.one_task:
            logging.getLogger("tfmeta").warning(
                "The tasks of a meta-batch are computed one after another: %s. task_axis='loop' "
                "asks for that without this message.",
                reason,
            )
        return reason is None

    def _execution(self, inputs: Inputs) -> dict[str, Any]:
        """Return whether tasks are computed side by side, and how many may be at once."""
        if self.packs and not self._padded(inputs):
            in_flight = self.task_chunk
            if in_flight is None and not self.batched:
                in_flight = self.tasks_in_flight(inputs)
            return {"in_flight": in_flight, "packed": True, "at_once": self.chunks_at_once()}
        at_once = min(_IN_FLIGHT, max(2, chunks_at_once()))
        return {"in_flight": self.task_chunk or at_once, "packed": False}

    def _padded(self, inputs: Inputs) -> bool:
        """Return whether tasks differ in size, which XLA cannot compile."""
        padded = is_padded(inputs)
        if padded and self.compiled and self.jit_compile:
            raise ValueError(
                "`jit_compile` must be False for tasks of different sizes, whose shapes XLA cannot "
                "know. Received: jit_compile=True, and inputs with masks"
            )
        return padded

    def _check_weights(self) -> None:
        if not self.model.trainable_variables:
            raise ValueError(
                "`model` must have trainable weights, there is nothing to learn otherwise. "
                f"Received: a model {self.model.name!r} without any"
            )


def _number_of_tasks(inputs: Inputs) -> Any:
    return tf.shape(tf.nest.flatten(inputs)[0])[0]


def _is_named(state: Nest) -> bool:
    """Return whether a state is a dict of tensors, whose keys can name arguments."""
    return isinstance(state, dict) and not any(
        keras.tree.is_nested(x) or not str(name).isidentifier() or name == "query_x"
        for name, x in state.items()
    )


def _check_finite(state: Nest) -> None:
    for x in tf.nest.flatten(state):
        if x.dtype.is_floating and not np.isfinite(x.numpy()).all():
            raise ValueError(
                "What is learnt from the support set must be finite. Received: NaN or infinite "
                "values; a smaller inner learning rate may help"
            )
