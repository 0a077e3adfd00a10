"""Episodes that differ in size: examples that only fill up a meta-batch, and how they are left out.

Where the tasks of a meta-batch have different ways or shots, `inputs` have `support_mask`
`[tasks, ways*shots]` and `query_mask` `[tasks, ways*queries]`, true where there is an example;
labels are -1 elsewhere. Examples without labels, where there are any, have `unlabelled_mask`
`[tasks, u]` likewise. Padding is taken away before anything is computed, so that neither losses
nor batch normalisation nor any other layer can see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfmeta.notes import keeping_notes
from tfmeta.types import Inputs, Nest, Tensor

MASKS = ("support_mask", "query_mask")
# Of what each mask is.
_MASKED = {"support_x": MASKS[0], "query_x": MASKS[1], "unlabelled_x": "unlabelled_mask"}


def is_padded(inputs: Any) -> bool:
    """Return whether a meta-batch, or a task of one, has examples that only fill it up."""
    return isinstance(inputs, Mapping) and "query_mask" in inputs


def masks_of(inputs: Any) -> dict[str, str]:
    """Return for each part of a meta-batch that holds examples, by name, how its mask is called."""
    return {part: mask for part, mask in _MASKED.items() if inputs.get(part) is not None}


def without_padding(mask: Tensor, *values: Nest) -> list[Any]:
    """Return the rows of nests of `[*mask.shape, ...]` where `mask` is true, in one axis."""
    return [keeping_notes(lambda x: tf.boolean_mask(x, mask), value) for value in values]


def real_task(x: Inputs, *others: Any) -> list[Any]:
    """Return one task without its padding.

    Args:
        x: `support_x`, `support_y`, `query_x` and, where it is padded, the two masks.
        *others: Nests of `[queries, ...]`, or `None`: query labels, sample weights.

    Returns:
        `x` without masks, and the others.
    """
    if not is_padded(x):
        return [x, *others]
    support_x, support_y = without_padding(x["support_mask"], x["support_x"], x["support_y"])
    query_x, *rest = without_padding(x["query_mask"], x["query_x"], *others)
    return [{"support_x": support_x, "support_y": support_y, "query_x": query_x}, *rest]


def most_ways(inputs: Inputs) -> Any:
    """Return how many classes a task of a padded meta-batch has at most, a tensor; or `None`."""
    labels = inputs["support_y"]
    if not is_padded(inputs) or tf.nest.is_nested(labels) or labels.dtype.is_floating:
        return None
    return tf.cast(tf.reduce_max(labels), tf.int32) + 1


def put_back(mask: Tensor, values: Nest, columns: Tensor | None = None) -> Any:
    """Return `[*mask.shape, ...]` with the rows of `values` where `mask` is true, zeros elsewhere.

    Args:
        mask: What `without_padding` was given, or `None` where there was no padding.
        values: A nest of `[rows, ...]`.
        columns: How many columns all tasks shall have where each has as many as classes; those of
            other tasks' classes get a logit that is never the largest.
    """
    if mask is None:
        return values
    places = tf.where(mask)

    def put(rows: Tensor) -> Any:
        if columns is not None and rows.shape[-1] is None and rows.dtype.is_floating:
            others = [[0, 0]] * (len(rows.shape) - 1) + [[0, columns - tf.shape(rows)[-1]]]
            rows = tf.pad(rows, others, constant_values=rows.dtype.min / 2)
        size = tf.concat([tf.shape(mask), tf.shape(rows)[1:]], 0)
        placed = tf.scatter_nd(places, rows, tf.cast(size, places.dtype))
        return tf.ensure_shape(placed, [*mask.shape, *rows.shape[1:]])

    return keeping_notes(put, values)
