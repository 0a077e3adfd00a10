"""MAML that learns how far to go for each weight.

Li, Zhou, Chen and Li, *Meta-SGD: Learning to Learn Quickly for Few-Shot Learning*, 2017.
"""

from __future__ import annotations

from typing import Any

import keras

from tfmeta.algorithms.maml import MAML


def MetaSGD(  # noqa: N802
    model: keras.Model, inner_learning_rate: float = 0.01, inner_steps: int = 1, **kwargs: Any
) -> MAML:
    """Return Meta-SGD: MAML that learns a rate for each single weight, `φ = θ − α ∘ ∇L_S(θ)`.

    α has θ's shape, starts at `inner_learning_rate` everywhere (the paper draws it at random) and
    is trained by the outer loop. Arguments are those of `MAML` without `learned_rates`.

    Raises:
        TypeError: If `model` is not a Keras model, or a number is no number.
        ValueError: If a value is out of range.

    Example:
        >>> learner = tfmeta.MetaSGD(tfmeta.models.conv4((28, 28, 1), 5), inner_learning_rate=0.1)

    Reference:
        Li et al., 2017.
    """
    return MAML(model, inner_learning_rate, inner_steps, learned_rates="weight", **kwargs)
