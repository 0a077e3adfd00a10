"""Weights of classes, as weights of the queries.

Keras makes weights of examples out of those of classes itself, and reads labels `[tasks, queries]`
as one-hot rows: it would weigh each task by the number of its query with the largest label.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.losses import of_class_numbers
from tfmeta.types import Nest, Tensor


def weighed(
    x: Any, y: Nest, sample_weight: Nest, class_weight: dict[int, float], loss: Any
) -> tuple[Any, Any]:
    """Return `x` and `sample_weight` with each query weighed by its class.

    Args:
        x: A `tf.data.Dataset` of `(inputs, targets)`, or inputs that `y` is given beside.
        y: Targets `[tasks, queries]`, one-hot rows `[tasks, queries, classes]`, or `None`.
        sample_weight: Must be `None`.
        class_weight: Class numbers to weights; a class that is not there has the weight 1.
        loss: As given to `compile`.

    Raises:
        TypeError: If `class_weight` is no dict of numbers.
        ValueError: If there are `sample_weight` too, several outputs, or data of another kind.
    """
    table = _table(class_weight)
    numbers = of_class_numbers(loss)
    if isinstance(x, tf.data.Dataset):
        structure = x.element_spec
        _, targets, weights = keras.utils.unpack_x_y_sample_weight(structure)
        _check(targets, weights)
        return x.map(lambda x, y: (x, y, _weights_of(y, table, numbers))), None
    _check(y, sample_weight)
    return x, _weights_of(tf.convert_to_tensor(y), table, numbers).numpy()


def _table(class_weight: Any) -> Any:
    if (
        not isinstance(class_weight, dict)
        or not all(
            isinstance(key, int | np.integer) and isinstance(weight, int | float | np.number)
            for key, weight in class_weight.items()
        )
        or min((*class_weight, *class_weight.values()), default=0) < 0
    ):
        raise TypeError(
            "`class_weight` must be a dict of class numbers and weights, both at least 0. "
            f"Received: class_weight={class_weight!r}"
        )
    every = range(max(class_weight, default=0) + 1)
    return tf.constant([class_weight.get(i, 1.0) for i in every], keras.config.floatx())


def _check(targets: Nest, sample_weight: Nest) -> None:
    if sample_weight is not None:
        raise ValueError(
            "`class_weight` and `sample_weight` cannot both be given: multiply them and give "
            "`sample_weight`."
        )
    if targets is None or keras.tree.is_nested(targets):
        raise ValueError(
            "`class_weight` must be given with targets of one output, in a tf.data.Dataset of "
            "(inputs, targets) or as `y`; for other data give `sample_weight` [tasks, queries]. "
            f"Received: targets of type {type(targets).__name__}"
        )


def _weights_of(labels: Tensor, table: Any, numbers: bool) -> Any:
    """Return the weight of each label: of class numbers, or of one-hot rows."""
    if not numbers and len(labels.shape) > 2 and labels.shape[-1] != 1:
        labels = tf.argmax(labels, axis=-1)
    elif len(labels.shape) > 2 and labels.shape[-1] == 1:
        labels = tf.squeeze(labels, axis=-1)
    labels = tf.cast(labels, tf.int32)
    known = (labels >= 0) & (labels < len(table))
    return tf.where(known, tf.gather(table, tf.where(known, labels, 0)), 1)
