"""The embedding that a learner has of examples, whatever it does with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.foreign.of_keras import graph_of, maker_of
from tfmeta.functional import Called
from tfmeta.meta_learner import MetaLearner
from tfmeta.same_parts import with_same_parts
from tfmeta.task_map import in_one_axis, map_tasks
from tfmeta.types import Tensor

# Of support and query sets `[tasks, n, ...]`: `[tasks, n, d]` each.
Embed: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_AFTER_THE_LAST = (keras.layers.Activation, keras.layers.Softmax, keras.layers.Identity)


def embedding_of(learner: MetaLearner) -> Embed | str:
    """Return what embeds support and query sets before any adaptation, or why nothing does.

    That is the encoder of a learner that has one. Of a classifier with an inner loop it is what its
    last dense layer reads, at the initial weights, normalised as the learner has its batches.

    Args:
        learner: A learner that is built.
    """
    if isinstance(learner, EmbeddingLearner):
        outputs = learner.outputs_of_model()
        if tf.nest.is_nested(outputs) or len(outputs.shape) != 2:
            return f"model {learner.model.name!r} returns no vectors [n, d]"
        return _at_once(lambda x: learner.embed(x, training=False, model=learner.encoder))
    if not isinstance(learner, GradientBased):
        return f"{type(learner).__name__} does not say which part of its model is an embedding"
    if learner.head_weights():
        return _before_adaptation(learner, learner.model)
    found = _read_by_the_last(learner.model)
    return found if isinstance(found, str) else _before_adaptation(learner, found)


def of_model(model: keras.Model) -> Embed:
    """Return what embeds with a model as it is, batch normalisation with its moving averages."""
    return _at_once(lambda x: tf.cast(model(x, training=False), tf.float32))


def _at_once(embed: Callable[[Tensor], Tensor]) -> Embed:
    """Return what embeds all examples of all tasks in one call.

    Args:
        embed: Of `[n, ...]`, `[n, d]`.
    """

    def embed_both(support_x: Tensor, query_x: Tensor) -> tuple[Tensor, Tensor]:
        shots = tf.shape(support_x)[1]
        both = tf.concat([support_x, query_x], 1)
        z = embed(in_one_axis(both))
        if len(z.shape) != 2:
            raise ValueError(
                "An encoder must return one vector [n, d] for each example. Received: "
                f"shape={tuple(z.shape)}"
            )
        z = tf.reshape(z, [*tf.unstack(tf.shape(both)[:2]), z.shape[-1]])
        return z[:, :shots], z[:, shots:]

    return embed_both


def _before_adaptation(learner: GradientBased, encoder: keras.Model) -> Embed:
    """Return what embeds with a part of a learner's model, one task after another."""

    def forward(*args: Any, step: Any = 0, **kwargs: Any) -> Called:
        # Without the heads that methods of the family have.
        return GradientBased.forward(same, *args, **{**kwargs, "step": 0})

    same = with_same_parts(learner, model=encoder, forward=forward)

    def one_task(task: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        support_x, query_x = task
        weights, state = GradientBased.start(same, support_x, None, training=False)
        support = forward(
            weights, state, support_x, training=False, statistics=same.mode.inner
        ).outputs
        at = GradientBased.task_state(same, weights, state, support_x, training=False)
        query = GradientBased.query(same, at, query_x, training=False).outputs
        return tuple(tf.cast(z, learner.variable_dtype) for z in (support, query))

    return lambda support_x, query_x: map_tasks(one_task, (support_x, query_x), in_flight=8)


def _read_by_the_last(model: keras.Model) -> keras.Model | str:
    """Return the part of a classifier that its last dense layer reads, or why there is none."""
    unknown = f"in model {model.name!r} no last dense layer is plainly found"
    graph = graph_of(model)
    if graph is None or len(graph.outputs) != 1 or len(graph.inputs) != 1:
        return unknown
    maker, given, _ = maker_of(graph.outputs[0])
    while isinstance(maker, _AFTER_THE_LAST):
        maker, given, _ = maker_of(given[0])
    if not isinstance(maker, keras.layers.Dense) or len(given) != 1 or len(given[0].shape) != 2:
        return unknown
    read = given[0]
    before, above, _ = maker_of(read)
    while isinstance(before, keras.layers.Flatten | keras.layers.Reshape):
        before, above, _ = maker_of(above[0])
    if isinstance(before, keras.layers.InputLayer):
        return f"the last dense layer of model {model.name!r} reads the raw inputs"
    return keras.Model(graph.inputs, read, name="embedding")
