"""MAML++: MAML with what makes its training stable.

Antoniou, Edwards and Storkey, *How to train your MAML*, ICLR 2019.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tfmeta.algorithms.maml import MAML
from tfmeta.algorithms.rates import LearnedRates
from tfmeta.checks import check_at_least_zero, check_count, check_positive
from tfmeta.differentiation import Unrolled
from tfmeta.inner_loop import Path
from tfmeta.layers import per_step_batch_norm as with_per_step_batch_norm
from tfmeta.task_map import current_tasks
from tfmeta.types import Inputs, Nest, Tensor

MultiStepLoss = Literal["annealed", "discounted"]


@keras.saving.register_keras_serializable(package="tfmeta")
class MAMLPlusPlus(MAML):
    """MAML with a loss at each inner step, rates and batch normalisation of its own for each.

    Every part is an argument and can be used alone; with all of them off this is MAML. On by
    default are those that need no knowledge of the training: multi-step loss, learned rates,
    per-step batch normalisation.

    Annealing follows `epoch`, a weight of the learner that counts the epochs trained: `fit` moves
    it on, files hold it, and whoever trains in another way assigns to it.

    Args:
        model: Any `keras.Model`; with `per_step_batch_norm` the learner trains a copy of it.
        inner_learning_rate: α, where the learned rates start.
        inner_steps: K, in training.
        first_order: As in `MAML`, for all epochs.
        multi_step_loss: The outer loss as a sum over the inner steps, `Σ_i w_i L_Q(φ_{i+1})`.
            `"annealed"`, with epoch e of E: `w_i = max(1/K − e/(K·E), 0.03/K)` for i < K−1 and
            `w_{K−1} = min(1/K + e(K−1)/(K·E), 1 − 0.03(K−1)/K)`, from e = E on the last step
            only. `"discounted"`: `w_i = γ^{i+1}` always. `None`: the last step only.
        multi_step_epochs: E.
        discount: γ, positive.
        first_order_epochs: Derivative-order annealing: this many epochs first order, then second.
        learned_rates: As in `MAML`; by default K rates for each tensor.
        per_step_batch_norm: Exchange the model's batch normalisation by one with γ, β and running
            statistics for each inner step; see `tfmeta.layers.per_step_batch_norm`. γ and β are
            left out of the inner loop. The stored statistics are used with `batch_norm="running"`
            only, as the authors' code never uses them.
        cosine_epochs: Let the optimizer's rate fall from its own to `final_learning_rate`, epoch
            by epoch along half a cosine, over this many epochs.
        final_learning_rate: Where it falls to, at least 0.
        outer_clip_norm: Scale the outer gradient down to this norm over all weights, if it is
            longer; Keras's optimizer does it.
        tolerance: Adaptive number of inner steps: a task stops when its support loss has not
            fallen by this much, at least 0, since the step before. The metric `inner_steps` is
            the mean number of steps used.
        **kwargs: Those of `MAML`.

    Raises:
        TypeError: If a number is no number.
        ValueError: If a value is out of range, or with per-step batch normalisation
            `evaluation_steps` is not `inner_steps`, as no step has weights for another.

    Example:
        ```python
        learner = tfmeta.MAMLPlusPlus(model, inner_learning_rate=0.1, cosine_epochs=100)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.fit(sampler.dataset(meta_batch_size=8), steps_per_epoch=500, epochs=100)
        ```
    """

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.1,
        inner_steps: int = 5,
        first_order: bool = False,
        *,
        multi_step_loss: MultiStepLoss | None = "annealed",
        multi_step_epochs: int = 10,
        discount: float = 0.9,
        first_order_epochs: int = 0,
        learned_rates: LearnedRates | None = "tensor_step",
        per_step_batch_norm: bool = True,
        cosine_epochs: int | None = None,
        final_learning_rate: float = 1e-5,
        outer_clip_norm: float | None = None,
        tolerance: float | None = None,
        **kwargs: Any,
    ) -> None:
        if per_step_batch_norm and isinstance(model, keras.Model):
            model = with_per_step_batch_norm(model, inner_steps)
        super().__init__(
            model,
            inner_learning_rate,
            inner_steps,
            first_order,
            learned_rates=learned_rates,
            **kwargs,
        )
        if multi_step_loss not in (None, "annealed", "discounted"):
            raise ValueError(
                "`multi_step_loss` must be 'annealed', 'discounted' or None. "
                f"Received: multi_step_loss={multi_step_loss!r}"
            )
        check_count("multi_step_epochs", multi_step_epochs)
        check_positive("discount", discount)
        check_count("first_order_epochs", first_order_epochs, least=0)
        if cosine_epochs is not None:
            check_count("cosine_epochs", cosine_epochs)
        check_at_least_zero("final_learning_rate", final_learning_rate)
        if outer_clip_norm is not None:
            check_positive("outer_clip_norm", outer_clip_norm)
        if tolerance is not None:
            check_at_least_zero("tolerance", tolerance)
            self.steps_used = keras.metrics.Mean(name="inner_steps")
        self.multi_step_loss = multi_step_loss
        self.scored_steps = 1 if multi_step_loss is None else inner_steps
        self.multi_step_epochs = multi_step_epochs
        self.discount = discount
        self.first_order_epochs = first_order_epochs
        self.per_step_batch_norm = per_step_batch_norm
        self.cosine_epochs = cosine_epochs
        self.final_learning_rate = final_learning_rate
        self.outer_clip_norm = outer_clip_norm
        self.tolerance = tolerance
        self.epoch = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False, name="epoch"
        )
        # The optimizer's rate in the first epoch; 0 before.
        self.initial_rate = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="initial_rate"
        )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Choose optimizer, loss and metrics as `keras.Model.compile` does."""
        super().compile(*args, **kwargs)
        self.initial_rate.assign(0.0)
        optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if self.cosine_epochs and not hasattr(self.optimizer.learning_rate, "assign"):
            raise ValueError(
                "`optimizer` must have a number as learning rate for `cosine_epochs` to change. "
                f"Received: learning_rate={optimizer.get_config()['learning_rate']}"
            )
        if self.outer_clip_norm is not None:
            others = (optimizer.clipnorm, optimizer.clipvalue)
            if others != (None, None):
                raise ValueError(
                    "`outer_clip_norm` must be None for an optimizer that clips by itself. "
                    f"Received: clipnorm={others[0]}, clipvalue={others[1]}"
                )
            optimizer.global_clipnorm = self.outer_clip_norm

    def fit(self, x: Any = None, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """Train on episodes, counting epochs."""
        others = [] if callbacks is None else keras.tree.flatten(callbacks)
        # First, so that what is saved at the end of an epoch has it counted.
        return super().fit(x, *args, callbacks=[_CountEpochs(), *others], **kwargs)

    def task_gradients(
        self, x: Inputs, y: Nest, sample_weight: Nest = None, **options: Any
    ) -> tuple[Tensor, list[Tensor], Nest]:
        """Return loss, gradients and predictions of one task, as the epoch demands them."""
        if options:
            return super().task_gradients(x, y, sample_weight, **options)
        starts = {0, self.first_order_epochs}
        if self.multi_step_loss == "annealed":
            starts.add(self.multi_step_epochs)
        # Each phase of the training is a branch of one graph, so that nothing is traced again.
        phases = [
            {
                "first_order": self.first_order or start < self.first_order_epochs,
                "multi_step": self.multi_step_loss == "discounted"
                or (self.multi_step_loss == "annealed" and start < self.multi_step_epochs),
            }
            for start in sorted(starts)
        ]
        epoch = tf.convert_to_tensor(self.epoch)
        phase = sum(tf.cast(epoch >= start, tf.int32) for start in sorted(starts)[1:])
        branches = [
            lambda options=options: self.task_gradients(x, y, sample_weight, **options)
            for options in phases
        ]
        return branches[0]() if len(branches) == 1 else tf.switch_case(phase, branches)

    def task_loss(  # type: ignore[override]
        self,
        x: Inputs,
        y: Nest,
        sample_weight: Nest = None,
        *,
        first_order: bool | None = None,
        multi_step: bool = False,
    ) -> tuple[Tensor, Nest]:
        """Return the outer loss of one task, and the query predictions at φ_K."""
        how = self.differentiation
        if first_order is not None:
            how = Unrolled(first_order, self.recompute)
        if not multi_step:
            return super().task_loss(x, y, sample_weight, differentiation=how)
        support_x = x["support_x"]
        path = self.path(support_x, x["support_y"], training=True, differentiation=how, every=True)
        total: Any = 0.0
        for i, weight in enumerate(tf.unstack(self.step_weights())):
            state = self.task_state(
                path.params[i], path.states[i], support_x, training=True, step=i
            )
            called = self.query(state, x["query_x"], training=True, step=i)
            # The metrics that Keras has of the losses of several outputs are for φ_K.
            theta = [tf.convert_to_tensor(v) for v in self.model.trainable_variables]
            last = i == self.inner_steps - 1
            with contextlib.nullcontext() if last else self.losses_at(theta):
                total += weight * self.query_loss(x, y, called, sample_weight)
        joint, state = self.joint_loss(x, y, called.state, sample_weight)
        self.keep(state)
        return total + joint, called.outputs

    def step_weights(self) -> Tensor:
        """Return the weights `[K]` of the inner steps' query losses in the current epoch."""
        k = self.inner_steps
        dtype = self.variable_dtype
        if self.multi_step_loss == "discounted":
            return tf.constant([self.discount ** (i + 1) for i in range(k)], dtype)
        last = tf.one_hot(k - 1, k, dtype=dtype)
        if self.multi_step_loss is None:
            return last
        epoch = tf.convert_to_tensor(self.epoch)
        share = tf.cast(epoch, dtype) / (k * self.multi_step_epochs)
        others = tf.maximum(1 / k - share, 0.03 / k)
        final = tf.minimum(1 / k + share * (k - 1), 1 - 0.03 * (k - 1) / k)
        annealed = last * final + (1 - last) * others
        return tf.where(epoch < self.multi_step_epochs, annealed, last)

    def path(self, *args: Any, **kwargs: Any) -> Path:
        """Run the inner loop, and count the steps that it used."""
        path = super().path(*args, **kwargs)
        tasks = current_tasks()
        # Outside of a meta-batch nobody asks for the metric, and an export must not count.
        if self.tolerance is not None and tasks is not None:
            self.steps_used.update_state(path.steps_used, tasks.weights)
        return path

    def chunks_at_once(self) -> int:
        """Return one where steps are counted: a metric's sum goes from one chunk to the next."""
        return super().chunks_at_once() if self.tolerance is None else 1

    def outer_rate(self) -> float:
        """Return the optimizer's rate in the current epoch, by `cosine_epochs`."""
        assert self.cosine_epochs is not None
        if float(self.initial_rate.numpy()) == 0.0:
            self.initial_rate.assign(self.optimizer.learning_rate)
        done = min(int(self.epoch.numpy()) / self.cosine_epochs, 1.0)
        height = float(self.initial_rate.numpy()) - self.final_learning_rate
        return self.final_learning_rate + height * (1 + math.cos(math.pi * done)) / 2


class _CountEpochs(keras.callbacks.Callback):
    """Count the epochs trained, and let the outer rate follow them."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        # A run that goes on elsewhere than the learner knows says so by `initial_epoch`.
        self.model.epoch.assign(max(int(self.model.epoch.numpy()), epoch))
        if self.model.cosine_epochs is not None:
            self.model.optimizer.learning_rate = self.model.outer_rate()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.epoch.assign_add(1)
