"""The inner loop: the only inner `GradientTape` of the package."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmeta.inner_optimizers import UpdateRule
from tfmeta.task_map import current_task
from tfmeta.types import Params, Rates


class InnerStep(NamedTuple):
    """How one step of the inner loop is taken, `φ_{k+1} = φ_k − α_k ∇L_S(φ_k)` or as `rule` has it.

    Attributes:
        support_loss: `(params, state, k) -> (loss, new_state)`.
        rule: The update rule.
        rates: `k -> rates`, the step sizes of step k, one for each tensor.
        names: Names of the tensors, for the warning about those that the loss does not reach.
        first_order: Whether an outer tape sees the inner gradient as a constant, so that
            `∂φ_K/∂θ = I`.
        clip_norm: Scale each step's gradient down to this norm over all weights, if it is longer.
        loss_scale: A factor on the loss, taken off the gradient, that keeps half precision from
            losing small gradients.
    """

    support_loss: Callable[[Params, Params, Any], tuple[Any, Params]]
    rule: UpdateRule
    rates: Callable[[Any], Rates]
    names: Sequence[str]
    first_order: bool = False
    clip_norm: float | None = None
    loss_scale: float = 1.0

    def __call__(
        self, k: Any, params: Params, state: Params, slots: Params
    ) -> tuple[Any, Params, Params, Params]:
        """Take step k.

        Returns:
            `(loss at params, new params, new state, new slots)`.

        Raises:
            ValueError: If the support loss is NaN or infinite; in a graph, an
                `InvalidArgumentError`.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(params)
            loss, state = self.support_loss(params, state, k)
            scaled = loss * self.loss_scale
        with _must_be_finite(loss, k):
            gradients = tape.gradient(scaled, params)
        _warn_of_unreached(gradients, self.names)
        gradients = [
            tf.zeros_like(p) if g is None else tf.convert_to_tensor(g) / self.loss_scale
            for g, p in zip(gradients, params, strict=True)
        ]
        if self.clip_norm is not None:
            gradients = _clipped(gradients, self.clip_norm)
        if self.first_order:
            gradients = [tf.stop_gradient(g) for g in gradients]
        params, slots = self.rule.update(gradients, slots, params, self.rates(k))
        return loss, params, state, slots


class Path(NamedTuple):
    """What an inner loop went through.

    Attributes:
        params: φ_1 … φ_K.
        states: The model's non-trainable state behind each step.
        steps_used: How many steps changed the weights, a scalar of the weights' dtype.
    """

    params: list[Params]
    states: list[Params]
    steps_used: Any


def inner_path(
    step: InnerStep, params: Params, state: Params, steps: int, tolerance: float | None = None
) -> Path:
    """Take `steps` steps, differentiably, and return all of them.

    Args:
        step: How one is taken.
        params: Tensors, the initialisation θ.
        state: The model's non-trainable state; each step passes its new one to the next.
        steps: How many, K.
        tolerance: Stop when the support loss has not fallen by this much since the step before.
            The weights then stay; the steps behind are computed all the same, so that shapes are
            static.
    """
    slots = step.rule.init(params)
    path, states = [], []
    active = tf.constant(True)
    used = tf.zeros((), params[0].dtype)
    before = None
    for k in range(steps):
        loss, new, state, slots = step(k, params, state, slots)
        if tolerance is not None:
            if before is not None:
                active = tf.logical_and(active, before - loss >= tolerance)
            before = loss
            new = [tf.where(active, n, p) for n, p in zip(new, params, strict=True)]
        used += tf.cast(active, used.dtype)
        params = new
        path.append(params)
        states.append(state)
    return Path(path, states, used)


def inner_solution(
    step: InnerStep, params: Params, state: Params, slots: Params, steps: int
) -> tuple[Params, Params, Params]:
    """Take `steps` steps and return `(φ_K, state, slots)`, as constants for an outer tape.

    Memory does not grow with the number of steps.
    """

    def body(k: Any, params: Params, state: Params, slots: Params) -> Any:
        _, params, state, slots = step(k, params, state, slots)
        return k + 1, params, state, slots

    start = (tf.constant(0), *([tf.stop_gradient(x) for x in xs] for xs in (params, state, slots)))
    _, params, state, slots = tf.while_loop(lambda k, *_: k < steps, body, start)
    return tuple([tf.stop_gradient(x) for x in xs] for xs in (params, state, slots))  # type: ignore[return-value]


def _clipped(gradients: Params, norm: float) -> Params:
    # `tf.clip_by_global_norm` has a root of the square in it, whose second derivative at 0 is NaN.
    square = sum(tf.reduce_sum(g**2) for g in gradients)
    scale = norm * tf.math.rsqrt(tf.maximum(square, norm**2))
    return [scale * g for g in gradients]


def _must_be_finite(loss: Any, k: Any) -> Any:
    """Return a context in which operations run only if the loss is finite."""
    task = current_task()
    where = "" if task is None else " of task"
    text = (
        "The support loss must be finite; a smaller inner learning rate may help, or a smaller "
        "outer one. Received:"
    )
    if tf.executing_eagerly():
        if not np.isfinite(loss):
            number = "" if task is None else f" {int(task)}"
            raise ValueError(f"{text} {float(loss)} in inner step {int(k)}{where}{number}")
        return tf.control_dependencies([])
    data = [text, loss, "in inner step", k] + ([where[1:], task] if where else [])
    return tf.control_dependencies([tf.debugging.Assert(tf.math.is_finite(loss), data)])


def _warn_of_unreached(gradients: Params, names: Sequence[str]) -> None:
    unreached = [n for g, n in zip(gradients, names, strict=True) if g is None]
    if unreached:
        # Python's own once-per-location filter keeps this to one message for each set of names.
        warnings.warn(
            f"The support loss does not reach these weights, which the inner loop therefore "
            f"leaves as they are: {', '.join(unreached)}",
            stacklevel=3,
        )
