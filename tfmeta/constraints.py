"""What Keras's constraints make of weights behind each step of the inner loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfmeta.functional import TRACING
from tfmeta.inner_optimizers import root
from tfmeta.types import Params

Constraint = Callable[[Any], Any]


def constrained(params: Params, constraints: Sequence[Constraint | None]) -> Params:
    """Return weights projected as Keras's optimizers do, `w <- constraint(w)`, differentiably."""
    with TRACING, _exact_roots():
        return [
            p if project is None else tf.cast(project(p), p.dtype)
            for p, project in zip(params, constraints, strict=True)
        ]


@contextlib.contextmanager
def _exact_roots() -> Iterator[None]:
    """Let the root of 0 have the derivative 0 while the context is open.

    Keras takes norms by it. That of weights that are all zero, as biases are at first, would have
    no number as its derivative, and neither would the outer loss.
    """
    original = tf.math.sqrt
    tf.math.sqrt = root
    try:
        yield
    finally:
        tf.math.sqrt = original
