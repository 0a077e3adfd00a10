"""Private names of TensorFlow: what each is needed for, and why no public one will do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.client import device_lib
from tensorflow.python.framework import op_def_registry, ops
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

__all__ = [
    "give_cardinality",
    "gradient_of",
    "has_a_state",
    "in_xla",
    "looking_up_gradients",
    "memory_of_gpus",
    "one_of_many",
    "worker_of",
]


def in_xla() -> bool:
    """Return whether the graph that is being traced is XLA's to compile.

    One that is exported, and compiled where it is loaded, is not known to be. TensorFlow tells
    nobody: its own layers ask in the same way.
    """
    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def one_of_many(compiled: Any) -> Any:
    """Return a `tf.function` whose tracings are not taken for those of another.

    TensorFlow counts them by the code of the Python function, so that from the fifth learner on
    the first call of each would be warned of as tracing anew. There is no public way to tell.
    """
    compiled._omit_frequent_tracing_warning = True
    return compiled


def has_a_state(operation: str) -> bool:
    """Return whether TensorFlow counts a kind of operation, by its name, as having a state.

    `tf.Operation` has its definition for operations of the outermost graph only, and not for those
    of functions within it.
    """
    kind = op_def_registry.get(operation)
    return kind is not None and bool(kind.is_stateful)


def memory_of_gpus() -> list[int]:
    """Return how many bytes TensorFlow may take on each GPU.

    `tf.config.experimental.get_memory_info` has what it has taken, and not how much there is.
    """
    devices = device_lib.list_local_devices()
    return [device.memory_limit for device in devices if device.device_type == "GPU"]


def worker_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Return which worker of a strategy this process is, and how many there are.

    `cluster_resolver` counts chiefs and workers apart, as the strategy's exchanges don't.
    """
    extended = strategy.extended
    if getattr(extended, "_num_workers", 1) == 1:
        return 0, 1
    return extended._id_in_cluster, extended._num_workers


def give_cardinality(data: Any, cardinality: int) -> None:
    """Tell `fit` the length of a distributed data set, which it may not know or know otherwise."""
    data._cardinality = cardinality


def gradient_of(operation: str) -> Any:
    """Return TensorFlow's function for the gradient of a kind of operation, by its name."""
    return ops.gradient_registry.lookup(operation)


@contextlib.contextmanager
def looking_up_gradients(lookup: Callable[[str], Any]) -> Iterator[None]:
    """Have tapes take the gradients of operations that `lookup` returns meanwhile.

    `tf.Graph.gradient_override_map` counts for graphs only, and not for tapes.
    """
    original = ops._gradient_registry
    ops._gradient_registry = _Registry(lookup)
    try:
        yield
    finally:
        ops._gradient_registry = original


class _Registry:
    """What TensorFlow asks for the gradient of an operation."""

    def __init__(self, lookup: Callable[[str], Any]) -> None:
        self.lookup = lookup
