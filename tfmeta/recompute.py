"""A loop that keeps of its steps only what passes from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmeta.derivatives import dense, gradients_or_zeros
from tfmeta.types import Tensor


def recomputed(
    body: Callable[[Any, Any, Any], Any], start: Tensor, given: Any, steps: int, *, every: bool
) -> list[Tensor]:
    """Compute `x_{k+1} = body(k, x_k, given)`; for the gradient, compute each step once more.

    Forwards, the tensors x_k are stored; backwards, step k is computed again from them, and
    forgotten before step k − 1. Both are loops of the graph, which holds one step however many are
    taken. `tf.recompute_grad` cannot do this: it stops all tapes, those inside of `body` too.

    Args:
        body: `(k, x_k, given) -> x_{k+1}`, nests of tensors of the same structure and shapes; k is
            a scalar tensor. All that has a gradient is in x or in `given`.
        start: x_0.
        given: What no step changes.
        steps: How many, K.
        every: Return x_1 … x_K, and not x_K alone.
    """
    flat_start, flat_given = tf.nest.flatten(start), tf.nest.flatten(given)

    def step(k: Tensor, x: list[Tensor], given_: list[Tensor]) -> Any:
        new = body(k, tf.nest.pack_sequence_as(start, x), tf.nest.pack_sequence_as(given, given_))
        flat = zip(tf.nest.flatten(new), flat_start, strict=True)
        return [tf.ensure_shape(n, x.shape) for n, x in flat]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(*inputs: Any) -> Any:
        first, fixed = list(inputs[: len(flat_start)]), list(inputs[len(flat_start) :])

        def forward(k: Tensor, x: list[Tensor], stored: list[Tensor]) -> Any:
            stored = [a.write(k, value) for a, value in zip(stored, x, strict=True)]
            return k + 1, step(k, x, fixed), stored

        stored = [
            tf.TensorArray(x.dtype, steps + every, element_shape=x.shape, clear_after_read=False)
            for x in first
        ]
        _, last, stored = tf.while_loop(
            lambda k, *_: k < steps, forward, (tf.constant(0), first, stored), parallel_iterations=1
        )
        if every:
            stored = [a.write(steps, x) for a, x in zip(stored, last, strict=True)]

        def gradient(*sparse: Any) -> Any:
            upstream = [dense(g) for g in sparse]

            def backward(i: Any, to_x: list[Tensor], to_fixed: list[Tensor]) -> Any:
                k = steps - 1 - i
                if every:
                    to_x = [g + u[k] for g, u in zip(to_x, _floats(upstream, first), strict=True)]
                x = [a.read(k) for a in stored]
                again = [tf.identity(value) for value in fixed]
                sources = [*_floats(x, first), *_floats(again, fixed)]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(sources)
                    new = step(k, x, again)
                found = gradients_or_zeros(tape, _floats(new, first), sources, to_x)
                more = zip(to_fixed, found[len(to_x) :], strict=True)
                return i + 1, found[: len(to_x)], [a + b for a, b in more]

            here = [tf.zeros_like(x) for x in _floats(first, first)]
            _, to_first, to_fixed = tf.while_loop(
                lambda i, *_: i < steps,
                backward,
                (
                    tf.constant(0),
                    here if every else _floats(upstream, first),
                    [tf.zeros_like(x) for x in _floats(fixed, fixed)],
                ),
                parallel_iterations=1,
            )
            found = iter([*to_first, *to_fixed])
            return [next(found) if x.dtype.is_floating else None for x in inputs]

        return [a.stack()[1:] for a in stored] if every else last, gradient

    outputs = run(*flat_start, *flat_given)
    if not every:
        return [tf.nest.pack_sequence_as(start, outputs)]
    by_step = zip(*(tf.unstack(x, steps) for x in outputs), strict=True)
    return [tf.nest.pack_sequence_as(start, list(x)) for x in by_step]


def _floats(values: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Return those of `values` that stand where `like` has floating-point tensors."""
    return [v for v, x in zip(values, like, strict=True) if x.dtype.is_floating]
