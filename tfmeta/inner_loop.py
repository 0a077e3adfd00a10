"""The inner loop: the only inner `GradientTape` of the package."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfmeta.constraints import Constraint, constrained
from tfmeta.derivatives import gradients
from tfmeta.inner_optimizers import UpdateRule
from tfmeta.packed import along
from tfmeta.recompute import recomputed
from tfmeta.task_map import check_later, current_tasks
from tfmeta.types import Params, Rates, Tensor


class InnerStep(NamedTuple):
    """How one step of the inner loop is taken, `φ_{k+1} = φ_k − α_k ∇L_S(φ_k)` or as `rule` has it.

    Attributes:
        support_loss: `(params, state, k) -> (loss, new_state, written)`; the loss is a scalar, or
            one for each of several tasks side by side, `written` the weights that the step starts
            from, which are `params` but for what a layer has written to them.
        rule: The update rule.
        rates: `k -> rates`, the step sizes of step k, one for each tensor.
        names: Names of the tensors, for the warning about those that the loss does not reach.
        first_order: Whether an outer tape sees the inner gradient as a constant, so that
            `∂φ_K/∂θ = I`.
        clip_norm: Scale each step's gradient down to this norm over all weights, if it is longer.
        loss_scale: A factor on the loss, taken off the gradient, that keeps half precision from
            losing small gradients.
        task_axes: Which axis of each tensor is that of the tasks, where there are several.
        direction: `(gradients, params) -> gradients`: which way the rule goes down, if not along
            the gradients themselves.
        constraints: What Keras's constraint of each tensor makes of it after the step; `None` for
            none of them.
    """

    support_loss: Callable[[Params, Params, Any], tuple[Any, Params, Params]]
    rule: UpdateRule
    rates: Callable[[Any], Rates]
    names: Sequence[str]
    first_order: bool = False
    clip_norm: float | None = None
    loss_scale: float = 1.0
    task_axes: Sequence[int] | None = None
    direction: Callable[[Params, Params], Params] | None = None
    constraints: Sequence[Constraint | None] | None = None

    def __call__(
        self, k: Tensor, params: Params, state: Params, slots: Params
    ) -> tuple[Any, Params, Params, Params]:
        """Take step k, and return `(loss at params, new params, new state, new slots)`."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(params)
            loss, state, written = self.support_loss(params, state, k)
            scaled = loss * self.loss_scale
        found = gradients(tape, scaled, params)
        _warn_of_unreached(found, self.names)
        found = [
            tf.zeros_like(p) if g is None else g / self.loss_scale
            for g, p in zip(found, params, strict=True)
        ]
        if self.clip_norm is not None:
            found = _clipped(found, self.clip_norm, self.task_axes)
        if self.direction is not None:
            found = self.direction(found, written)
        if self.first_order:
            found = [tf.stop_gradient(g) for g in found]
        params, slots = self.rule.update(found, slots, written, self.rates(k))
        if self.constraints is not None:
            params = constrained(params, self.constraints)
        return loss, params, state, slots


class Path(NamedTuple):
    """What an inner loop went through.

    Attributes:
        params: φ_1 … φ_K, or φ_K alone.
        states: The model's non-trainable state after each of these steps.
        steps_used: How many steps changed the weights, a scalar of the weights' dtype, or one for
            each task.
        slots: The inner optimizer's, where they are kept.
    """

    params: list[Any]
    states: list[Params]
    steps_used: Any
    slots: Params | None = None


class _Reached(NamedTuple):
    """Where an inner loop is: all that passes from one step to the next."""

    params: Params
    state: Params
    slots: Params
    # `[1 + steps]`, for tasks side by side `[1 + steps, tasks]`; the first one, and those of steps
    # that are to come, are infinite.
    losses: Tensor
    used: Any


def inner_path(
    step_at: Callable[[Any], InnerStep],
    fixed: Any,
    params: Params,
    state: Params,
    steps: int,
    *,
    every: bool,
    tolerance: float | None = None,
    recompute: bool = False,
) -> Path:
    """Take `steps` steps, differentiably.

    Args:
        step_at: How one is taken, given what it needs beside `params`.
        fixed: What it needs: tensors that no step changes, but that have a gradient.
        params: Tensors, the initialisation θ.
        state: The model's non-trainable state; each step passes its new one to the next.
        steps: How many, K.
        every: Return all of them, and not the last alone.
        tolerance: Stop when the support loss has not fallen by this much since the step before.
            The weights then stay; later steps are computed all the same, so that shapes are
            static.
        recompute: Keep of each step its weights only, and compute its activations once more for
            the outer gradient.

    Raises:
        ValueError: If a support loss is NaN or infinite; in a graph, an `InvalidArgumentError`.
    """

    def take(k: Tensor, at: _Reached, step: InnerStep) -> _Reached:
        loss, new, state, slots = step(k, at.params, at.state, at.slots)
        loss = tf.stop_gradient(tf.cast(loss, at.losses.dtype))
        active = at.used >= tf.cast(k, at.used.dtype)
        if tolerance is not None:
            # The losses begin with an infinite one.
            active = tf.logical_and(active, at.losses[k] - loss >= tolerance)
            new = _where(active, new, at.params, step.task_axes)
        here = along(tf.range(steps + 1) == k + 1, 0, len(at.losses.shape))
        return _Reached(
            new,
            state,
            slots,
            tf.where(here, loss, at.losses),
            at.used + tf.cast(active, at.used.dtype),
        )

    step = step_at(fixed)
    at_once = current_tasks()
    tasks = [] if at_once is None or at_once.weights is None else at_once.weights.shape
    losses = tf.fill([steps + 1, *tasks], tf.constant(float("inf"), params[0].dtype))
    at = _Reached(params, state, step.rule.init(params), losses, tf.zeros(tasks, losses.dtype))
    if recompute:
        # All that has a gradient must be an argument, the rates as well.
        rates = [
            tf.stack([tf.convert_to_tensor(r, p.dtype) for r in by_step])
            for p, *by_step in zip(params, *(step.rates(k) for k in range(steps)), strict=True)
        ]

        def take_at(k: Tensor, at: _Reached, given: Any) -> _Reached:
            fixed, rates = given
            return take(k, at, step_at(fixed)._replace(rates=lambda k: [r[k] for r in rates]))

        path = recomputed(take_at, at, (fixed, rates), steps, every=every)
    else:
        path = []
        for k in range(steps):
            path.append(take(k, path[-1] if path else at, step))
        path = path if every else path[-1:]
    end = path[-1]
    with _must_be_finite(end.losses[1:]):
        params, states = tf.nest.map_structure(
            tf.identity, ([at.params for at in path], [at.state for at in path])
        )
    return Path(params, states, end.used)


