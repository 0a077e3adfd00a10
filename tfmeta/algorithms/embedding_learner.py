"""`EmbeddingLearner`: what learners have in common that put a head on embeddings."""

from __future__ import annotations

import abc
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.prototype_head import check_embedded, present_classes
from tfmeta.derivatives import gradients_or_zeros
from tfmeta.functional import batch_norm_layers
from tfmeta.labels import ClassNumbers
from tfmeta.losses import task_losses
from tfmeta.meta_learner import MetaLearner
from tfmeta.moving_statistics import warn_of_lagging
from tfmeta.packed import trained_by_rules, tried
from tfmeta.padding import masks_of, put_back, without_padding
from tfmeta.task_map import in_one_axis
from tfmeta.types import Inputs, Nest, Tensor


class EmbeddingLearner(MetaLearner):
    """A classifier on the embeddings of all tasks' examples, which are one batch.

    A new one supplies `learn` and `answer`, for several tasks at once; one that answers all queries
    of a task together `answer_together`, and one that learns from examples without labels
    `learn_unlabelled`. In training, support and query sets of all tasks are embedded together, so
    that batch normalisation sees one batch; with several replicas, that of all of them. Elsewhere
    it uses its moving averages.

    The encoder may be frozen, or have no weights at all: then `evaluate`, `adapt` and `export` work
    at once, and `fit` trains what weights the learner has of its own.
    """

    gives_logits = True
    labels = ClassNumbers(each=True)
    # Whether the outer loss has a derivative.
    trains = True
    # Whether training gathers something besides, by `gather`.
    gathers = False
    # Whether embeddings may be maps `[h, w, c]` as well: `[tasks, n, h, w, c]` in both functions.
    takes_maps = False
    # Whether the head has layers that compute otherwise in training. `learn` and `answer` are then
    # given `training`, and `answer` what is `real`: see there.
    has_layers = False
    # What `learn` returns that has a row for each class, made of that class's examples alone.
    of_classes: tuple[str, ...] = ()

    @abc.abstractmethod
    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return what is learnt from embedded support sets: tensors `[tasks, ...]` by name.

        Args:
            embedded: `[tasks, n, d]`.
            labels: `[tasks, n]`. Examples that only fill up a task have the label −1, and zeros for
                an embedding: a head leaves them out, as sums over one-hot labels do by themselves.
            ways: How many classes a task has at most, a number or a scalar.
        """

    @abc.abstractmethod
    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]` for embedded queries.

        A head that `has_layers` is given two more. `training` is the Keras flag. `real` tells
        which pairs of a query and a class there are, `[tasks, queries, ways]`, so that no layer
        need see others; it is `None` where tasks are not padded, in which all queries are there
        and, but for XLA, all classes.

        Args:
            state: What `learn` returned.
            embedded: `[tasks, queries, d]`.
        """

    def answer_together(self, state: dict[str, Tensor], embedded: Tensor, real: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]` where one answer may depend on other queries.

        By default it does not, and this is `answer`; whoever overrides it sets `transductive`.

        Args:
            state: What `learn` returned.
            embedded: `[tasks, queries, d]`.
            real: `[tasks, queries]`: 1, and 0 for what only fills up a task, with zeros for an
                embedding.
        """
        del real
        return self.answer(state, embedded)

    def learn_unlabelled(
        self, state: dict[str, Tensor], embedded: Tensor, real: Tensor
    ) -> dict[str, Tensor]:
        """Return what is learnt from examples without labels as well, where it `takes_unlabelled`.

        Args:
            state: What `learn` returned.
            embedded: `[tasks, u, d]`.
            real: `[tasks, u]`, as for `answer_together`.
        """
        raise NotImplementedError(f"{type(self).__name__} must have `learn_unlabelled`")

    def gather(self, embedded: Tensor) -> None:
        """Take note of all embeddings `[n, d]` of a meta-batch in training, where it `gathers`."""

    def kept(self, state: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return the embeddings `[n, d]` and labels `[n]` a state is of, or `None` without them.

        Where a head keeps them in what `learn` returns, `tfmeta.add_class` can learn anew from them
        and from more. It needs neither where there are rows `of_classes`.
        """
        del state
        return None

    @property
    def encoder(self) -> keras.Model:
        """The wrapped model."""
        return self.model

    def call(self, inputs: Inputs, training: bool | None = None) -> Nest:
        """Return logits `[tasks, queries, ways]`, embedding all tasks' examples in one pass."""
        tensors = self.parts_of(inputs)
        labels, masks = tensors["support_y"], masks_of(tensors)
        parts = [tensors[name] for name in masks]
        examples = tf.nest.map_structure(lambda *x: tf.concat(x, 1), *parts)
        # Sizes as numbers where they are known, which the head's operations can then rely on.
        first = tf.nest.flatten(examples)[0]
        sizes = [tf.shape(first)[i] if first.shape[i] is None else first.shape[i] for i in (0, 1)]
        firsts = [tf.nest.flatten(part)[0] for part in parts]
        lengths = [tf.shape(x)[1] if x.shape[1] is None else x.shape[1] for x in firsts]
        flat, mask = tf.nest.map_structure(in_one_axis, examples), None
        if self._padded(tensors):
            mask = in_one_axis(tf.concat([tensors[name] for name in masks.values()], 1))
            (flat,) = without_padding(mask, flat)
        embedded = self._embed(flat, training)
        if training and self.gathers:
            self.gather(tf.stop_gradient(embedded))
        embedded = put_back(mask, embedded)
        embedded = tf.reshape(embedded, [*sizes, *embedded.shape[1:]])
        embedded = dict(zip(masks, tf.split(embedded, lengths, 1), strict=True))
        real = {name: tensors.get(mask) for name, mask in masks.items()}
        state = self._learnt(embedded["support_x"], labels, training)
        if "unlabelled_x" in tensors:
            state = self._learnt_more(state, embedded["unlabelled_x"], real["unlabelled_x"])
        return self._answers(state, embedded["query_x"], training, real["query_x"])

    def adapt_task(
        self, support_x: Nest, support_y: Nest, *, training: bool, unlabelled_x: Nest = None
    ) -> Nest:
        """Return what `learn` returns, of one task, and which classes are `present`, `[ways]`.

        With examples without labels `[u, ...]`, it is what `learn_unlabelled` makes of that.
        """
        if len(support_y.shape) != 1:
            raise ValueError(
                "`support_y` must have one axis, a class number for each example. "
                f"Received: shape={tuple(support_y.shape)}"
            )
        state = self._learnt(self._embed(support_x, training)[None], support_y[None], training)
        if unlabelled_x is not None:
            state = self._learnt_more(state, self._embed(unlabelled_x, training)[None])
        return tf.nest.map_structure(lambda x: x[0], state)

    def predict_task(self, state: Nest, query_x: Nest, *, training: bool) -> Nest:
        """Return the logits `[queries, ways]`."""
        state = tf.nest.map_structure(lambda x: x[None], state)
        return self._answers(state, self._embed(query_x, training)[None], training)[0]

    def output_spec(self) -> Nest:
        """Return symbolic predictions `[n, ways]` for any number of ways."""
        return keras.KerasTensor((None, None), self.compute_dtype)

    def named_state(self, state: Nest) -> dict[str, Tensor]:
        """Return what `learn` returned: an export refuses support sets that lack a class."""
        return {name: x for name, x in state.items() if name != "present"}

    def state_of(self, tensors: dict[str, Tensor], structure: Nest) -> Nest:
        """Return the state again, in which all classes are present."""
        del structure
        return dict(tensors)

    def build(self, input_shape: Any) -> None:
        """Build the encoder; with several replicas, its batch normalisation sees all their tasks.

        That is `synchronized=True` of Keras's `BatchNormalization`.
        """
        super().build(input_shape)
        self.synchronize(self.model)

    def synchronize(self, model: keras.Model) -> None:
        """Have the batch normalisation of a model see the tasks of all replicas, if several."""
        if self.distribute_strategy.num_replicas_in_sync > 1:
            for layer in batch_norm_layers(model):
                layer.synchronized = True

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Train on episodes as `MetaLearner.fit` does.

        Where more than 1 % of what batch normalisation's running statistics were before the first
        step is left in them, momentum^steps, that is said in the log, with the layer's name.
        """
        history = super().fit(*args, **kwargs)
        for model in self.models():
            if model.trainable_variables:
                warn_of_lagging(model, int(self.optimizer.iterations.numpy()))
        return history

    def train_step(self, data: Any) -> Any:
        """Take one outer step on all tasks at once, as Keras's own step does."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predictions, loss = self._scored(x, y, sample_weight, training=True)
            scaled = self.optimizer.scale_loss(loss)
        tasks = tf.shape(predictions)[0]
        if self.trains and self.trainable_variables:
            gradients = gradients_or_zeros(tape, scaled, self.trainable_variables)
            self.outer_update(loss, *gradients, tasks=tasks)
        else:
            self.optimizer.iterations.assign_add(1)
            self.log_loss(loss, tasks)
        return self.compute_metrics(x, y, predictions, sample_weight=sample_weight)

    def test_step(self, data: Any) -> Any:
        """Score a meta-batch, all tasks at once."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        predictions, loss = self._scored(x, y, sample_weight, training=False)
        self.log_loss(loss, tf.shape(predictions)[0])
        return self.compute_metrics(x, y, predictions, sample_weight=sample_weight)

    def own_statistics(self) -> list[keras.Variable]:
        """Return none, for statistics are those of all replicas."""
        return []

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

    def _create_variables(self, targets: Nest, *, training: bool = False) -> None:
        # Here the learner is built, and no step was taken.
        something = self.gathers or (self.trains and self.trainable_variables)
        if training and not something:
            raise ValueError(
                f"{type(self).__name__} must have something to train. Received: a model "
                f"{self.model.name!r} without trainable weights, or a head that has no derivative; "
                "evaluate, adapt and export work without `fit`"
            )
        super()._create_variables(targets, training=training)

    def _check_weights(self) -> None:
        """Take any model: what it gives is a start for the head."""

    def _learnt(self, embedded: Tensor, labels: Tensor, training: bool | None) -> Nest:
        if tf.executing_eagerly():  # as `adapt` does; in graphs NaN goes its way to the answer
            check_embedded("support_x", in_one_axis(embedded))
        ways, present = present_classes(labels, static=bool(self.compiled and self.jit_compile))
        how = {"training": bool(training)} if self.has_layers else {}
        return {"present": present, **self.learn(embedded, labels, ways, **how)}

    def _learnt_more(self, state: Nest, embedded: Tensor, mask: Tensor | None = None) -> Nest:
        known = {name: x for name, x in state.items() if name != "present"}
        return {**state, **self.learn_unlabelled(known, embedded, _ones_where(mask, embedded))}

    def _answers(
        self, state: Nest, embedded: Tensor, training: bool | None, mask: Tensor | None = None
    ) -> Tensor:
        state = dict(state)
        present = state.pop("present", None)
        if self.has_layers:
            real = None if mask is None else mask[:, :, None] & present[:, None, :]
            how: dict[str, Any] = {"training": bool(training), "real": real}
            logits = self.answer(state, embedded, **how)
        else:
            logits = self.answer_together(state, embedded, _ones_where(mask, embedded))
        # A class without support examples cannot be predicted.
        lowest = logits.dtype.min / 2
        return logits if present is None else tf.where(present[:, None, :], logits, lowest)

    def _embed(self, examples: Nest, training: bool | None) -> Any:
        if training and self.packs:
            embedded = trained_by_rules(self.model, examples)
        else:
            embedded = self.model(examples, training=training)
        if len(embedded.shape) not in ((2, 4) if self.takes_maps else (2,)):
            maps = ", or one map [n, h, w, c]," if self.takes_maps else ""
            raise ValueError(
                f"`encoder` must return one vector [n, d]{maps} for each example. "
                f"Received: shape={tuple(embedded.shape)}"
            )
        # As `embed` does: in half precision heads could not solve their systems.
        return tf.cast(embedded, self.variable_dtype)

    def _scored(self, x: Inputs, y: Nest, sample_weight: Nest, *, training: bool) -> Any:
        """Return predictions and loss of a meta-batch, over tasks as Keras's is over examples."""
        predictions = self(x, training=training)
        mask = x.get("query_mask")
        losses = task_losses(
            self, None, y, predictions, sample_weight, training=training, mask=mask
        )
        over_tasks = tf.reduce_sum if self.sums_over_tasks() else tf.reduce_mean
        return predictions, over_tasks(losses)


def _ones_where(mask: Tensor | None, embedded: Tensor) -> Tensor:
    """Return `[tasks, n]` for `embedded` `[tasks, n, d]`: 1, and 0 where `mask` is false."""
    return tf.ones_like(embedded[..., 0]) if mask is None else tf.cast(mask, embedded.dtype)
