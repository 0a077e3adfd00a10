"""The inner loop: the only inner `GradientTape` of the package."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfmeta.inner_optimizers import UpdateRule
from tfmeta.types import Params


def inner_loop(
    support_loss: Callable[[Params, Params], tuple[Any, Params]],
    params: Params,
    state: Params,
    *,
    rule: UpdateRule,
    steps: int,
    first_order: bool,
    names: Sequence[str],
    clip_norm: float | None = None,
) -> tuple[Params, Params]:
    """Take `steps` gradient steps on the support loss, differentiably.

    `φ_0 = θ`, `φ_{k+1} = φ_k − α ∇L_S(φ_k)`. With `first_order` the inner gradient is a constant
    for an outer tape, so that `∂φ_K/∂θ = I`.

    Args:
        support_loss: `(params, state) -> (loss, new_state)`.
        params: Tensors, the initialisation θ.
        state: The model's non-trainable state; each step passes its new one to the next.
        rule: The update rule.
        steps: How many steps, K.
        first_order: Whether to stop the gradient at the inner gradient.
        names: Names of `params`, for the warning about those that the loss does not reach.
        clip_norm: Scale each step's gradient down to this norm over all weights, if it is longer.

    Returns:
        `(φ_K, state)`.
    """
    slots = rule.init(params)
    for _ in range(steps):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(params)
            loss, state = support_loss(params, state)
        gradients = tape.gradient(loss, params)
        _warn_of_unreached(gradients, names)
        gradients = [
            tf.zeros_like(p) if g is None else tf.convert_to_tensor(g)
            for g, p in zip(gradients, params, strict=True)
        ]
        if clip_norm is not None:
            gradients = _clipped(gradients, clip_norm)
        if first_order:
            gradients = [tf.stop_gradient(g) for g in gradients]
        params, slots = rule.update(gradients, slots, params)
    return params, state


def _clipped(gradients: Params, norm: float) -> Params:
    # `tf.clip_by_global_norm` has a root of the square in it, whose second derivative at 0 is NaN.
    square = sum(tf.reduce_sum(g**2) for g in gradients)
    scale = norm * tf.math.rsqrt(tf.maximum(square, norm**2))
    return [scale * g for g in gradients]


def _warn_of_unreached(gradients: Params, names: Sequence[str]) -> None:
    unreached = [n for g, n in zip(gradients, names, strict=True) if g is None]
    if unreached:
        # Python's own once-per-location filter keeps this to one message for each set of names.
        warnings.warn(
            f"The support loss does not reach these weights, which the inner loop therefore "
            f"leaves as they are: {', '.join(unreached)}",
            stacklevel=3,
        )
