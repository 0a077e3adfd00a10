"""MAML that adapts a part of the network only: ANIL its head, BOIL its body.

Raghu, Raghu, Bengio and Vinyals, *Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML*, ICLR 2020. Oh, Yoo, Kim and Yun, *BOIL: Towards Representation Change for
Few-shot Learning*, ICLR 2021.
"""

from __future__ import annotations

from typing import Any

import keras

from tfmeta.algorithms.maml import MAML


def ANIL(  # noqa: N802
    model: keras.Model, inner_learning_rate: float = 0.01, inner_steps: int = 1, **kwargs: Any
) -> MAML:
    """Return MAML whose inner loop changes the head only, the last layer with weights.

    The outer loop trains all weights, through the inner steps. Arguments are those of `MAML`
    without `adapt_layers`.

    Raises:
        ValueError: If `model` is not built, or has fewer than two layers with weights.

    Example:
        >>> learner = tfmeta.ANIL(tfmeta.models.conv4((28, 28, 1), 5), inner_learning_rate=0.1)

    Reference:
        Raghu et al., ICLR 2020.
    """
    return MAML(
        model, inner_learning_rate, inner_steps, adapt_layers=_weighted(model)[-1:], **kwargs
    )


def BOIL(  # noqa: N802
    model: keras.Model, inner_learning_rate: float = 0.01, inner_steps: int = 1, **kwargs: Any
) -> MAML:
    """Return MAML whose inner loop changes the body only: all layers but the last with weights.

    The outer loop trains all weights, through the inner steps. Arguments are those of `MAML`
    without `adapt_layers`.

    Raises:
        ValueError: If `model` is not built, or has fewer than two layers with weights.

    Example:
        >>> learner = tfmeta.BOIL(tfmeta.models.conv4((28, 28, 1), 5), inner_learning_rate=0.1)

    Reference:
        Oh et al., ICLR 2021.
    """
    return MAML(
        model, inner_learning_rate, inner_steps, adapt_layers=_weighted(model)[:-1], **kwargs
    )


def _weighted(model: keras.Model) -> list[str]:
    """Return the names of the layers with trainable weights."""
    names = [layer.name for layer in getattr(model, "layers", []) if layer.trainable_variables]
    if len(names) < 2:
        raise ValueError(
            "`model` must be built and have at least two layers with trainable weights, a body and "
            f"a head. Received: layers {names}"
        )
    return names
