"""How the task axis is executed: one task after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


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
        one_by_one = [function(_task(inputs, i)) for i in range(tasks)]
        return tf.nest.map_structure(lambda *x: tf.stack(x), *one_by_one)
    # `map_fn` must know what comes out: trace the function once, and map the traced one.
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), inputs)
    traced = tf.function(function, autograph=False).get_concrete_function(specs)
    signature = tf.nest.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), traced.structured_outputs
    )
    flat = tf.nest.flatten(inputs)

    def one_task(task: Any) -> Any:
        return traced(tf.nest.pack_sequence_as(inputs, task))

    return tf.map_fn(one_task, flat, fn_output_signature=signature)


def average_over_tasks(
    function: Callable[[Any], tuple[Any, Any]], inputs: Any, in_flight: int
) -> tuple[Any, Any]:
    """Run `function` on one task after another; average one result and stack the other.

    Nothing of a task is kept but its results, so memory does not grow with the number of tasks.

    Args:
        function: A nest of tensors `[1, ...]` to `(averaged, stacked)`: `averaged` is a list of
            tensors (a loss, gradients), `stacked` a nest of tensors `[1, ...]`.
        inputs: A nest of tensors `[tasks, ...]`.
        in_flight: How many tasks may run at once.

    Returns:
        `(averaged, stacked)`, the second with `[tasks, ...]`.
    """
    inputs = tf.nest.map_structure(lambda x: x[:, None], inputs)
    if tf.executing_eagerly():
        one_by_one = [
            function(_task(inputs, i)) for i in range(tf.nest.flatten(inputs)[0].shape[0])
        ]
        averaged = [
            tf.reduce_mean(x, axis=0) for x in zip(*(a for a, _ in one_by_one), strict=True)
        ]
        return averaged, tf.nest.map_structure(
            lambda *x: tf.concat(x, 0), *(s for _, s in one_by_one)
        )
    tasks = tf.shape(tf.nest.flatten(inputs)[0])[0]
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), inputs)
    traced = tf.function(function, autograph=False).get_concrete_function(specs)
    mean_specs, stack_specs = traced.structured_outputs

    def body(i: Any, totals: Any, arrays: Any) -> Any:
        averaged, stacked = traced(_task(inputs, i))
        totals = [a + b for a, b in zip(totals, averaged, strict=True)]
        flat = tf.nest.flatten(stacked)
        return i + 1, totals, [a.write(i, x[0]) for a, x in zip(arrays, flat, strict=True)]

    _, totals, arrays = tf.while_loop(
        lambda i, *_: i < tasks,
        body,
        (
            tf.constant(0),
            [tf.zeros(s.shape, s.dtype) for s in mean_specs],
            [
                tf.TensorArray(s.dtype, size=tasks, element_shape=s.shape[1:])
                for s in tf.nest.flatten(stack_specs)
            ],
        ),
        parallel_iterations=in_flight,
    )
    averaged = [x / tf.cast(tasks, x.dtype) for x in totals]
    return averaged, tf.nest.pack_sequence_as(stack_specs, [a.stack() for a in arrays])


def _task(inputs: Any, i: Any) -> Any:
    return tf.nest.map_structure(lambda x: x[i], inputs)
