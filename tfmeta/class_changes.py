"""One class more or less for a model that has adapted, with the numbers of adapting anew."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.algorithms.prototype_head import (
    Prototypes,
    check_embedded,
    check_label,
    model_of_prototypes,
    prototypes_of,
    with_mean,
    without_row,
)
from tfmeta.checks import check_count
from tfmeta.copies import copy_of
from tfmeta.inputs import (
    arrays,
    check_examples,
    check_finite,
    check_ids,
    example_of,
    refusing_unscaled,
)
from tfmeta.task_model import TaskModel
from tfmeta.types import Nest, Tensor


def add_class(adapted: keras.Model, examples: Nest) -> keras.Model:
    """Return a model that knows one class more, without the examples of the others.

    It predicts what `learner.adapt` would of the examples of all classes: a class mean is that of
    its own examples, and nearest neighbours and ridge regression keep the embeddings that they are
    of. The learner is not needed, and the model may be one that was saved and loaded.

    Args:
        adapted: What `adapt` returned of `PrototypicalNetwork`, `SimpleShot`, `KNearestNeighbors`
            or `R2D2`. It stays as it is.
        examples: `[n, ...]`, those of the new class, as for `adapt`.

    Returns:
        A new model, not compiled, whose last output is the new class.

    Raises:
        TypeError: If `examples` are unscaled 8-bit data, or of another type that would be misread.
        ValueError: If the model's head cannot take one class more, `examples` have another shape
            than the model takes, are none, or are NaN or infinite, or so are their embeddings.

    Example:
        >>> adapted = learner.adapt(support_x, support_y)          # classes 0, 1 and 2
        >>> tfmeta.add_class(adapted, images_of_another).predict(queries).shape
        (15, 4)
    """
    model, example, head = _parts(adapted)
    x = arrays("examples", examples, example)
    if len({len(part) if part.ndim else 0 for part in keras.tree.flatten(x)} | {0}) != 2:
        shapes = keras.tree.map_structure(np.shape, x)
        raise ValueError(f"`examples` must be one or more. Received: shapes {shapes}")
    check_examples(x, model, example, "examples")
    check_ids(x, model, example, "examples")
    check_finite("examples", x)
    x = keras.tree.map_structure(tf.constant, x)
    if head is None:
        new = adapted.changed(lambda learner, state: _with_class(learner, state, x))
    else:
        new = _with(head, example, with_mean(head, x))
    return refusing_unscaled(new, model, example)


def remove_class(adapted: keras.Model, label: int) -> keras.Model:
    """Return a model that knows one class less: what `adapt` gives without its examples.

    Args:
        adapted: As for `add_class`. It stays as it is.
        label: The class, from 0 on; later classes move up by one.

    Returns:
        A new model, not compiled.

    Raises:
        TypeError: If `label` is no integer.
        ValueError: If the model's head cannot go without one class, there is no such class, or it
            is the only one.

    Example:
        >>> tfmeta.remove_class(adapted, 1).predict(queries).shape      # of classes 0, 1 and 2
        (15, 2)
    """
    model, example, head = _parts(adapted)
    label = check_count("label", label, 0)
    if head is None:
        new = adapted.changed(lambda learner, state: _without_class(learner, state, label))
    else:
        new = _with(head, example, without_row(head.means, label))
    return refusing_unscaled(new, model, example)


def _parts(adapted: Any) -> tuple[keras.Model, Nest, Prototypes | None]:
    """Return a model's encoder, what that takes, and a head of prototypes, if it is one."""
    learner = adapted.by() if isinstance(adapted, TaskModel) else None
    if isinstance(learner, EmbeddingLearner):
        return learner.model, learner.example, None
    head = prototypes_of(adapted) if isinstance(adapted, keras.Model) else None
    if head is None:
        received = type(learner or adapted).__name__
        raise ValueError(
            "`adapted` must be what `adapt` returned of a learner whose head takes classes one at "
            "a time, as PrototypicalNetwork, SimpleShot, KNearestNeighbors or R2D2. Received: a "
            f"model of {received}; adapt anew with the examples of all classes"
        )
    return head.encoder, example_of(head.encoder, None), head


def _with_class(learner: EmbeddingLearner, state: Nest, examples: Nest) -> Nest:
    """Return the state of a task with one class more, the last."""
    embedded = learner.embed(examples, training=False)
    check_embedded("examples", embedded)
    new = tf.zeros(len(embedded), tf.int32)
    if learner.of_classes:
        rows, more = _rows(learner, state), _learnt(learner, embedded, new)
        return {name: tf.concat([rows[name], more[name]], 0) for name in rows}
    known, labels = _known(learner, state)
    labels = tf.concat([labels, new + tf.reduce_max(labels) + 1], 0)
    return _learnt(learner, tf.concat([known, embedded], 0), labels)


def _without_class(learner: EmbeddingLearner, state: Nest, label: int) -> Nest:
    """Return the state of a task without a class, where later ones have moved up by one."""
    if learner.of_classes:
        return {name: without_row(x, label) for name, x in _rows(learner, state).items()}
    known, labels = _known(learner, state)
    check_label(label, int(tf.reduce_max(labels)) + 1)
    stays = labels != label
    known, labels = tf.boolean_mask(known, stays), tf.boolean_mask(labels, stays)
    return _learnt(learner, known, tf.where(labels > label, labels - 1, labels))


def _rows(learner: EmbeddingLearner, state: Nest) -> dict[str, Tensor]:
    """Return the rows of classes that are there; under XLA there are others."""
    rows = {name: state[name] for name in learner.of_classes}
    if "present" not in state:
        return rows
    return {name: tf.boolean_mask(x, state["present"]) for name, x in rows.items()}


def _known(learner: EmbeddingLearner, state: Nest) -> tuple[Tensor, Tensor]:
    """Return the embeddings that a head keeps, and their labels."""
    kept = learner.kept(state)
    if kept is None:
        raise ValueError(
            "`adapted` must have a head that takes classes one at a time. Received: that of "
            f"{type(learner).__name__}; adapt anew with the examples of all classes"
        )
    return kept[0], tf.cast(kept[1], tf.int32)


def _learnt(learner: EmbeddingLearner, embedded: Tensor, labels: Tensor) -> Nest:
    """Return what is learnt for one task."""
    state = learner.learn(embedded[None], labels[None], tf.reduce_max(labels) + 1)
    return tf.nest.map_structure(lambda x: x[0], state)


def _with(head: Prototypes, example: Nest, means: Tensor) -> keras.Model:
    # So that nothing that becomes of one model reaches the other.
    encoder = copy_of(head.encoder) or head.encoder
    return model_of_prototypes(encoder, example, means, head.distance, head.temperature)
