"""`MetaLearner`: what every few-shot learner has in common."""

from __future__ import annotations

import abc
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.checks import check_count
from tfmeta.task_map import average_over_tasks, map_tasks
from tfmeta.types import Array, Inputs


class MetaLearner(keras.Model, abc.ABC):
    """A model that adapts to a task from its support set, and is trained on episodes.

    A new algorithm supplies `adapt_task` and `predict_task` for one task. `fit`, `evaluate`,
    `predict`, `compile`, callbacks and `.keras` files are Keras's own; the loss given to `compile`
    is the outer loss on the query set and, for learners with an inner loop, the support loss.

    Args:
        model: The wrapped `keras.Model`, unchanged; whatever weights it has are the initialisation.
        task_chunk: How many tasks are in flight in a training step; memory grows with it, and not
            with the meta-batch. `None` takes the learner's own choice.
        **kwargs: `name` and `dtype`, for `keras.Model`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If the model has no trainable weights, or `task_chunk` is less than 1.

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

    def __init__(self, model: keras.Model, *, task_chunk: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
        if task_chunk is not None:
            check_count("task_chunk", task_chunk)
        self.model = model
        self.task_chunk = task_chunk
        if model.built:
            self._check_weights()

    @abc.abstractmethod
    def adapt_task(self, support_x: Any, support_y: Any, *, training: bool) -> Any:
        """Return what is learnt from one support set.

        Args:
            support_x: `[ways*shots, ...]`.
            support_y: `[ways*shots]` (or `[ways*shots, ...]` in regression).
            training: Whether this happens inside `fit`.

        Returns:
            A nest of tensors, for `predict_task`.
        """

    @abc.abstractmethod
    def predict_task(self, state: Any, query_x: Any, *, training: bool) -> Any:
        """Return the predictions `[queries, outputs]` for one task's query set.

        Args:
            state: What `adapt_task` returned.
            query_x: `[queries, ...]`.
            training: Whether this happens inside `fit`.
        """

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model for the shape of `support_x` without its task axis."""
        # A model that has its shape already knows which of its sizes may vary.
        known = getattr(self.model, "input_shape", None)
        shape = known[1:] if isinstance(known, tuple) else input_shape["support_x"][2:]
        self.example_shape = tuple(shape)
        if not self.model.built:
            self.model(keras.KerasTensor((None, *shape), dtype=self.model.input_dtype))
        self._check_weights()
        super().build(input_shape)

    def call(self, inputs: Inputs, training: bool | None = None) -> Any:
        """Adapt to each task and predict its queries.

        Args:
            inputs: `support_x` `[tasks, ways*shots, ...]`, `support_y` `[tasks, ways*shots]`,
                `query_x` `[tasks, ways*queries, ...]`.
            training: The Keras flag.

        Returns:
            `[tasks, queries, outputs]`.
        """

        def one_task(task: Inputs) -> Any:
            state = self.adapt_task(task["support_x"], task["support_y"], training=bool(training))
            return self.predict_task(state, task["query_x"], training=bool(training))

        return map_tasks(one_task, episode_inputs(inputs))

    def fit(self, x: Any = None, *args: Any, shuffle: bool = False, **kwargs: Any) -> Any:
        """Train on episodes: `keras.Model.fit`, which see.

        The labels of the first meta-batch are checked beforehand, for in the graph an error would
        be hard to read, and under XLA there would be none. The default of `shuffle` differs:
        samplers draw at random already, and Keras would warn that it cannot shuffle a
        `tf.data.Dataset`.
        """
        first = x
        if isinstance(x, tf.data.Dataset):
            first, _, _ = keras.utils.unpack_x_y_sample_weight(next(iter(x), (None,)))
        if isinstance(first, dict):
            self.check_inputs(first)
        return super().fit(x, *args, shuffle=shuffle, **kwargs)

    def train_step(self, data: Any) -> Any:
        """Take one outer step on a meta-batch; each task's outer gradient is taken by itself."""
        if not self._loss_is_mean():
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if not self.built:
            self.build({name: value.shape for name, value in x.items()})
        variables = self.trainable_variables

        def one_task(task: Any) -> Any:
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(task)
            with tf.GradientTape() as tape:
                predictions = self(x, training=True)
                loss = self.compute_loss(x, y, predictions, sample_weight, training=True)
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, variables, unconnected_gradients="zero")
            return [loss, *gradients], predictions

        (loss, *gradients), predictions = average_over_tasks(
            one_task,
            keras.utils.pack_x_y_sample_weight(x, y, sample_weight),
            in_flight=self.task_chunk or 2,
        )
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(x["support_x"])[0])
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self.compute_metrics(x, y, predictions, sample_weight=sample_weight)

    def adapt(self, support_x: Any, support_y: Any) -> keras.Model:
        """Adapt to one task and return an ordinary model for it; the learner stays as it is.

        Args:
            support_x: `[ways*shots, ...]`, arrays or tensors, no task axis; scaled as in training.
            support_y: `[ways*shots]`, for classes the integers `0..ways-1`.

        Returns:
            A new `keras.Model`: `[n, ...]` → predictions `[n, outputs]`.

        Raises:
            TypeError: If `support_x` is unscaled 8-bit data.
            ValueError: If the two don't match in length or shape, are empty, hold NaN or infinite
                values, the labels don't fit the learner, what is learnt is not finite, or the
                model cannot be copied.

        Example:
            >>> adapted = learner.adapt(support_x, support_y)
            >>> adapted.predict(other_images).argmax(axis=1)
        """
        x, y = np.asarray(support_x), np.asarray(support_y)
        _check_support(x, y)
        if not self.built:
            self.build({"support_x": (1, *x.shape)})
        _check_example_shape(x, self.model)
        self.check_labels(y)
        state = self.adapt_task(tf.constant(x), tf.constant(y), training=False)
        _check_finite(state)
        return self.adapted_model(state)

    def check_inputs(self, inputs: Any) -> None:
        """Raise a `ValueError` if this learner cannot work on such a meta-batch; build it for it.

        Args:
            inputs: As for `call`.
        """
        tensors = episode_inputs(inputs)
        if not self.built:
            self.build({name: tensor.shape for name, tensor in tensors.items()})
        self.check_labels(np.asarray(tensors["support_y"]))

    def check_labels(self, labels: Array) -> None:
        """Raise a `ValueError` if this learner cannot learn from such labels. Default: all fit.

        Args:
            labels: An array of any shape.
        """

    def adapted_model(self, state: Any) -> keras.Model:
        """Return the model for one task, given what `adapt_task` returned.

        The default keeps a copy of the learner and calls its `predict_task`; learners that can
        give an ordinary model without tfmeta in it override this.
        """
        adapted = TaskModel(copy_of(self), state)
        adapted(keras.KerasTensor((None, *self.example_shape), dtype=self.model.input_dtype))
        return adapted

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "task_chunk": self.task_chunk,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MetaLearner:
        """Make a learner from what `get_config` returned."""
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})

    def _check_weights(self) -> None:
        if not self.model.trainable_variables:
            raise ValueError(
                "`model` must have trainable weights, there is nothing to learn otherwise. "
                f"Received: a model {self.model.name!r} without any"
            )

    def _loss_is_mean(self) -> bool:
        # The mean over tasks of equal size is the mean over all; of a sum it is not.
        losses = keras.tree.flatten(self.loss)
        mean = ("sum_over_batch_size", "mean")
        return all(getattr(loss, "reduction", mean[0]) in mean for loss in losses)


