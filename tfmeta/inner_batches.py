"""Inner steps on some of a support set at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmeta.inner_loop import InnerStep
from tfmeta.task_map import current_tasks
from tfmeta.types import Nest, Params, Tensor

# That of a step which no training has: evaluation has an order that never changes.
OF_EVALUATION = (-1, 0)


def in_batches(
    step_on: Callable[[Any, Any], InnerStep],
    support_x: Nest,
    support_y: Nest,
    size: int | None,
    steps: int,
    seed: Any,
) -> InnerStep:
    """Return a step that each time sees other examples of a support set, all of them in turn.

    They are drawn without repetition until all were seen, and then anew.

    Args:
        step_on: Examples and labels to a step on them.
        support_x: A nest of `[n, ...]`.
        support_y: A nest of `[n, ...]`.
        size: How many a step sees; all of them if `None` or more than there are.
        steps: How many steps there are.
        seed: int64 `[2]`; the order is a function of it.
    """
    whole = step_on(support_x, support_y)
    first = tf.nest.flatten(support_x)[0]
    examples = first.shape[0]
    if size is None or (examples is not None and examples <= size):
        return whole
    number = tf.shape(first)[0]
    rows = order(number, size, steps, seed)
    each = tf.minimum(size, number) if examples is None else size

    def support_loss(adapted: Params, state: Params, k: Tensor) -> Any:
        here = rows[k * each : (k + 1) * each]
        x, y = tf.nest.map_structure(lambda part: tf.gather(part, here), (support_x, support_y))
        return step_on(x, y).support_loss(adapted, state, k)

    return whole._replace(support_loss=support_loss)


def order(number: Any, size: int, steps: int, seed: Any) -> Any:
    """Return the numbers of the examples of all steps, one pass through all of them after another.

    Args:
        number: How many examples there are.
        size: How many a step sees.
        steps: How many steps there are.
        seed: int64 `[2]`.
    """
    passes = -(-steps * size // number)
    drawn = tf.random.stateless_uniform([passes, number], tf.convert_to_tensor(seed, tf.int64))
    return tf.reshape(tf.argsort(drawn, axis=1), [-1])


def seed_of_task(seed: int, step: Tensor) -> Tensor:
    """Return the seed of the current task's order in an outer step, int64 `[2]`."""
    tasks = current_tasks()
    task = tf.cast(0 if tasks is None else tasks.numbers, tf.int64)
    return tf.stack([tf.cast(step, tf.int64), seed * 2**20 + task])
