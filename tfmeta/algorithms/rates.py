"""The step sizes of the inner loop: one number, one for each step, or learned."""

from __future__ import annotations

from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

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


def given_rate(given: Given, k: Any, dtype: str) -> Any:
    """Return the rate of step k, a number or a tensor as k is."""
    if not isinstance(given, tuple):
        return given
    return given[k] if isinstance(k, int) else tf.gather(tf.constant(given, dtype), k)


def shapes_of_rates(
    learned: LearnedRates, steps: int, weights: list[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Return the shapes of learned rates for weights of these shapes; a single one is for all."""
    each = (steps,) if learned in ("step", "tensor_step") else ()
    if learned == "weight":
        return weights
    return [each for _ in weights] if learned in ("tensor", "tensor_step") else [each]


class Filled(keras.initializers.Initializer):
    """Fill a weight with a number, or with one for each step."""

    def __init__(self, value: Any, steps: int | None = None) -> None:
        self.value = np.asarray(value)
        if self.value.ndim and steps is not None:
            self.value = self.value[:steps]

    def __call__(self, shape: Any, dtype: Any = None, **kwargs: Any) -> Any:
        """Return a tensor of this shape."""
        return keras.ops.broadcast_to(keras.ops.cast(self.value, dtype), shape)
