"""How the task axis is executed: one task after another, or chunks of tasks side by side."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import tensorflow as tf

from tfmeta.foreign.of_tensorflow import has_a_state, in_xla
from tfmeta.kernels import gpus, limited_threads
from tfmeta.types import Tensor

TaskAxis = Literal["auto", "loop", "packed"]
TASK_AXES = ("auto", "loop", "packed")


class Tasks(NamedTuple):
    """Which tasks of a meta-batch are computed.

    Attributes:
        numbers: A scalar; for tasks side by side `[n]`.
        weights: `[n]`, 1 for a task and 0 for one that only fills up the last chunk; `None` for a
            single task.
    """

    numbers: Tensor
    weights: Any = None


_TASKS: contextvars.ContextVar[Tasks | None] = contextvars.ContextVar("tasks", default=None)


class _Checks(NamedTuple):
    """Checks of the tasks that `graph` computes, to be made after the loop over tasks."""

    graph: Any
    calls: list[tuple[Callable[[Any], Any], Any]]


_CHECKS: contextvars.ContextVar[_Checks | None] = contextvars.ContextVar("checks", default=None)
_NOT_DIFFERENTIATED = contextvars.ContextVar("not differentiated", default=False)


def check_later(check: Callable[[Any], Any], values: Tensor) -> bool:
    """Have `check` called after the loop over chunks, if there is one; return whether there is.

    An assertion within it would have each chunk wait for the one before. Tasks that are computed in
    turn may store statistics, which a failed check must come before.

    Args:
        check: `[tasks]` values to an operation that fails.
        values: A scalar, for tasks side by side `[n]`.
    """
    checks = _CHECKS.get()
    # A tensor of a branch or of another loop cannot leave it.
    if checks is None or checks.graph is not tf.compat.v1.get_default_graph():
        return False
    checks.calls.append((check, values))
    return True


def current_tasks() -> Tasks | None:
    """Return which tasks are computed; `None` outside of a meta-batch."""
    return _TASKS.get()


@contextlib.contextmanager
def counted_from(first: Any) -> Iterator[None]:
    """Give the current tasks the numbers that they have where `first` tasks are before them."""
    tasks = _TASKS.get()
    if tasks is None:
        yield
        return
    with _are_current(tasks._replace(numbers=tasks.numbers + first)):
        yield


def side_by_side() -> bool:
    """Return whether tensors have an axis of tasks, because several are computed at once."""
    tasks = _TASKS.get()
    return tasks is not None and tasks.weights is not None


def real_sum(values: Tensor) -> Any:
    """Return the sum over tasks side by side, without those that fill up a chunk; or one's own.

    Args:
        values: `[tasks]`, or the scalar of a single task.
    """
    tasks = _TASKS.get()
    if tasks is None or tasks.weights is None:
        return values
    return tf.reduce_sum(values * tf.cast(tasks.weights, values.dtype))


def in_one_axis(x: Any) -> Any:
    """Return the examples of all tasks one after another: `[tasks*n, ...]` of `[tasks, n, ...]`."""
    if None not in x.shape[2:]:
        return tf.reshape(x, [-1, *x.shape[2:]])
    rows = tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))
    return tf.ensure_shape(rows, [None, *x.shape[2:]])


@contextlib.contextmanager
def not_differentiated() -> Iterator[None]:
    """Have what is computed meanwhile made of operations that may lack a derivative."""
    token = _NOT_DIFFERENTIATED.set(True)
    try:
        yield
    finally:
        _NOT_DIFFERENTIATED.reset(token)


def chunks_at_once() -> int:
    """Return how many chunks of tasks are worth computing at once.

    On a CPU as many as TensorFlow runs operations at once, for a chunk's are too small to be shared
    between cores. On a GPU, and under XLA, one.
    """
    if gpus() or in_xla():
        return 1
    own = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if own else os.cpu_count() or 1
    return int(tf.config.threading.get_inter_op_parallelism_threads() or cores)


def map_tasks(
    function: Callable[[Any], Any],
    inputs: Any,
    *,
    in_flight: int | None = 1,
    packed: bool = False,
    at_once: int = 1,
) -> Any:
    """Apply `function` to all tasks and stack what it returns.

    Args:
        function: One task's tensors (no task axis) to predictions; a chunk's if `packed`.
        inputs: A nest of tensors `[tasks, ...]`.
        in_flight: How many tasks may be computed at once; for `packed` ones `None` means all.
        packed: Compute tasks side by side, in chunks.
        at_once: As for `sum_over_tasks`.

    Returns:
        A nest of tensors `[tasks, ...]`.
    """
    if packed:
        _, outputs = sum_over_tasks(
            lambda tasks: ([], function(tasks)),
            inputs,
            in_flight=in_flight,
            packed=True,
            at_once=at_once,
        )
        return outputs
    tasks = tf.nest.flatten(inputs)[0].shape[0]
    if tasks == 1 or tf.executing_eagerly():
        one_by_one = [_told(function)(Tasks(i), _task(inputs, i)) for i in range(tasks)]
        return tf.nest.map_structure(lambda *x: tf.stack(x), *one_by_one)
    # `map_fn` must know what comes out: trace the function once, and map the traced one.
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), inputs)
    traced = _traced(function, Tasks(tf.TensorSpec((), tf.int32)), specs)
    signature = tf.nest.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), traced.structured_outputs
    )
    flat = tf.nest.flatten(inputs)

    def one_task(task: Any) -> Any:
        number, *values = task
        return traced(Tasks(number), tf.nest.pack_sequence_as(inputs, values))

    numbers = tf.range(tf.shape(flat[0])[0])
    return tf.map_fn(one_task, [numbers, *flat], fn_output_signature=signature)


def sum_over_tasks(
    function: Callable[[Any], tuple[Any, Any]],
    inputs: Any,
    *,
    in_flight: int | None = 1,
    packed: bool = False,
    at_once: int = 1,
) -> tuple[Any, Any]:
    """Run `function` on one task or chunk after another; sum one result and stack the other.

    Nothing of a task is kept but its results, so memory does not grow with the number of tasks.

    Args:
        function: One task's tensors (no task axis) to `(summed, stacked)`: `summed` is a list of
            tensors (a loss, gradients), `stacked` a nest of tensors. If `packed`, a chunk's:
            `summed` is already the sum over its tasks, by their weights, and `stacked` has the
            task axis.
        inputs: A nest of tensors `[tasks, ...]`.
        in_flight: How many tasks may be computed at once; for `packed` ones `None` means all.
        packed: Compute tasks side by side, in chunks.
        at_once: How many chunks may be computed at once, each on a core of its own.

    Returns:
        `(summed, stacked)`, the second with `[tasks, ...]`.
    """
    if tf.executing_eagerly() or not packed:
        return _summed(function, inputs, in_flight, packed, at_once)
    made: list[Callable[[Any], Any]] = []

    def noted(inputs: Any) -> tuple[Any, Any]:
        checks = _Checks(tf.compat.v1.get_default_graph(), [])
        token = _CHECKS.set(checks)
        try:
            summed, stacked = function(inputs)
        finally:
            _CHECKS.reset(token)
        made[:] = [check for check, _ in checks.calls]
        return summed, (stacked, [values for _, values in checks.calls])

    summed, (stacked, values) = _summed(noted, inputs, in_flight, packed, at_once)
    done: list[Any] = []
    for check, value in zip(made, values, strict=True):
        # The first that fails is the one to hear of.
        with tf.control_dependencies(done):
            done = [check(value)]
    with tf.control_dependencies(done):
        return tf.nest.map_structure(tf.identity, (summed, stacked))  # type: ignore[no-any-return]


def _summed(
    function: Callable[[Any], tuple[Any, Any]],
    inputs: Any,
    in_flight: int | None,
    packed: bool,
    at_once: int,
) -> tuple[Any, Any]:
    tasks = tf.nest.flatten(inputs)[0].shape[0]
    if not packed:
        if tf.executing_eagerly():
            results = [_told(function)(Tasks(i), _task(inputs, i)) for i in range(tasks)]
            return _added(results, tf.stack)
        specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), inputs)
        traced = _traced(function, Tasks(tf.TensorSpec((), tf.int32)), specs)
        number = tf.shape(tf.nest.flatten(inputs)[0])[0]
        at_once = in_flight or 1
        return _looped(lambda i: traced(Tasks(i), _task(inputs, i)), traced, number, at_once)

    if in_flight is None:
        every = tf.shape(tf.nest.flatten(inputs)[0])[0] if tasks is None else tasks
        summed, stacked = _told(function)(Tasks(tf.range(every), tf.ones([every])), inputs)
        return summed, stacked
    cores = at_once
    at_once = min(cores, in_flight, tasks or in_flight)
    chunk = in_flight // at_once
    if tasks is not None:
        # With the fewest tasks that only fill up the last chunk.
        rounds = -(-tasks // in_flight)
        even = -(-tasks // (rounds * at_once))
        chunk = even if rounds == 1 else min(chunk, even)
    number = tf.shape(tf.nest.flatten(inputs)[0])[0] if tasks is None else tasks
    chunks = -(-number // chunk)

    def members(i: Any) -> tuple[Tasks, Any]:
        numbers = i * chunk + tf.range(chunk)
        weights = tf.cast(numbers < number, tf.float32)
        numbers = tf.minimum(numbers, number - 1)
        members = tf.nest.map_structure(lambda x: tf.gather(x, numbers), inputs)
        return Tasks(numbers, weights), members

    if tasks is not None and chunks == 1:
        summed, stacked = _told(function)(Tasks(tf.range(tasks), tf.ones([tasks])), inputs)
        return summed, stacked
    if tf.executing_eagerly():
        results = [_told(function)(*members(i)) for i in range(chunks)]
        summed, stacked = _added(results, lambda x: tf.concat(x, 0))
    else:
        specs = tf.nest.map_structure(
            lambda x: tf.TensorSpec((chunk, *x.shape[1:]), x.dtype), inputs
        )
        who = Tasks(tf.TensorSpec((chunk,), tf.int32), tf.TensorSpec((chunk,), tf.float32))
        threads = cores // at_once
        with limited_threads(threads if at_once > 1 else None):
            traced = _traced(function, who, specs)
        if at_once > 1 and _has_effects(traced.graph):
            return _summed(function, inputs, in_flight, packed, 1)

        def body(i: Any) -> Any:
            return traced(*members(i))

        if at_once > 1 and _NOT_DIFFERENTIATED.get():
            summed, stacked = _on_cores(body, traced, chunks, at_once, threads)
        else:
            summed, stacked = _looped(body, traced, chunks, at_once)
        stacked = tf.nest.map_structure(
            lambda x: tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0)), stacked
        )
    return summed, tf.nest.map_structure(
        lambda x: tf.ensure_shape(x[:number], [tasks, *x.shape[1:]]), stacked
    )


def _looped(body: Callable[[Any], Any], traced: Any, number: Any, at_once: int) -> tuple[Any, Any]:
    """Sum and stack what `body` returns for 0 … number−1, in a loop of the graph."""
    sum_specs, stack_specs = traced.structured_outputs

    def step(i: Any, totals: Any, arrays: Any) -> Any:
        summed, stacked = body(i)
        totals = [a + b for a, b in zip(totals, summed, strict=True)]
        flat = tf.nest.flatten(stacked)
        return i + 1, totals, [a.write(i, x) for a, x in zip(arrays, flat, strict=True)]

    _, totals, arrays = tf.while_loop(
        lambda i, *_: i < number,
        step,
        (
            tf.constant(0),
            [tf.zeros(s.shape, s.dtype) for s in sum_specs],
            [
                tf.TensorArray(s.dtype, size=number, element_shape=s.shape)
                for s in tf.nest.flatten(stack_specs)
            ],
        ),
        parallel_iterations=at_once,
    )
    return totals, tf.nest.pack_sequence_as(stack_specs, [a.stack() for a in arrays])


def _on_cores(
    body: Callable[[Any], Any], traced: Any, number: Any, at_once: int, threads: int
) -> tuple[Any, Any]:
    """Do what `_looped` does, in `at_once` loops at the same time, each on cores of its own.

    TensorFlow shares an operation between its threads and waits for all of them, and a chunk's
    operations are over before another core has begun. `MapDefun`, with which `tf.data` maps,
    limits the threads of a function's operations; it has no derivative.
    """
    each = -(-number // at_once)

    def of_core(core: Any) -> Any:
        return _looped(lambda i: body(core * each + i), traced, each, 1)

    function = tf.function(of_core, autograph=False).get_concrete_function(
        tf.TensorSpec((), tf.int32)
    )
    outputs = tf.raw_ops.MapDefun(
        arguments=[tf.range(at_once)],
        captured_inputs=function.captured_inputs,
        output_types=[x.dtype for x in function.outputs],
        output_shapes=[x.shape for x in function.outputs],
        f=function,
        max_intra_op_parallelism=threads,
    )
    totals, stacked = tf.nest.pack_sequence_as(function.structured_outputs, outputs)
    return [tf.reduce_sum(x, 0) for x in totals], tf.nest.map_structure(in_one_axis, stacked)


# Operations that TensorFlow counts as having a state, which nothing comes of.
_WITHOUT_EFFECTS = {
    *("Assert", "Case", "If", "PartitionedCall", "StatefulPartitionedCall", "While"),
    *("LookupTableFindV2", "LookupTableSizeV2", "Placeholder", "ReadVariableOp", "ResourceGather"),
}


def _has_effects(graph: Any) -> bool:
    """Return whether a graph writes to variables or draws numbers, so that the order matters."""
    definition = graph.as_graph_def()
    functions = definition.library.function
    used = {
        node.op for nodes in (definition.node, *(f.node_def for f in functions)) for node in nodes
    }
    return any(map(has_a_state, used - _WITHOUT_EFFECTS))


def _added(results: list[tuple[Any, Any]], join: Callable[[Any], Any]) -> tuple[Any, Any]:
    summed = [tf.add_n(x) for x in zip(*(a for a, _ in results), strict=True)]
    return summed, tf.nest.map_structure(lambda *x: join(x), *(b for _, b in results))


def _traced(function: Callable[[Any], Any], tasks: Tasks, specs: Any) -> Any:
    return tf.function(_told(function), autograph=False).get_concrete_function(tasks, specs)


def _told(function: Callable[[Any], Any]) -> Callable[[Tasks, Any], Any]:
    def told(tasks: Tasks, inputs: Any) -> Any:
        with _are_current(tasks):
            return function(inputs)

    return told


@contextlib.contextmanager
def _are_current(tasks: Tasks) -> Iterator[None]:
    token = _TASKS.set(tasks)
    try:
        yield
    finally:
        _TASKS.reset(token)


def _task(inputs: Any, i: Any) -> Any:
    return tf.nest.map_structure(lambda x: x[i], inputs)
