"""How the task axis is executed: one task after another."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_TASK: contextvars.ContextVar[Any] = contextvars.ContextVar("task", default=None)


def current_task() -> Any:
    """Return the number, within the meta-batch, of the task that is computed; `None` outside."""
    return _TASK.get()


def map_tasks(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Apply `function` to each task in turn and stack what it returns.

    Args:
        function: One task's tensors (no task axis) to predictions.
        inputs: A nest of tensors `[tasks, ...]`.

    Returns:
        A nest of tensors `[tasks, ...]`.
    """
    tasks = tf.nest.flatten(inputs)[0].shape[0]
    if tasks == 1 or tf.executing_eagerly():
        one_by_one = [_numbered(function)(i, _task(inputs, i)) for i in range(tasks)]
        return tf.nest.map_structure(lambda *x: tf.stack(x), *one_by_one)
    # `map_fn` must know what comes out: trace the function once, and map the traced one.
    traced = _traced(function, inputs)
    signature = tf.nest.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), traced.structured_outputs
    )
    flat = tf.nest.flatten(inputs)

    def one_task(task: Any) -> Any:
        number, *values = task
        return traced(number, tf.nest.pack_sequence_as(inputs, values))

    numbers = tf.range(tf.shape(flat[0])[0])
    return tf.map_fn(one_task, [numbers, *flat], fn_output_signature=signature)


def sum_over_tasks(
    function: Callable[[Any], tuple[Any, Any]], inputs: Any, in_flight: int
) -> tuple[Any, Any]:
    """Run `function` on one task after another; sum one result and stack the other.

    Nothing of a task is kept but its results, so memory does not grow with the number of tasks.

    Args:
        function: One task's tensors (no task axis) to `(summed, stacked)`: `summed` is a list of
            tensors (a loss, gradients), `stacked` a nest of tensors.
        inputs: A nest of tensors `[tasks, ...]`.
        in_flight: How many tasks may run at once.

    Returns:
        `(summed, stacked)`, the second with `[tasks, ...]`.
    """
    if tf.executing_eagerly():
        one_by_one = [
            _numbered(function)(i, _task(inputs, i))
            for i in range(tf.nest.flatten(inputs)[0].shape[0])
        ]
        summed = [tf.add_n(x) for x in zip(*(a for a, _ in one_by_one), strict=True)]
        return summed, tf.nest.map_structure(lambda *x: tf.stack(x), *(b for _, b in one_by_one))
    tasks = tf.shape(tf.nest.flatten(inputs)[0])[0]
    traced = _traced(function, inputs)
    sum_specs, stack_specs = traced.structured_outputs

    def body(i: Any, totals: Any, arrays: Any) -> Any:
        summed, stacked = traced(i, _task(inputs, i))
        totals = [a + b for a, b in zip(totals, summed, strict=True)]
        flat = tf.nest.flatten(stacked)
        return i + 1, totals, [a.write(i, x) for a, x in zip(arrays, flat, strict=True)]

    _, totals, arrays = tf.while_loop(
        lambda i, *_: i < tasks,
        body,
        (
            tf.constant(0),
            [tf.zeros(s.shape, s.dtype) for s in sum_specs],
            [
                tf.TensorArray(s.dtype, size=tasks, element_shape=s.shape)
                for s in tf.nest.flatten(stack_specs)
            ],
        ),
        parallel_iterations=in_flight,
    )
    return totals, tf.nest.pack_sequence_as(stack_specs, [a.stack() for a in arrays])


def _traced(function: Callable[[Any], Any], inputs: Any) -> Any:
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), inputs)
    return tf.function(_numbered(function), autograph=False).get_concrete_function(
        tf.TensorSpec((), tf.int32), specs
    )


def _numbered(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def numbered(number: Any, task: Any) -> Any:
        with _is_current(number):
            return function(task)

    return numbered


@contextlib.contextmanager
def _is_current(number: Any) -> Iterator[None]:
    token = _TASK.set(number)
    try:
        yield
    finally:
        _TASK.reset(token)


def _task(inputs: Any, i: Any) -> Any:
    return tf.nest.map_structure(lambda x: x[i], inputs)
