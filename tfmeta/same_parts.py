"""A learner with an inner loop, made of another one's parts, that adapts otherwise.

It has the same weights, and what it computes leaves no trace in the other one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import tensorflow as tf

from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.functional import Called
from tfmeta.inner_loop import Path
from tfmeta.types import Nest, Tensor


def with_same_parts(learner: GradientBased, **instead: Any) -> GradientBased:
    """Return a learner with the same parts, and other attributes or methods.

    Args:
        learner: A learner.
        **instead: By name; methods without `self`.
    """
    same = cast(GradientBased, learner.as_it_is())
    # Keras would track what is set in the usual way, in what both have in common.
    same.__dict__.update(_predict_here=None, **instead)
    return same


def unadapted(learner: GradientBased) -> GradientBased:
    """Return a learner that stays where a task starts: it takes no inner step."""

    def forward(*args: Any, step: Any = -1, **kwargs: Any) -> Called:
        # What an inner step has of its own, that is of the first one.
        del step
        return type(same).forward(same, *args, **{**kwargs, "step": 0})

    def path(support_x: Nest, support_y: Nest, *, training: bool, **kwargs: Any) -> Path:
        del kwargs
        weights, state = same.start(support_x, support_y, training=training)
        return Path([weights], [state], 0)

    same = with_same_parts(learner, forward=forward, path=path)
    return same


def at_rate(learner: GradientBased, rate: Tensor, steps: int) -> GradientBased:
    """Return a learner that takes so many steps, in training and elsewhere, all of one rate.

    Args:
        learner: A learner.
        rate: A scalar, as a variable to be changed from one prediction to the next.
        steps: How many inner steps.
    """
    number: Callable[[bool], int] = lambda training: steps  # noqa: E731
    rates: Callable[[Tensor], list[Tensor]] = lambda k: [tf.identity(rate)] * sum(learner.chosen())  # noqa: E731
    # Each rate is to be judged by all of the steps.
    return with_same_parts(learner, steps=number, rates_of_step=rates, tolerance=None)
