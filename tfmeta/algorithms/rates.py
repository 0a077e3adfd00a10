"""The step sizes of the inner loop: one number, one for each step, or learned."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfmeta.types import Rates, Tensor

LearnedRates = Literal["scalar", "step", "tensor", "tensor_step", "weight"]
LEARNED_RATES = ("scalar", "step", "tensor", "tensor_step", "weight")

Given = float | tuple[float, ...]


def check_enough(
    given: Given, learned: LearnedRates | None, steps: int, evaluation_steps: int | None
) -> None:
    """Check that there is a rate for each inner step.

    Raises:
        ValueError: If there are fewer rates than steps, or several where one is learnt from.
    """
    longest = max(steps, evaluation_steps or 1)
    by_step = learned in ("step", "tensor_step")
    if isinstance(given, tuple) and learned is not None and not by_step:
        raise ValueError(
            "The inner learning rate must be one number for "
            f"learned_rates={learned!r}. Received: {len(given)} rates"
        )
    rates = len(given) if isinstance(given, tuple) else longest
    rates = min(rates, steps) if by_step else rates
    if rates < longest:
        raise ValueError(
            "`evaluation_steps` and `inner_steps` must be at most the number of inner rates, "
            f"which differ by step. Received: {longest} steps, {rates} rates"
        )


def given_rate(given: Given, k: Tensor, dtype: str) -> Any:
    """Return the rate of step k, a number or a tensor as k is."""
    if not isinstance(given, tuple):
        return given
    return given[k] if isinstance(k, int) else tf.gather(tf.constant(given, dtype), k)


def weights_of_rates(
    learner: Any, learned: LearnedRates, weights: list[tuple[int, ...]]
) -> list[Any]:
    """Return learned rates for weights of these shapes, as new weights of a learner.

    They start at its inner learning rate. A single one is for all of the weights.
    """
    steps = learner.inner_steps
    each = (steps,) if learned in ("step", "tensor_step") else ()
    if learned == "weight":
        shapes = weights
    else:
        shapes = [each for _ in weights] if learned in ("tensor", "tensor_step") else [each]
    initial = Filled(learner.rule.learning_rate, steps)
    return [
        learner.add_weight(shape=shape, initializer=initial, name=f"rate_{i}")
        for i, shape in enumerate(shapes)
    ]


def learned_at(
    weights: list[Any], learned: LearnedRates, k: Tensor, number: int, axes: list[int] | None
) -> Rates:
    """Return the learned rates of step k, one for each tensor.

    Args:
        weights: What `weights_of_rates` returned.
        learned: Which rates there are.
        k: The step, a number or a scalar tensor.
        number: How many tensors there are.
        axes: Which axis of each is that of tasks; `None` for a single task.
    """
    rates = [tf.convert_to_tensor(rate) for rate in weights]
    if "step" in learned:
        rates = [rate[k] for rate in rates]
    if learned == "weight" and axes is not None:
        rates = [
            tf.expand_dims(rate, axis) if rate.shape.rank else rate
            for rate, axis in zip(rates, axes, strict=True)
        ]
    return rates if len(rates) == number else rates * number


class Filled(keras.initializers.Initializer):
    """Fill a weight with a number, or with one for each step."""

    def __init__(self, value: Any, steps: int | None = None) -> None:
        self.value = np.asarray(value)
        if self.value.ndim and steps is not None:
            self.value = self.value[:steps]

    def __call__(self, shape: Any, dtype: Any = None, **kwargs: Any) -> Any:
        """Return a tensor of this shape."""
        return keras.ops.broadcast_to(keras.ops.cast(self.value, dtype), shape)
