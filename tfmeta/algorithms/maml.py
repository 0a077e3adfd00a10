"""Model-agnostic meta-learning.

Finn, Abbeel and Levine, *Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks*,
ICML 2017.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfmeta.checks import check_count, check_positive
from tfmeta.functional import (
    BATCH_NORM_MODES,
    BatchNormMode,
    batch_norm_layers,
    chosen_variables,
    functional_call,
)
from tfmeta.inner_loop import inner_loop
from tfmeta.inner_optimizers import SGD, UpdateRule
from tfmeta.layers import BatchAtHandNormalization
from tfmeta.meta_learner import MetaLearner, copy_of
from tfmeta.types import Array, Params

Statistics = Literal["batch", "stored", "training"]


@keras.saving.register_keras_serializable(package="tfmeta")
class MAML(MetaLearner):
    """Learn an initialisation from which a few gradient steps solve a new task.

    `φ_0 = θ`, `φ_{k+1} = φ_k − α ∇L_S(φ_k)`; the outer loss is the mean over tasks of `L_Q(φ_K)`,
    differentiated through the inner steps. Both losses are the one given to `compile`, the mean
    over examples. (The authors' code steps on a support loss that is not averaged, so that its
    inner rate of 0.4 for 5-way 1-shot Omniglot is 2.0 here.)

    Args:
        model: Any `keras.Model`; its weights are the initialisation θ, and `fit` changes them.
        inner_learning_rate: α, positive.
        inner_steps: K, in training.
        first_order: Take the inner gradient as a constant, so that `∂φ/∂θ = I`.
        evaluation_steps: K in evaluation, prediction and `adapt`; `inner_steps` if `None`.
        inner_optimizer: A rule of `tfmeta.inner_optimizers`, with a learning rate of its own, in
            the place of plain gradient descent with `inner_learning_rate`.
        inner_clip_norm: Scale an inner gradient down to this norm over all weights, if it is
            longer.
        adapt: Which weights the inner loop changes: names of layers, paths of variables, or a
            function of a variable that says yes or no; all by default. The outer loop trains all.
        batch_norm: Which statistics batch normalisation uses. `"transductive"`, as published:
            those of the batch at hand, for the query set too. `"support"`: those of the support
            set at the adapted weights. `"running"`: as in ordinary Keras training, moving averages
            in evaluation.
        task_chunk: How many tasks are in flight in a training step; memory grows with it.
        **kwargs: `name` and `dtype`.

    Raises:
        TypeError: If `model` is not a Keras model, or a number is no number.
        ValueError: If a value is out of range, or the model has no trainable weights.

    Example:
        ```python
        learner = tfmeta.MAML(tfmeta.models.conv4((28, 28, 1), 5), inner_learning_rate=0.4)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.fit(sampler.dataset(meta_batch_size=32), steps_per_epoch=500, epochs=20)
        adapted = learner.adapt(support_x, support_y)
        ```
    """

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        *,
        evaluation_steps: int | None = None,
        inner_optimizer: UpdateRule | None = None,
        inner_clip_norm: float | None = None,
        adapt: str | Sequence[str] | Callable[[Any], bool] | None = None,
        batch_norm: BatchNormMode = "transductive",
        task_chunk: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, task_chunk=task_chunk, **kwargs)
        for name, steps in (("inner_steps", inner_steps), ("evaluation_steps", evaluation_steps)):
            if steps is not None:
                check_count(name, steps)
        if batch_norm not in BATCH_NORM_MODES:
            raise ValueError(
                f"`batch_norm` must be one of {', '.join(map(repr, BATCH_NORM_MODES))}. "
                f"Received: batch_norm={batch_norm!r}"
            )
        check_positive("inner_learning_rate", inner_learning_rate)
        if inner_clip_norm is not None:
            check_positive("inner_clip_norm", inner_clip_norm)
        is_rule = all(hasattr(inner_optimizer, name) for name in ("init", "update", "get_config"))
        if inner_optimizer is not None and not is_rule:
            raise TypeError(
                "`inner_optimizer` must be a rule of tfmeta.inner_optimizers; Keras's optimizers "
                f"cannot be differentiated through. Received: inner_optimizer={inner_optimizer!r}"
            )
        self.inner_optimizer = inner_optimizer
        self.inner_clip_norm = inner_clip_norm
        # `adapt` is the method's name already.
        self.adapted_part = adapt
        self.inner_learning_rate = inner_learning_rate
        self.inner_steps = inner_steps
        self.first_order = first_order
        self.evaluation_steps = evaluation_steps
        self.batch_norm = batch_norm

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and check that it has what `adapt` chooses."""
        super().build(input_shape)
        chosen_variables(self.model, self.adapted_part)

    def adapt_task(
        self, support_x: Any, support_y: Any, *, training: bool
    ) -> tuple[Params, Params]:
        """Return the adapted weights φ_K and the model's state after the inner loop."""
        if not self.compiled:
            raise ValueError(
                f"{type(self).__name__} needs a loss for its inner loop: call compile(loss=...) "
                "first."
            )
        statistics: Statistics = "training" if self.batch_norm == "running" else "batch"

        def call(params: Params, state: Params) -> tuple[Any, Params, list[Any]]:
            return functional_call(
                self.model, params, state, support_x, training=training, statistics=statistics
            )

        chosen = chosen_variables(self.model, self.adapted_part)
        start = [tf.convert_to_tensor(v) for v in self.model.trainable_variables]

        def whole(params: Params) -> Params:
            adapted = iter(params)
            return [next(adapted) if c else p for c, p in zip(chosen, start, strict=True)]

        def support_loss(params: Params, state: Params) -> tuple[Any, Params]:
            outputs, state, penalties = call(whole(params), state)
            if self._classes_are_outputs():
                _assert_labels_fit(support_y, outputs)
            loss = self.compute_loss(y=support_y, y_pred=outputs, training=training)
            return loss + sum(tf.cast(p, loss.dtype) for p in penalties), state

        steps = self.inner_steps if training else self.evaluation_steps or self.inner_steps
        params, state = inner_loop(
            support_loss,
            list(itertools.compress(start, chosen)),
            [tf.convert_to_tensor(v) for v in self.model.non_trainable_variables],
            rule=self.inner_optimizer or SGD(self.inner_learning_rate),
            steps=steps,
            first_order=self.first_order,
            names=[v.path for v in itertools.compress(self.model.trainable_variables, chosen)],
            clip_norm=self.inner_clip_norm,
        )
        params = whole(params)
        if self.batch_norm == "support" and batch_norm_layers(self.model):
            # The last inner step saw the statistics at φ_{K−1}.
            _, state, _ = call(params, state)
        return params, state

    def predict_task(self, state: tuple[Params, Params], query_x: Any, *, training: bool) -> Any:
        """Return the predictions `[queries, outputs]` at the adapted weights."""
        statistics: dict[str, Statistics] = {
            "transductive": "batch",
            "support": "stored",
            "running": "training",
        }
        params, model_state = state
        outputs, model_state, _ = functional_call(
            self.model,
            params,
            model_state,
            query_x,
            training=training,
            statistics=statistics[self.batch_norm],
        )
        if training:
            self._keep(model_state)
        return outputs

    def check_labels(self, labels: Array) -> None:
        """Check that integer class labels fit the width of the model's output."""
        if not (self.built and self.compiled and self._classes_are_outputs()):
            return
        example = keras.KerasTensor((1, *self.example_shape), dtype=self.model.input_dtype)
        width = self.model.compute_output_spec(example).shape[-1]
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"labels must be integers. Received: dtype={labels.dtype}")
        if labels.min() < 0 or labels.max() >= width:
            raise ValueError(
                f"labels must be in 0..{width - 1}: the model has {width} outputs, and `ways` "
                f"must not be more. Received: labels from {labels.min()} to {labels.max()}"
            )

    def adapted_model(self, state: tuple[Params, Params]) -> keras.Model:
        """Return the user's model with the adapted weights.

        With `batch_norm="transductive"` its batch normalisation uses the batch at hand, like the
        learner's; with `"support"` it has the support set's statistics stored.
        """
        adapted = copy_of(self.model)
        if self.batch_norm == "transductive" and batch_norm_layers(adapted):
            adapted = self._with_batch_at_hand(adapted)
        params, model_state = state
        for variable, value in zip(adapted.trainable_variables, params, strict=True):
            variable.assign(value)
        for variable, value in zip(adapted.non_trainable_variables, model_state, strict=True):
            variable.assign(value)
        return adapted

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {
            **super().get_config(),
            "inner_learning_rate": self.inner_learning_rate,
            "inner_steps": self.inner_steps,
            "first_order": self.first_order,
            "evaluation_steps": self.evaluation_steps,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "inner_clip_norm": self.inner_clip_norm,
            "adapt": keras.saving.serialize_keras_object(self.adapted_part),
            "batch_norm": self.batch_norm,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MAML:
        """Make a learner from what `get_config` returned."""
        rule = keras.saving.deserialize_keras_object(config["inner_optimizer"])
        part = keras.saving.deserialize_keras_object(config["adapt"])
        learner: MAML = super().from_config({**config, "inner_optimizer": rule, "adapt": part})
        return learner

    def _with_batch_at_hand(self, model: keras.Model) -> keras.Model:
        error = ValueError(
            "A subclassed model or layer with batch normalisation in it cannot be adapted with "
            "batch_norm='transductive'; use 'support' or 'running'. "
            f"Received: model={self.model.name!r}"
        )
        try:
            clone = keras.models.clone_model(model, clone_function=_batch_at_hand, recursive=True)
        except ValueError as cause:
            raise error from cause
        # Cloning does not look into layers of one's own.
        if not all(isinstance(x, BatchAtHandNormalization) for x in batch_norm_layers(clone)):
            raise error
        return clone

    def _classes_are_outputs(self) -> bool:
        loss = self.loss
        return isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or loss in (
            "sparse_categorical_crossentropy",
            keras.losses.sparse_categorical_crossentropy,
        )

    def _keep(self, model_state: Params) -> None:
        """Keep a task's random seeds, and its moving statistics if evaluation will use them."""
        norms = [] if self.batch_norm == "running" else batch_norm_layers(self.model)
        passing = {id(v) for layer in norms for v in layer.non_trainable_variables}
        for variable, value in zip(self.model.non_trainable_variables, model_state, strict=True):
            if id(variable) not in passing:
                variable.assign(value)


def FOMAML(  # noqa: N802
    model: keras.Model, inner_learning_rate: float = 0.01, inner_steps: int = 1, **kwargs: Any
) -> MAML:
    """Return first-order MAML: `MAML(..., first_order=True)`.

    The outer gradient is the query loss's gradient at the adapted weights, `∇L_Q(φ_K)`. Arguments
    are those of `MAML` without `first_order`.

    Example:
        >>> learner = tfmeta.FOMAML(tfmeta.models.conv4((28, 28, 1), 5), inner_learning_rate=0.4)
    """
    return MAML(model, inner_learning_rate, inner_steps, first_order=True, **kwargs)


def _batch_at_hand(layer: keras.layers.Layer) -> keras.layers.Layer:
    cls = type(layer)
    if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
        cls = BatchAtHandNormalization
    return cls.from_config(layer.get_config())


def _assert_labels_fit(labels: Any, outputs: Any) -> None:
    tf.debugging.assert_less(
        labels,
        tf.cast(outputs.shape[-1], labels.dtype),
        message="`ways` must be at most the number of outputs of the model, "
        f"which is {outputs.shape[-1]}",
    )