def inner_solution(
    step: InnerStep, params: Params, state: Params, slots: Params, steps: int
) -> tuple[Params, Params, Params]:
    """Take `steps` steps and return `(φ_K, state, slots)`, as constants for an outer tape.

    Memory does not grow with the number of steps.

    Raises:
        ValueError: As `inner_path`.
    """

    def body(k: Tensor, params: Params, state: Params, slots: Params, losses: Tensor) -> Any:
        loss, params, state, slots = step(k, params, state, slots)
        losses = tf.where(tf.range(steps) == k, tf.cast(loss, losses.dtype), losses)
        return k + 1, params, state, slots, losses

    start = ([tf.stop_gradient(x) for x in xs] for xs in (params, state, slots))
    losses = tf.zeros([steps], params[0].dtype)
    _, *end, losses = tf.while_loop(lambda k, *_: k < steps, body, (tf.constant(0), *start, losses))
    with _must_be_finite(losses):
        return tuple([tf.stop_gradient(x) for x in xs] for xs in end)  # type: ignore[return-value]


def _where(condition: Tensor, new: Params, old: Params, axes: Sequence[int] | None) -> Params:
    conditions = [condition] * len(new)
    if axes is not None and condition.shape.rank:
        conditions = [along(condition, a, len(p.shape)) for a, p in zip(axes, new, strict=True)]
    return [tf.where(c, n, o) for c, n, o in zip(conditions, new, old, strict=True)]


def _clipped(gradients: Params, norm: float, axes: Sequence[int] | None) -> Params:
    # `tf.clip_by_global_norm` has a root of the square in it, whose second derivative at 0 is NaN.
    if axes is None:
        square = sum(tf.reduce_sum(g**2) for g in gradients)
        scale = norm * tf.math.rsqrt(tf.maximum(square, norm**2))
        return [scale * g for g in gradients]
    ranks = [len(g.shape) for g in gradients]
    square = sum(
        tf.reduce_sum(g**2, [i for i in range(rank) if i != axis])
        for g, axis, rank in zip(gradients, axes, ranks, strict=True)
    )
    scale = norm * tf.math.rsqrt(tf.maximum(square, norm**2))
    return [along(scale, a, r) * g for g, a, r in zip(gradients, axes, ranks, strict=True)]


def _must_be_finite(losses: Tensor) -> Any:
    """Return a context in which operations run only if the losses of each task are finite.

    Where the check can be made for all tasks at once, later, they run all the same.

    Args:
        losses: `[steps]`, of tasks side by side `[steps, tasks]`.
    """
    by_task = tf.transpose(losses)
    if tf.executing_eagerly():
        _check_finite(by_task)
        return contextlib.nullcontext()
    if check_later(_check_finite, by_task):
        return contextlib.nullcontext()
    return tf.control_dependencies([_check_finite(by_task)])


def _check_finite(losses: Tensor) -> Any:
    """Return an assertion about `[steps]` or `[tasks, steps]` losses; raise where that can be."""
    finite = tf.math.is_finite(losses)
    # The first that is not, of the first task that has one.
    worst = tf.argmin(tf.cast(tf.reshape(finite, [-1]), tf.int32))
    # By a gather: XLA wants the place of a slice as a constant, and so all that it is computed
    # from, images, labels and weights. It would compile anew at every step.
    loss, finite = tf.gather(tf.reshape(losses, [-1]), worst), tf.reduce_all(finite)
    steps = losses.shape[-1]
    tasks = current_tasks()
    number = None if tasks is None else tasks.numbers
    if len(losses.shape) == 2:
        task = worst // steps
        number = task if number is None else tf.gather(number, task)
    text = (
        "The support loss must be finite; a smaller inner learning rate may help, or a smaller "
        "outer one. Received:"
    )
    if tf.executing_eagerly():
        if not finite:
            where = "" if number is None else f" of task {int(number)}"
            raise ValueError(f"{text} {float(loss)} in inner step {int(worst % steps)}{where}")
        return None
    data = [text, loss, "in inner step", worst % steps]
    return tf.debugging.Assert(finite, data if number is None else [*data, "of task", number])


def _warn_of_unreached(gradients: Params, names: Sequence[str]) -> None:
    unreached = [n for g, n in zip(gradients, names, strict=True) if g is None]
    if unreached:
        # Python's own once-per-location filter keeps this to one message for each set of names.
        warnings.warn(
            f"The support loss does not reach these weights, which the inner loop therefore "
            f"leaves as they are: {', '.join(unreached)}",
            stacklevel=3,
        )
