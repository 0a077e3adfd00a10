"""The inner loop: the only inner `GradientTape` of the package."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfmeta.inner_optimizers import UpdateRule
from tfmeta.packed import along
from tfmeta.task_map import check_later, current_tasks
from tfmeta.types import Params, Rates


class InnerStep(NamedTuple):
    """How one step of the inner loop is taken, `φ_{k+1} = φ_k − α_k ∇L_S(φ_k)` or as `rule` has it.

    Attributes:
        support_loss: `(params, state, k) -> (loss, new_state)`; the loss is a scalar, or one for
            each of several tasks side by side.
        rule: The update rule.
        rates: `k -> rates`, the step sizes of step k, one for each tensor.
        names: Names of the tensors, for the warning about those that the loss does not reach.
        first_order: Whether an outer tape sees the inner gradient as a constant, so that
            `∂φ_K/∂θ = I`.
        clip_norm: Scale each step's gradient down to this norm over all weights, if it is longer.
        loss_scale: A factor on the loss, taken off the gradient, that keeps half precision from
            losing small gradients.
        task_axes: Which axis of each tensor is that of the tasks, where there are several.
    """

    support_loss: Callable[[Params, Params, Any], tuple[Any, Params]]
    rule: UpdateRule
    rates: Callable[[Any], Rates]
    names: Sequence[str]
    first_order: bool = False
    clip_norm: float | None = None
    loss_scale: float = 1.0
    task_axes: Sequence[int] | None = None

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
            gradients = _clipped(gradients, self.clip_norm, self.task_axes)
        if self.first_order:
            gradients = [tf.stop_gradient(g) for g in gradients]
        params, slots = self.rule.update(gradients, slots, params, self.rates(k))
        return loss, params, state, slots


class Path(NamedTuple):
    """What an inner loop went through.

    Attributes:
        params: φ_1 … φ_K.
        states: The model's non-trainable state behind each step.
        steps_used: How many steps changed the weights, a scalar of the weights' dtype, or one for
            each task.
    """

    params: list[Params]
    states: list[Params]
    steps_used: Any


def inner_path(
    step_at: Callable[[Params], InnerStep],
    fixed: Params,
    params: Params,
    state: Params,
    steps: int,
    *,
    tolerance: float | None = None,
    recompute: bool = False,
) -> Path:
    """Take `steps` steps, differentiably, and return all of them.

    Args:
        step_at: How one is taken, given what it needs beside `params`.
        fixed: What it needs: tensors that no step changes, but that have a gradient.
        params: Tensors, the initialisation θ.
        state: The model's non-trainable state; each step passes its new one to the next.
        steps: How many, K.
        tolerance: Stop when the support loss has not fallen by this much since the step before.
            The weights then stay; the steps behind are computed all the same, so that shapes are
            static.
        recompute: Keep of each step its weights only, and compute its activations once more for
            the outer gradient.
    """
    step = step_at(fixed)
    take = _recomputed(step_at, fixed) if recompute else step
    slots = step.rule.init(params)
    path, states = [], []
    active = tf.constant(True)
    used = tf.zeros((), params[0].dtype)
    before = None
    for k in range(steps):
        loss, new, state, slots = take(k, params, state, slots)
        if tolerance is not None:
            if before is not None:
                active = tf.logical_and(active, before - loss >= tolerance)
            before = loss
            new = _where(active, new, params, step.task_axes)
        used += tf.cast(active, used.dtype)
        params = new
        path.append(params)
        states.append(state)
    return Path(path, states, used)


def _recomputed(step_at: Callable[[Params], InnerStep], fixed: Params) -> Callable[..., Any]:
    """Return a step that forgets its activations, for `tf.recompute_grad` stops the inner tape."""

    def take(k: int, *inputs: Any) -> Any:
        # All that has a gradient must be an argument, the rates as well.
        rates = [tf.convert_to_tensor(r) for r in step_at(fixed).rates(k)]
        nest = [fixed, *inputs, rates]

        def compute(*flat: Any) -> Any:
            fixed, params, state, slots, rates = tf.nest.pack_sequence_as(nest, flat)
            step = step_at(fixed)._replace(rates=lambda k: rates)
            return step(k, params, state, slots)

        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def forgetful(*flat: Any) -> Any:
            def gradient(*upstream: Any) -> Any:
                # Not before there is a use for it, and so that it is not seen to be the same.
                with tf.control_dependencies(upstream):
                    again = [tf.identity(x) for x in flat]
                with tf.GradientTape() as tape:
                    tape.watch([x for x in again if x.dtype.is_floating])
                    outputs = tf.nest.flatten(compute(*again))
                pairs = [
                    (o, u) for o, u in zip(outputs, upstream, strict=True) if o.dtype.is_floating
                ]
                outputs, upstream = zip(*pairs, strict=True)
                return tape.gradient(list(outputs), again, list(upstream))

            return tf.nest.flatten(compute(*flat)), gradient

        flat = forgetful(*tf.nest.flatten(nest))
        return tf.nest.pack_sequence_as([0.0, *inputs], flat)

    return take


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


def _where(condition: Any, new: Params, old: Params, axes: Sequence[int] | None) -> Params:
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


def _must_be_finite(loss: Any, k: Any) -> Any:
    """Return a context in which operations run only if the loss of each task is finite.

    Where the check can be made for all tasks at once, later, they run all the same.
    """
    if tf.executing_eagerly():
        _check_finite(k, loss)
        return contextlib.nullcontext()
    if check_later(functools.partial(_check_finite, k), loss):
        return contextlib.nullcontext()
    return tf.control_dependencies([_check_finite(k, loss)])


def _check_finite(k: Any, loss: Any) -> Any:
    """Return an assertion about the loss of one task or several; raise where that can be done."""
    tasks = current_tasks()
    number = None if tasks is None else tasks.numbers
    text = (
        "The support loss must be finite; a smaller inner learning rate may help, or a smaller "
        "outer one. Received:"
    )
    finite = tf.math.is_finite(loss)
    if len(loss.shape):
        # The first task whose loss is not.
        worst = tf.argmin(tf.cast(finite, tf.int32))
        loss, finite = loss[worst], tf.reduce_all(finite)
        number = worst if number is None else tf.gather(number, worst)
    if tf.executing_eagerly():
        if not finite:
            where = "" if number is None else f" of task {int(number)}"
            raise ValueError(f"{text} {float(loss)} in inner step {int(k)}{where}")
        return None
    data = [text, loss, "in inner step", k, *([] if number is None else ["of task", number])]
    return tf.debugging.Assert(finite, data)


def _warn_of_unreached(gradients: Params, names: Sequence[str]) -> None:
    unreached = [n for g, n in zip(gradients, names, strict=True) if g is None]
    if unreached:
        # Python's own once-per-location filter keeps this to one message for each set of names.
        warnings.warn(
            f"The support loss does not reach these weights, which the inner loop therefore "
            f"leaves as they are: {', '.join(unreached)}",
            stacklevel=3,
        )
