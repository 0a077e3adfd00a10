"""Which statistics batch normalisation uses for the queries of a task: one class a mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmeta.functional import Called, Statistics
from tfmeta.task_map import map_tasks
from tfmeta.types import Nest


class Transductive:
    """Those of the batch at hand: the queries', all together. As published for MAML."""

    # Of the support set in an inner step, and of queries: see `tfmeta.functional.batch_norm_uses`.
    inner: Statistics = "batch"
    query: Statistics = "batch"
    # Whether several tasks can be computed side by side.
    packs = True
    # Whether a prediction depends on the queries beside it.
    transductive = True
    # Whether the moving statistics are kept in training, and differ by task afterwards.
    kept = False
    passed = False
    # Whether the model is called once more on the support set after the inner loop.
    settles = False
    # Whether queries are seen together with the support set.
    sees_support = False

    def outputs(self, call: Callable[[Any], Called], query_x: Nest, support_x: Nest) -> Called:
        """Return what a model makes of queries, given what calls it."""
        del support_x
        return call(query_x)


class Support(Transductive):
    """Those of the support set at the adapted weights."""

    query: Statistics = "stored"
    transductive = False
    passed = True
    settles = True


class Running(Transductive):
    """Moving averages in evaluation and the batch's in training, as in ordinary Keras training."""

    inner: Statistics = "training"
    query: Statistics = "training"
    packs = False
    transductive = False
    kept = True
    passed = True


class WithSupport(Transductive):
    """Those of the whole support set and the one query at hand."""

    packs = False
    transductive = False
    sees_support = True

    def outputs(self, call: Callable[[Any], Called], query_x: Nest, support_x: Nest) -> Called:
        """Call a model with each query after the whole support set; keep the query's part."""

        def one(query: Any) -> Any:
            together = tf.nest.map_structure(
                lambda s, q: tf.concat([s, q[None]], 0), support_x, query
            )
            called = call(together)
            outputs = tf.nest.map_structure(lambda x: x[-1], called.outputs)
            return outputs, called.state, [tf.convert_to_tensor(x) for x in called.activity_losses]

        query_x = tf.nest.map_structure(tf.convert_to_tensor, query_x)
        outputs, states, penalties = map_tasks(one, query_x)
        return Called(outputs, [x[-1] for x in states], [tf.reduce_mean(x) for x in penalties], [])


MODES: dict[str, Transductive] = {
    "transductive": Transductive(),
    "support": Support(),
    "with_support": WithSupport(),
    "running": Running(),
}
