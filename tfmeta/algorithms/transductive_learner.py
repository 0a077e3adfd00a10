"""`TransductiveLearner`: what heads have in common that answer all queries of a task together."""

from __future__ import annotations

import abc

import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.types import Tensor


class TransductiveLearner(EmbeddingLearner):
    """A head on the labelled examples of a task and all its queries together.

    An answer depends on the queries that are asked with it: in an adapted model, and in an export,
    on those of the same call. A new one supplies `answer_together`; what it is given of a support
    set are the embedded `examples` `[tasks, n, d]` and their `votes` `[tasks, n, ways]`, the labels
    one-hot, of which a row of zeros stands for what only fills up a task.
    """

    transductive = True

    @abc.abstractmethod
    def answer_together(self, state: dict[str, Tensor], embedded: Tensor, real: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`, as `EmbeddingLearner.answer_together`."""

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return the `examples` `[tasks, n, d]`, and their `votes` `[tasks, n, ways]`."""
        return {"examples": embedded, "votes": tf.one_hot(labels, ways, dtype=embedded.dtype)}

    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`, all queries counting."""
        return self.answer_together(state, embedded, tf.ones_like(embedded[..., 0]))
