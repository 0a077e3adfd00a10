"""`Replicated`: a Keras model whose tasks are shared out among replicas."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.distribution import check_alike as alike
from tfmeta.distribution import (
    digest,
    local,
    replicas_here,
    summed,
    workers_of,
)
from tfmeta.foreign.of_keras import OpenModel, gradients_are_summed, loss_tracker_of
from tfmeta.foreign.of_tensorflow import one_of_many
from tfmeta.notes import with_notes
from tfmeta.types import Inputs, Nest, Tensor


class Replicated(OpenModel):
    """A Keras model that can be trained by replicas in several processes.

    Keras 3.15 reduces batches and logs across replicas in a way that
    `tf.distribute.MultiWorkerMirroredStrategy` refuses (Keras's issue 20585). Here a model is built
    from the part of a batch that the first replica of the process has, and logs are that replica's;
    at the end of an epoch, metrics are read for all replicas as ever. With one replica, everything
    is Keras's own.
    """

    train_function: Any
    test_function: Any
    _predict_here: Any = None

    @property
    def _alone(self) -> bool:
        return bool(self.distribute_strategy.num_replicas_in_sync == 1)

    def models(self) -> list[keras.Model]:
        """Return the models that are attributes of this one."""
        return [layer for layer in self.layers if isinstance(layer, keras.Model)]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Choose optimizer, loss and metrics as `keras.Model.compile` does."""
        super().compile(*args, **kwargs)
        self._predict_here = None
        if self.jit_compile and not self._alone:
            raise ValueError(
                "`jit_compile` must be False with several replicas, for XLA cannot compile their "
                "exchange. Received: jit_compile=True"
            )

    def make_train_function(self, force: bool = False) -> None:
        """Make the function that Keras calls for each step of training."""
        if self._alone:
            super().make_train_function(force)
        elif force or self.train_function is None:
            self.train_function = self._on_replicas(self.train_step)

    def make_test_function(self, force: bool = False) -> None:
        """Make the function that Keras calls for each step of evaluation."""
        if self._alone:
            super().make_test_function(force)
        elif force or self.test_function is None:
            self.test_function = self._on_replicas(self.test_step)

    def predict_with_notes(self, x: Any) -> tuple[Any, Any]:
        """Return predictions for a single batch and what Keras notes on them, all as arrays.

        With several replicas, those of this process alone: Keras would let every replica predict
        all of it, and put their results together.

        Args:
            x: As for `keras.Model.predict_on_batch`.

        Returns:
            What `tfmeta.notes.with_notes` returns.
        """
        if self._predict_here is None:

            def step(x: Any) -> Any:
                return with_notes(self.predict_step((x,)))

            compiled = one_of_many(
                tf.function(
                    step, autograph=False, reduce_retracing=True, jit_compile=self.jit_compile
                )
            )
            chosen = step if self.run_eagerly else compiled
            # Within a function, for Keras would have it as a part of the model.
            self._predict_here = lambda x: chosen(x)
        x = tf.nest.map_structure(tf.convert_to_tensor, x)
        return tf.nest.map_structure(np.asarray, self._predict_here(x))  # type: ignore[no-any-return]

    def _on_replicas(self, step: Any) -> Any:
        strategy = self.distribute_strategy

        def steps(batches: Any) -> Any:
            for _ in range(self.steps_per_execution):
                logs = strategy.run(step, args=(next(batches),))
            return local(strategy, logs)

        compiled = steps if self.run_eagerly else tf.function(steps, autograph=False)

        def checked(batches: Any) -> Any:
            if not isinstance(batches, (tf.data.Iterator, tf.distribute.DistributedIterator)):
                raise ValueError(
                    "`train_on_batch` and `test_on_batch` are for one replica; use `fit` and "
                    f"`evaluate` with several. Received: {strategy.num_replicas_in_sync} replicas"
                )
            return compiled(batches)

        return checked

    def first_batch(self, iterator: Any, data_batch: Any) -> tuple[Any, Any]:
        """Return the part of the first meta-batch that the first replica of this process has."""
        if iterator is None or self._alone:
            return iterator, data_batch
        _, _, batches = next(iter(iterator))
        return None, local(self.distribute_strategy, next(batches))

    def sums_over_tasks(self) -> bool:
        """Whether the loss of a meta-batch is the sum over its tasks, and not the mean."""
        losses = keras.tree.flatten(self.loss)
        reductions = {getattr(loss, "reduction", "mean") for loss in losses if loss is not None}
        if reductions == {"sum"}:
            return True
        if reductions & {"sum", "none", None}:
            raise ValueError(
                "`loss` must average over examples or sum over them, all outputs alike. "
                f"Received: reduction {sorted(map(str, reductions))}"
            )
        return False

    def compute_loss(
        self,
        x: Inputs | None = None,
        y: Nest = None,
        y_pred: Nest = None,
        sample_weight: Nest = None,
        training: bool = True,
    ) -> Any:
        """Return the compiled loss of one task's examples, `keras.Model.compute_loss`.

        This is the loss everywhere: of support sets in the inner loop, of queries in the outer one,
        in logs and in evaluation. That of a meta-batch is the mean over its tasks, or their sum
        where the loss sums over examples. It is the loss of these examples, however many replicas
        have others: Keras would divide a mean by their number, and an inner step would be shorter.

        Args:
            x: The task's inputs, or `None`.
            y: Labels, a nest of `[n, ...]`.
            y_pred: Predictions, a nest of `[n, ...]`.
            sample_weight: A nest of `[n]`, or `None`.
            training: The Keras flag.
        """
        loss = super().compute_loss(x, y, y_pred, sample_weight, training=training)
        replicas = replicas_here()
        return loss if replicas == 1 or self.sums_over_tasks() else loss * replicas

    def log_loss(self, loss: Tensor, tasks: Any) -> None:
        """Log the loss of this replica's tasks, where no step of the optimizer does it.

        Args:
            loss: The mean over tasks, or the sum, as the compiled loss is over examples.
            tasks: How many tasks it is of.
        """
        replicas = replicas_here()
        if replicas > 1 and self.sums_over_tasks():
            loss *= replicas  # the metric averages over replicas
        loss_tracker_of(self).update_state(loss, sample_weight=tasks)

    def outer_update(self, loss: Tensor, *gradients: Any, tasks: Any) -> None:
        """Take an outer step from what this replica has of loss and gradients, and log the loss.

        They are summed over replicas, or averaged, as the compiled loss is over tasks.

        Args:
            loss: The outer loss of this replica's tasks.
            *gradients: One for each trainable variable.
            tasks: How many tasks they are of.
        """
        replicas = replicas_here()
        totals = [loss, *gradients]
        if replicas > 1:
            statistics = self.own_statistics()
            sums = summed([tf.convert_to_tensor(v) for v in (*totals, *statistics)])
            means = [x / replicas for x in sums]
            for variable, mean in zip(statistics, means[len(totals) :], strict=True):
                variable.assign(mean)
            totals = (sums if self.sums_over_tasks() else means)[: len(totals)]
        loss, *of_weights = totals
        loss_tracker_of(self).update_state(loss, sample_weight=tasks)
        with gradients_are_summed(self.optimizer):
            self.optimizer.apply_gradients(zip(of_weights, self.trainable_variables, strict=True))

    def own_statistics(self) -> list[keras.Variable]:
        """Return the weights that each replica changes by itself in a step, to be averaged then.

        The default is all that its models have of statistics.
        """
        stored = [v for model in self.models() for v in model.non_trainable_variables]
        return [v for v in stored if keras.backend.is_float_dtype(v.dtype)]

    def check_alike(self, first: Any) -> None:
        """Raise on all workers unless they have the same learner and the same first meta-batch."""
        if workers_of(self.distribute_strategy)[1] == 1:
            return
        weights = [(v.shape, v.dtype) for v in self.variables]
        settings = {
            name: value
            for name, value in self.get_config().items()
            if isinstance(value, str | int | float | bool | None) and name != "name"
        }
        optimizer = {**self.optimizer.get_config(), "name": None}
        episodes = [np.asarray(part) for part in tf.nest.flatten(first)]
        digests = {
            "learner": digest(type(self).__name__, settings, weights, optimizer),
            "episodes": digest(*episodes),
        }
        alike(self.distribute_strategy, digests)

    def regularization(self, loss: Tensor) -> Any:
        """Return the loss of a regularizer; Keras divides it where it divides no sum of losses."""
        replicas = replicas_here()
        return loss * replicas if replicas > 1 and self.sums_over_tasks() else loss
