"""The slots of an inner optimizer as weights of a learner, which pass from one task to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmeta.algorithms.rates import Filled


def slots_of(learner: Any) -> list[Any]:
    """Return new weights of a learner for the slots of its inner optimizer, as it begins."""
    with tf.init_scope():
        shapes = [shape for _, shape in learner.adapted_weights()]
        empty = learner.rule.init([tf.zeros(shape, learner.variable_dtype) for shape in shapes])
        start = [np.asarray(slot) for slot in empty]
    return [
        learner.add_weight(
            shape=slot.shape,
            dtype=slot.dtype.name,
            initializer=Filled(slot),
            trainable=False,
            name=f"slot_{i}",
        )
        for i, slot in enumerate(start)
    ]
