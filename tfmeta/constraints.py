"""What Keras's constraints make of weights after each step of the inner loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfmeta.foreign.derivatives import TRACING, replaced
from tfmeta.inner_optimizers import root
from tfmeta.types import Params

Constraint = Callable[[Any], Any]


def constrained(params: Params, constraints: Sequence[Constraint | None]) -> Params:
    """Return weights projected as Keras's optimizers do, `w <- constraint(w)`, differentiably."""
    # Keras takes norms by this root. Of weights that are all zero, as biases are at first, it would
    # have no number as its derivative, and neither would the outer loss.
    with TRACING, replaced(tf.math, "sqrt", root):
        return [
            p if project is None else tf.cast(project(p), p.dtype)
            for p, project in zip(params, constraints, strict=True)
        ]