class TaskModel(keras.Model):
    """A learner that has adapted to one task: its state as weights, its `predict_task` as call.

    It predicts and can be exported. It is no `.keras` file: for that, save the learner.

    Args:
        learner: A built learner, kept.
        state: What its `adapt_task` returned.
    """

    def __init__(self, learner: MetaLearner, state: Any) -> None:
        super().__init__(name=f"{learner.name}_task")
        self.learner = learner
        self._structure = state
        self._values = [
            self.add_weight(shape=x.shape, dtype=x.dtype.name, trainable=False, name=f"state_{i}")
            for i, x in enumerate(tf.nest.flatten(state))
        ]
        for variable, value in zip(self._values, tf.nest.flatten(state), strict=True):
            variable.assign(value)

    def call(self, inputs: Any) -> Any:
        """Return `[n, outputs]` for `[n, ...]`."""
        values = [tf.convert_to_tensor(v) for v in self._values]
        state = tf.nest.pack_sequence_as(self._structure, values)
        return self.learner.predict_task(state, inputs, training=False)


def copy_of(model: keras.Model) -> Any:
    """Return a model of the same class, configuration and weights, sharing nothing."""
    try:
        copy = type(model).from_config(model.get_config())
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"`model` must be one that its get_config() can make again. Received: {model.name!r} "
            f"of class {type(model).__name__}, which cannot be copied"
        ) from error
    if not copy.built:
        copy.build_from_config(model.get_build_config())
    copy.set_weights(model.get_weights())
    return copy


