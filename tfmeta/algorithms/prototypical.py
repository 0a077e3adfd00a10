"""Prototypical Networks.

Snell, Swersky and Zemel, *Prototypical Networks for Few-shot Learning*, NeurIPS 2017.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.prototype_head import model_of_prototypes
from tfmeta.checks import check_positive
from tfmeta.copies import copy_of
from tfmeta.derivatives import gradients_or_zeros
from tfmeta.functional import batch_norm_layers
from tfmeta.inputs import episode_inputs, known_ways
from tfmeta.labels import ClassNumbers
from tfmeta.losses import task_losses
from tfmeta.meta_learner import MetaLearner
from tfmeta.moving_statistics import warn_of_lagging
from tfmeta.ops import cosine_similarity, prototypes, squared_euclidean
from tfmeta.packed import trained_by_rules, tried
from tfmeta.padding import MASKS, put_back, without_padding
from tfmeta.types import Inputs, Nest, Tensor

DISTANCES = ("squared_euclidean", "cosine")


@keras.saving.register_keras_serializable(package="tfmeta")
class PrototypicalNetwork(MetaLearner):
    """Classify queries by their nearest class mean in a learnt embedding.

    `c_k` is the mean embedding of class k's support examples; the logits are `−t ‖f(x) − c_k‖²`
    or `t cos(f(x), c_k)` with the temperature t. Ways and shots are free: training with more ways
    than testing is the usual practice. In training, support and query are embedded together, so
    batch normalisation sees one batch, as published; evaluation uses its moving averages. They lag
    1/(1 − momentum) steps behind the weights: Keras's momentum of 0.99 needs 500 steps, and a
    network of your own with `keras.layers.BatchNormalization(momentum=0.9)` 50. `fit` says so when
    a training was too short.

    XLA must know the number of ways beforehand. With `jit_compile=True` there are therefore as many
    logits as support examples; those of classes that a task does not have are about −1e38.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`.
        distance: `"squared_euclidean"` or `"cosine"`.
        temperature: t, positive.
        learn_temperature: Whether the outer loop trains t. Advisable with `"cosine"`, whose logits
            lie in `[−t, t]`.
        **kwargs: `name` and `dtype`; and `task_axis`, of which `"loop"` calls the encoder's layers
            where the others take the faster rules for them, if there is one for each.

    Raises:
        TypeError: If `encoder` is not a Keras model.
        ValueError: If a value is out of range, or the encoder has no trainable weights.

    Example:
        ```python
        learner = tfmeta.PrototypicalNetwork(tfmeta.models.conv4((28, 28, 1)))
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                        metrics=["accuracy"])
        learner.fit(sampler.dataset(), steps_per_epoch=100, epochs=20)
        ```
    """

    gives_logits = True
    labels = ClassNumbers(each=True)

    def __init__(
        self,
        encoder: keras.Model,
        distance: str = "squared_euclidean",
        temperature: float = 1.0,
        *,
        learn_temperature: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        if distance not in DISTANCES:
            raise ValueError(
                f"`distance` must be 'squared_euclidean' or 'cosine'. Received: {distance=}"
            )
        check_positive("temperature", temperature)
        self.distance = distance
        self.initial_temperature = temperature
        self.learn_temperature = learn_temperature
        self.temperature = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(temperature),
            trainable=learn_temperature,
            constraint="non_neg",
            name="temperature",
        )

    def call(self, inputs: Inputs, training: bool | None = None) -> Any:
        """Return logits `[tasks, queries, ways]`, embedding all tasks' examples in one pass."""
        tensors = episode_inputs(inputs)
        support_x, query_x = tensors["support_x"], tensors["query_x"]
        examples = tf.concat([support_x, query_x], axis=1)
        flat = tf.reshape(examples, tf.concat([[-1], tf.shape(examples)[2:]], 0))
        flat = tf.ensure_shape(flat, [None, *examples.shape[2:]])
        mask = None
        if self._padded(tensors):
            mask = tf.reshape(tf.concat([tensors[name] for name in MASKS], axis=1), [-1])
            (flat,) = without_padding(mask, flat)
        embedded = put_back(mask, self._embed(flat, training))
        embedded = tf.reshape(embedded, [*_sizes(examples, 2), embedded.shape[-1]])
        shots = _sizes(support_x, 2)[1]
        state = self._prototypes(embedded[:, :shots], tensors["support_y"])
        return self._logits(embedded[:, shots:], *state)

    def build(self, input_shape: Any) -> None:
        """Build the encoder; with several replicas, its batch normalisation sees all their tasks.

        That is `synchronized=True` of Keras's `BatchNormalization`.
        """
        super().build(input_shape)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            for layer in batch_norm_layers(self.model):
                layer.synchronized = True

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Train on episodes as `MetaLearner.fit` does.

        Where more than 1 % of what batch normalisation's running statistics were before the first
        step is left in them, momentum^steps, that is said in the log, with the layer's name.
        """
        history = super().fit(*args, **kwargs)
        warn_of_lagging(self.model, int(self.optimizer.iterations.numpy()))
        return history

    def train_step(self, data: Any) -> Any:
        """Take one outer step on all tasks at once, as Keras's own step does."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predictions = self(x, training=True)
            loss = self._loss(x, y, predictions, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        gradients = gradients_or_zeros(tape, scaled, self.trainable_variables)
        self.outer_update(loss, *gradients, tasks=tf.shape(predictions)[0])
        return self.compute_metrics(x, y, predictions, sample_weight=sample_weight)

    def test_step(self, data: Any) -> Any:
        """Score a meta-batch, all tasks at once."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        predictions = self(x, training=False)
        loss = self._loss(x, y, predictions, sample_weight, training=False)
        self.log_loss(loss, tf.shape(predictions)[0])
        return self.compute_metrics(x, y, predictions, sample_weight=sample_weight)

    def own_statistics(self) -> list[Any]:
        """Return none, for statistics are those of all replicas."""
        return []

    def adapt_task(self, support_x: Nest, support_y: Nest, *, training: bool) -> tuple[Any, Any]:
        """Return the prototypes `[ways, d]` and which of them have examples, `[ways]`."""
        if len(support_y.shape) != 1:
            raise ValueError(
                "`support_y` must have one axis, a class number for each example. "
                f"Received: shape={tuple(support_y.shape)}"
            )
        embedded = self._embed(support_x, training)
        means, present = self._prototypes(embedded[None], support_y[None])
        return means[0], present[0]

    def predict_task(self, state: tuple[Any, Any], query_x: Nest, *, training: bool) -> Any:
        """Return the logits `[queries, ways]`."""
        means, present = state
        return self._logits(self._embed(query_x, training)[None], means[None], present[None])[0]

    def output_spec(self) -> Any:
        """Return symbolic predictions `[n, ways]` for any number of ways."""
        return keras.KerasTensor((None, None), self.compute_dtype)

    def named_state(self, state: tuple[Any, Any]) -> dict[str, Any]:
        """Return the prototypes `[ways, d]`."""
        return {"prototypes": state[0]}

    def state_of(self, tensors: dict[str, Any], structure: Nest) -> tuple[Any, Any]:
        """Return prototypes, and that each class has one: an export refuses other support sets."""
        del structure
        means = tensors["prototypes"]
        return means, tf.ones(tf.shape(means)[:1], tf.bool)

    def adapted_model(self, state: tuple[Any, Any]) -> keras.Model:
        """Return encoder and head as one model of Keras's own layers, with the same logits.

        An encoder that cannot be copied is called as the learner calls it, with weights of its own.
        """
        # Under XLA the prototypes of absent classes are there too.
        means, present = (tf.boolean_mask(x, state[1]) for x in state)
        encoder = copy_of(self.model)
        if encoder is None:
            return super().adapted_model((means, present))
        return model_of_prototypes(encoder, self.example, means, self.distance, self.temperature)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {**super().get_config(), "temperature": self.initial_temperature}

    @property
    def encoder(self) -> keras.Model:
        """The wrapped model."""
        return self.model

    def why_not_packed(self) -> str | None:
        """Return which layer of the encoder has no rule, if there is one."""
        return tried(self.model, self.example).obstacle

    def _can_pack(self) -> bool:
        # All tasks are one batch anyway; the rules' batch normalisation is faster than Keras's,
        # and without rules there is nothing to warn of. It is not that of several replicas.
        if self.distribute_strategy.num_replicas_in_sync > 1:
            return False
        if self.task_axis == "packed":
            return super()._can_pack()
        return self.task_axis == "auto" and self.why_not_packed() is None

    def _embed(self, examples: Any, training: bool | None) -> Any:
        if training and self.packs:
            embedded = trained_by_rules(self.model, examples)
        else:
            embedded = self.model(examples, training=training)
        if len(embedded.shape) != 2:
            raise ValueError(
                "`encoder` must return one vector [n, d] for each example. "
                f"Received: shape={tuple(embedded.shape)}"
            )
        return embedded

    def _loss(
        self, x: Any, y: Nest, predictions: Tensor, sample_weight: Nest, *, training: bool
    ) -> Any:
        """Return the loss of a meta-batch, over its tasks as the compiled one is over examples."""
        mask = x.get("query_mask")
        losses = task_losses(
            self, None, y, predictions, sample_weight, training=training, mask=mask
        )
        return tf.reduce_sum(losses) if self.sums_over_tasks() else tf.reduce_mean(losses)

    def _prototypes(self, embedded: Tensor, labels: Tensor) -> tuple[Any, Any]:
        ways, present = present_classes(labels, static=bool(self.compiled and self.jit_compile))
        return prototypes(embedded, labels, ways), present

    def _logits(self, embedded: Tensor, means: Tensor, present: Tensor) -> Any:
        if self.distance == "cosine":
            similarity = cosine_similarity(embedded, means)
        else:
            similarity = -squared_euclidean(embedded, means)
        logits = tf.cast(self.temperature, similarity.dtype) * similarity
        # A class without support examples cannot be predicted.
        return tf.where(present[:, None, :], logits, logits.dtype.min / 2)


def present_classes(labels: Tensor, static: bool) -> tuple[Any, Any]:
    """Return the number of ways of `labels` `[tasks, n]`, and which are there, `[tasks, ways]`.

    XLA needs a number that is `static`; that is then the most that a support set can have.
    """
    labels = tf.cast(labels, tf.int32)
    most = known_ways() or (labels.shape[1] if static else None)
    ways = tf.reduce_max(labels) + 1 if most is None else most
    return ways, tf.reduce_any(tf.one_hot(labels, ways, on_value=True, off_value=False), axis=1)


def _sizes(x: Any, axes: int) -> list[Any]:
    """Return the first sizes of `x`, as numbers where they are known."""
    dynamic = tf.shape(x)
    return [dynamic[i] if x.shape[i] is None else x.shape[i] for i in range(axes)]
