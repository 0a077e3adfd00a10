"""Reptile.

Nichol, Achiam and Schulman, *On First-Order Meta-Learning Algorithms*, 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.algorithms.rates import Filled
from tfmeta.checks import check_count, check_positive
from tfmeta.differentiation import Detached
from tfmeta.fast_weights import FastWeights
from tfmeta.inner_loop import InnerStep, Path
from tfmeta.task_map import current_tasks
from tfmeta.types import Inputs, Params


@keras.saving.register_keras_serializable(package="tfmeta")
class Reptile(GradientBased):
    """Move the initialisation towards the adapted weights, `θ ← θ + ε · mean_i(φ_i − θ)`.

    `φ_i` is what K inner steps on task i's support set make of θ. The query set is not trained
    on, only scored. `ε (θ − mean φ)` is handed to the optimizer given to `compile` as a gradient:
    `keras.optimizers.SGD(1.0)` gives the published rule.

    The slots of the inner optimizer are weights of the learner: each task of a meta-batch begins
    with those that the task before it left, and evaluation begins with the training's and leaves
    them as they are, as published. Batch normalisation is transductive by default;
    `batch_norm="with_support"` is the paper's other evaluation, in which each query is seen
    alone with the whole support set.

    Args:
        model: Any `keras.Model`; its weights are the initialisation θ, and `fit` changes them.
        inner_learning_rate: Rate of plain gradient descent, where there is no `inner_optimizer`.
        inner_steps: K, in training.
        outer_learning_rate: ε in the first step, positive.
        annealing_steps: Let ε fall to 0 linearly over this many outer steps; `None` keeps it.
        inner_batch_size: Examples of the support set in an inner step, drawn without repetition
            until all were seen; `None`, or more than there are, takes all of them.
        seed: Of the order in which they are drawn, which is a function of this, the outer step
            and the task (XLA draws another than plain TensorFlow); evaluation has an order that
            never changes.
        **kwargs: `evaluation_steps`, `inner_optimizer`, `inner_clip_norm`, `adapt_layers`,
            `batch_norm`, `task_axis`, `task_chunk`, `name` and `dtype`, as in `MAML`. Published is
            `inner_optimizer=tfmeta.inner_optimizers.Adam(0.001, beta_1=0.0)`.

    Raises:
        TypeError: If a number is no number.
        ValueError: If a value is out of range, or the model has per-step batch normalisation.

    Example:
        ```python
        learner = tfmeta.Reptile(model, inner_steps=5, inner_batch_size=10, evaluation_steps=50,
                                 inner_optimizer=tfmeta.inner_optimizers.Adam(1e-3, beta_1=0.0),
                                 annealing_steps=100_000)
        learner.compile(keras.optimizers.SGD(1.0),
                        keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        ```
    """

    one_task = "the slots of its inner optimizer go from one task to the next"

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 5,
        *,
        outer_learning_rate: float = 1.0,
        annealing_steps: int | None = None,
        inner_batch_size: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, inner_learning_rate, inner_steps, **kwargs)
        check_positive("outer_learning_rate", outer_learning_rate)
        check_count("seed", seed, least=0)
        for name, value in (
            ("annealing_steps", annealing_steps),
            ("inner_batch_size", inner_batch_size),
        ):
            if value is not None:
                check_count(name, value)
        self.outer_learning_rate = outer_learning_rate
        self.annealing_steps = annealing_steps
        self.inner_batch_size = inner_batch_size
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and the slots of the inner optimizer."""
        super().build(input_shape)
        with tf.init_scope():
            shapes = [shape for _, shape in self.adapted_weights()]
            empty = self.rule.init([tf.zeros(shape, self.variable_dtype) for shape in shapes])
            start = [np.asarray(slot) for slot in empty]
        self.slots = [
            self.add_weight(
                shape=slot.shape,
                dtype=slot.dtype.name,
                initializer=Filled(slot),
                trainable=False,
                name=f"slot_{i}",
            )
            for i, slot in enumerate(start)
        ]

    def own_statistics(self) -> list[Any]:
        """Return the moving statistics, where they are kept, and the inner optimizer's slots."""
        slots = [slot for slot in self.slots if keras.backend.is_float_dtype(slot.dtype)]
        return [*super().own_statistics(), *slots]

    def path(self, support_x: Any, support_y: Any, *, training: bool, **how: Any) -> Path:
        """Run the inner loop, without an outer gradient, and keep the slots it ends with."""
        detached = Detached([tf.convert_to_tensor(slot) for slot in self.slots])
        path = super().path(
            support_x, support_y, training=training, **{"differentiation": detached, **how}
        )
        if training:
            for variable, value in zip(self.slots, path.slots or [], strict=True):
                variable.assign(value)
        return path

    def inner_step(
        self, support_x: Any, support_y: Any, weights: FastWeights, *, training: bool
    ) -> InnerStep:
        """Return how the inner loop takes a step, on some of the support set or all of it."""
        whole = super().inner_step(support_x, support_y, weights, training=training)
        examples, size = tf.nest.flatten(support_x)[0].shape[0], self.inner_batch_size
        if size is None or (examples is not None and examples <= size):
            return whole
        rows = self._rows(tf.nest.flatten(support_x)[0], training)
        if examples is None:
            size = tf.minimum(size, tf.shape(tf.nest.flatten(support_x)[0])[0])

        def support_loss(adapted: Params, state: Params, k: Any) -> Any:
            drawn = rows[k * size : (k + 1) * size]
            x, y = tf.nest.map_structure(
                lambda part: tf.gather(part, drawn), (support_x, support_y)
            )
            step = super(Reptile, self).inner_step(x, y, weights, training=training)
            return step.support_loss(adapted, state, k)

        return whole._replace(support_loss=support_loss)

    def task_gradients(self, x: Inputs, y: Any, sample_weight: Any = None, **options: Any) -> Any:
        """Return the query loss of one task, `ε (θ − φ)`, and the query predictions."""
        path = self.path(x["support_x"], x["support_y"], training=True)
        # After the path, on which layers may have written to θ.
        start, _ = self.start(x["support_x"], x["support_y"], training=True)
        state = self.task_state(path.params[-1], path.states[-1], x["support_x"], training=True)
        called = self.query(state, x["query_x"], training=True)
        self.keep(called.state)
        rate = tf.cast(self.outer_rate(), self.variable_dtype)
        gradients = [
            self.optimizer.scale_loss(rate * (before - after))
            for before, after in zip(start.model, path.params[-1].model, strict=True)
        ]
        return self.query_loss(x, y, called, sample_weight), gradients, called.outputs

    def outer_rate(self) -> Any:
        """Return ε in the current outer step."""
        if self.annealing_steps is None:
            return self.outer_learning_rate
        done = tf.cast(self.optimizer.iterations, self.variable_dtype) / self.annealing_steps
        return self.outer_learning_rate * tf.maximum(1 - done, 0)

    def sums_over_tasks(self) -> bool:
        super().sums_over_tasks()  # checks the loss
        return False

    def _rows(self, examples: Any, training: bool) -> Any:
        """Return the numbers of the examples of all inner steps, one pass after another."""
        assert self.inner_batch_size is not None
        n = tf.shape(examples)[0]
        passes = -(-self.steps(training) * self.inner_batch_size // n)
        seed = tf.constant([-1, 0], tf.int64)
        if training:
            tasks = current_tasks()
            task = 0 if tasks is None else tasks.numbers
            number = self.seed * 2**20 + tf.cast(task, tf.int64)
            seed = tf.stack([tf.cast(self.optimizer.iterations, tf.int64), number])
        return tf.reshape(tf.argsort(tf.random.stateless_uniform([passes, n], seed), axis=1), [-1])
