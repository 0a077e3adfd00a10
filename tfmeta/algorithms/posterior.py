"""`PosteriorMAML`: what learners share whose predictions are means over draws of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.differentiation import Unrolled
from tfmeta.fast_weights import FastWeights
from tfmeta.layers import particle_mean
from tfmeta.meta_learner import MetaLearner
from tfmeta.task_map import map_tasks, side_by_side
from tfmeta.types import Inputs, Nest, Tensor


class PosteriorMAML(GradientBased):
    """A learner like MAML that ends in several draws of the weights from a posterior.

    A learner of this kind supplies `by_draw`.

    Args:
        model: Any `keras.Model`.
        inner_learning_rate: As in `MAML`.
        inner_steps: As in `MAML`.
        first_order: As in `MAML`.
        recompute: As in `MAML`.
        from_logits: Whether outputs are logits of classes; by default as the loss has it.
        **kwargs: Those of `GradientBased`.
    """

    def __init__(
        self,
        model: keras.Model,
        inner_learning_rate: float | Sequence[float] = 0.01,
        inner_steps: int = 1,
        first_order: bool = False,
        *,
        recompute: bool = False,
        from_logits: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, inner_learning_rate, inner_steps, **kwargs)
        self.first_order = first_order
        self.recompute = recompute
        self.from_logits = from_logits
        self._moments_function: Any = None

    @property
    def differentiation(self) -> Unrolled:
        """How the outer gradient goes through the inner steps."""
        return Unrolled(self.first_order, self.recompute)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Choose optimizer, loss and metrics as `keras.Model.compile` does."""
        super().compile(*args, **kwargs)
        self._moments_function = None  # the loss may say that outputs are logits

    def by_draw(self, outputs: Tensor) -> Nest:
        """Return the outputs of `forward` as `[tasks, draws, queries, outputs]`."""
        raise NotImplementedError

    def of_tasks(self, values: Tensor) -> Nest:
        """Return `[tasks, ...]` as it is, where there are several; of one task without the axis."""
        return values if side_by_side() else tf.nest.map_structure(lambda x: x[0], values)

    def mean(self, outputs: Tensor) -> Any:
        """Return the mean over draws of the outputs of `forward`."""
        return self.of_tasks(particle_mean(self.by_draw(outputs), self.takes_logits()))

    def predict_task(self, state: Nest, query_x: Nest, *, training: bool) -> Nest:
        """Return the mean over draws of the predictions, `[queries, outputs]`."""
        return self.mean(super().predict_task(state, query_x, training=training))

    def test_task(self, x: Inputs, y: Nest, sample_weight: Nest = None) -> tuple[Tensor, Nest]:
        """Return the loss of the mean over draws of one task's predictions, and these."""
        state = self.adapt_task(x["support_x"], x["support_y"], training=False)
        called = self.query(state, x["query_x"], training=False)
        predictions = self.mean(called.outputs)
        loss = MetaLearner.losses_of_tasks(self, y, predictions, sample_weight, x=x, training=False)
        return loss + sum(tf.cast(v, loss.dtype) for v in called.activity_losses), predictions

    def moments(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Adapt to each task; return mean and variance over draws of the predictions.

        Args:
            inputs: As for `call`, without masks.

        Returns:
            `(mean, variance)`, `[tasks, queries, outputs]` each: of class probabilities where the
            loss takes logits, of the outputs otherwise. The variance is that between draws,
            without any noise of the observations.
        """

        def one_task(task: Inputs) -> Any:
            state = self.adapt_task(task["support_x"], task["support_y"], training=False)
            return self.moments_of_task(state, task["query_x"])

        self.check_inputs(inputs)
        if self._moments_function is None:
            self._moments_function = tf.function(
                lambda x: map_tasks(one_task, x, **self._execution(x)),
                autograph=False,
            )
        mean, variance = self._moments_function(tf.nest.map_structure(tf.convert_to_tensor, inputs))
        return mean, variance

    def moments_of_task(self, state: Nest, query_x: Nest) -> Nest:
        """Return mean and variance over draws of the predictions of one task, or of several."""
        outputs = self.by_draw(self.query(state, query_x, training=False).outputs)
        if self.takes_logits():
            outputs = tf.nn.softmax(outputs)
        return self.of_tasks(tf.nn.moments(outputs, axes=1))

    def named_state(self, state: Nest) -> dict[str, Tensor]:
        """Return all weights of the draws and the state of the model, by name."""
        weights, model_state = state
        every = [*weights.model, *weights.head, *model_state]
        return dict(zip(self.names(), every, strict=True))

    def state_of(self, tensors: dict[str, Tensor], structure: Nest) -> Nest:
        """Return the state for `predict_task`: the reverse of `named_state`."""
        every = [tensors[name] for name in self.names()]
        model = len(structure[0].model)
        end = model + len(structure[0].head)
        return FastWeights(every[:model], every[model:end]), every[end:]

    def as_it_is(self) -> PosteriorMAML:
        """Return this learner as it is now, which remembers without a loss what outputs are."""
        same: PosteriorMAML = super().as_it_is()
        same.from_logits = self.takes_logits()
        return same

    def takes_logits(self) -> bool:
        """Return whether predictions are logits of classes, whose probabilities are averaged."""
        if self.from_logits is not None:
            return self.from_logits
        kinds = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy)
        return isinstance(self.loss, kinds) and bool(self.loss.get_config()["from_logits"])