def episode_inputs(inputs: Any) -> dict[str, Any]:
    """Return the three tensors of a meta-batch, or say what is missing or of the wrong rank."""
    names = ("support_x", "support_y", "query_x")
    if not isinstance(inputs, dict) or any(name not in inputs for name in names):
        keys = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise ValueError(
            "`inputs` must be a dict with the keys 'support_x', 'support_y' and 'query_x'. "
            f"Received: inputs={keys}"
        )
    tensors = {name: keras.ops.convert_to_tensor(inputs[name]) for name in names}
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    same_example = shapes["support_x"][2:] == shapes["query_x"][2:]
    tasks = {s[:1] for s in shapes.values()} - {(None,)}
    lengths = {s[1:2] for s in (shapes["support_x"], shapes["support_y"])} - {(None,)}
    whole = len(tasks) <= 1 and len(lengths) <= 1 and (0,) not in tasks | lengths
    if min(len(s) for s in shapes.values()) < 2 or not same_example or not whole:
        raise ValueError(
            "`inputs` must be support_x [tasks, ways*shots, ...], support_y [tasks, ways*shots] "
            "and query_x [tasks, ways*queries, ...], with one number of tasks, not 0, and examples "
            "of one shape. "
            f"Received: shapes={shapes}"
        )
    return tensors


def _check_support(x: Array, y: Array) -> None:
    images = np.issubdtype(x.dtype, np.integer) and x.ndim >= 3
    if x.dtype == np.uint8 or images:
        raise TypeError(
            "`support_x` must be scaled as in training; the samplers give uint8 images as float32 "
            f"times 1/255. Received: dtype={x.dtype}"
        )
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y) or len(x) == 0:
        raise ValueError(
            "`support_x` and `support_y` must have the same length, at least 1. "
            f"Received: shapes {x.shape} and {y.shape}"
        )
    for name, values in (("support_x", x), ("support_y", y)):
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ValueError(f"`{name}` must be finite. Received: NaN or infinite values")


def _check_finite(state: Any) -> None:
    for x in tf.nest.flatten(state):
        if x.dtype.is_floating and not np.isfinite(x.numpy()).all():
            raise ValueError(
                "What is learnt from the support set must be finite. Received: NaN or infinite "
                "values; a smaller inner learning rate may help"
            )


def _check_example_shape(x: Array, model: keras.Model) -> None:
    expected = getattr(model, "input_shape", None)
    if not isinstance(expected, tuple):
        return
    fits = len(expected) == x.ndim and all(
        e in (None, n) for e, n in zip(expected[1:], x.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"`support_x` must have the shape [n, {', '.join(map(str, expected[1:]))}] that the "
            f"model takes. Received: shape={x.shape}"
        )
