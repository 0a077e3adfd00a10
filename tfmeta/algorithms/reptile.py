"""Reptile.

Nichol, Achiam and Schulman, *On First-Order Meta-Learning Algorithms*, 2018.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.algorithms.slots import slots_of
from tfmeta.checks import check_count, check_positive
from tfmeta.differentiation import Detached
from tfmeta.fast_weights import FastWeights
from tfmeta.inner_batches import OF_EVALUATION, in_batches, seed_of_task
from tfmeta.inner_loop import InnerStep, Path
from tfmeta.types import Inputs, Nest, Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class Reptile(GradientBased):
    """Move the initialisation towards the adapted weights, `θ ← θ + ε · mean_i(φ_i − θ)`.

    `φ_i` is what K inner steps on task i's support set make of θ. The query set is not trained
    on, only scored. `ε (θ − mean φ)` is handed to the optimizer given to `compile` as a gradient:
    `keras.optimizers.SGD(1.0)` gives the published rule.

    The slots of the inner optimizer are weights of the learner: each task of a meta-batch begins
    with those that the task before it left, and evaluation begins with the training's and leaves
    them as they are, as published. Batch normalisation is transductive by default;
    `batch_norm="with_support"` is the paper's other one: each query alone with the support set.

    Args:
        model: Any `keras.Model`; its weights are the initialisation θ, and `fit` changes them.
        inner_learning_rate: Rate of plain gradient descent, where there is no `inner_optimizer`.
        inner_steps: K, in training.
        outer_learning_rate: ε in the first step, positive.
        annealing_steps: Let ε fall to 0 linearly over this many outer steps; `None` keeps it.
        inner_batch_size: Examples of the support set in an inner step, drawn without repetition
            until all were seen; `None`, or more than there are, takes all of them.
        seed: Of the order in which they are drawn, a function of this, the outer step and the task
            (XLA draws another than plain TensorFlow); that of evaluation never changes.
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
        if annealing_steps is not None:
            check_count("annealing_steps", annealing_steps)
        if inner_batch_size is not None:
            check_count("inner_batch_size", inner_batch_size)
        self.outer_learning_rate = outer_learning_rate
        self.annealing_steps = annealing_steps
        self.inner_batch_size = inner_batch_size
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        """Build the wrapped model, and the slots of the inner optimizer."""
        super().build(input_shape)
        self.slots = slots_of(self)

    def own_statistics(self) -> list[keras.Variable]:
        """Return the moving statistics, where they are kept, and the inner optimizer's slots."""
        slots = [slot for slot in self.slots if keras.backend.is_float_dtype(slot.dtype)]
        return [*super().own_statistics(), *slots]

    @property
    def differentiation(self) -> Detached:
        """No outer gradient goes through the inner steps, which begin with the learner's slots."""
        return Detached([tf.convert_to_tensor(slot) for slot in self.slots])

    def path(self, *args: Any, training: bool, **kwargs: Any) -> Path:
        """Run the inner loop, and keep the slots that training ends with."""
        path = super().path(*args, training=training, **kwargs)
        for variable, value in zip(self.slots, path.slots or [], strict=True) if training else []:
            variable.assign(value)
        return path

    def inner_step(
        self, support_x: Nest, support_y: Nest, weights: FastWeights, *, training: bool
    ) -> InnerStep:
        """Return how the inner loop takes a step, on some of the support set or all of it."""
        step = functools.partial(super().inner_step, weights=weights, training=training)
        size, steps = self.inner_batch_size, self.steps(training)
        return in_batches(step, support_x, support_y, size, steps, self.order(training))

    def order(self, training: bool) -> Tensor:
        """Return the seed `[2]` of the order in which examples are drawn."""
        return seed_of_task(self.seed, self.optimizer.iterations) if training else OF_EVALUATION

    def task_gradients(self, x: Inputs, y: Nest, sample_weight: Nest = None, **options: Any) -> Any:
        """Return the query loss of one task, `ε (θ − φ)`, and the query predictions."""
        path = self.path(x["support_x"], x["support_y"], training=True)
        # After the path, on which layers may have written to θ.
        start, _ = self.start(x["support_x"], x["support_y"], training=True)
        state = self.task_state(path.params[-1], path.states[-1], x["support_x"], training=True)
        called = self.query(state, x["query_x"], training=True)
        self.keep(called.state)
        rate = tf.cast(self.outer_rate(), self.variable_dtype)
        ends = zip(start.model, path.params[-1].model, strict=True)
        gradients = [self.optimizer.scale_loss(rate * (before - end)) for before, end in ends]
        return self.query_loss(x, y, called, sample_weight), gradients, called.outputs

    def outer_rate(self) -> Tensor:
        """Return ε in the current outer step."""
        if self.annealing_steps is None:
            return self.outer_learning_rate
        done = tf.cast(self.optimizer.iterations, self.variable_dtype) / self.annealing_steps
        return self.outer_learning_rate * tf.maximum(1 - done, 0)

    def sums_over_tasks(self) -> bool:
        super().sums_over_tasks()  # checks the loss
        return False
