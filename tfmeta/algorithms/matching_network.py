"""Matching Networks, with and without full context embeddings.

Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, *Matching Networks for One Shot Learning*,
NeurIPS 2016.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.checks import check_count, check_positive
from tfmeta.ops import cosine_similarity
from tfmeta.types import Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class MatchingNetwork(EmbeddingLearner):
    """Classify queries by attention to the support examples.

    A query's attention to example i of the support set S is the softmax over S of
    `t cos(f(x), g(x_i))`, and the logit of class k is the logarithm of the sum of that attention
    over the examples of class k. Without full context f and g are the encoder.

    With full context they know S. With the encoder's embeddings z_i, `g(x_i)` is
    `z_i + h→_i + h←_i`, of an LSTM that reads the support set forwards and one that reads it
    backwards: in the order in which the examples are given, on which predictions depend therefore,
    as in the paper. Samplers give class after class. From a query's z, `processing_steps` steps of
    an LSTM that attends to S lead to f(x): from h = c = 0, in each step

        `r = Σ_i softmax_i(h · g(x_i)) g(x_i)`;  `h, c = LSTM([z, r], h, c)`;  `h = z + h`

    Each query is computed by itself. The LSTMs are trained, also with an encoder that is frozen.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen.
        full_context: Whether f and g know the support set.
        processing_steps: How many steps lead to f.
        temperature: t, positive. The paper has 1; cosines alone are small for logits, and with a
            larger one training is faster.
        **kwargs: Those of `PrototypicalNetwork`.

    Raises:
        TypeError: If `encoder` is not a Keras model, or `processing_steps` is no integer.
        ValueError: If `processing_steps` is less than 1, or `temperature` is not positive.

    Example:
        ```python
        learner = tfmeta.MatchingNetwork(tfmeta.models.conv4((28, 28, 1)), full_context=True)
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                        metrics=["accuracy"])
        learner.fit(sampler.dataset(8), steps_per_epoch=100, epochs=20)
        ```
    """

    def __init__(
        self,
        encoder: keras.Model,
        full_context: bool = False,
        *,
        processing_steps: int = 5,
        temperature: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        check_positive("temperature", temperature)
        self.full_context = full_context
        self.processing_steps = check_count("processing_steps", processing_steps)
        self.temperature = temperature

    def build(self, input_shape: Any) -> None:
        """Build the encoder, and the LSTMs for its embeddings."""
        super().build(input_shape)
        if self.full_context:
            size, dtype = self.outputs_of_model().shape[-1], self.variable_dtype
            # Padding may be anywhere, where cuDNN's takes it at the end alone.
            lstm = keras.layers.LSTM(size, return_sequences=True, use_cudnn=False, dtype=dtype)
            self.reading = keras.layers.Bidirectional(lstm, merge_mode="sum", dtype=dtype)
            self.reading.build((None, None, size))
            self.attending = keras.layers.LSTMCell(size, dtype=dtype)
            self.attending.build((None, 2 * size))

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return g of the `examples` `[tasks, n, d]`, and their classes, `votes`.

        These are one-hot `[tasks, n, ways]`.
        """
        if self.full_context:
            embedded += self.reading(embedded, mask=labels >= 0)
        return {"examples": embedded, "votes": tf.one_hot(labels, ways, dtype=embedded.dtype)}

    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        examples, votes = state["examples"], state["votes"] > 0
        # What only fills up a task has no vote.
        real = tf.expand_dims(tf.reduce_any(votes, -1), 1)
        if self.full_context:
            embedded = self._in_context(embedded, examples, real)
        likeness = self.temperature * cosine_similarity(embedded, examples)
        never = likeness.dtype.min / 2
        of_class = tf.where(tf.expand_dims(votes, 1), tf.expand_dims(likeness, -1), never)
        every = tf.reduce_logsumexp(tf.where(real, likeness, never), -1, keepdims=True)
        return tf.reduce_logsumexp(of_class, 2) - every

    def _in_context(self, z: Tensor, examples: Tensor, real: Tensor) -> Tensor:
        """Return f of queries `[tasks, q, d]`, which attend to g of the support set."""
        cell, lowest = self.attending, z.dtype.min / 2
        # Recurrent cells take rows.
        flat = tf.reshape(z, [-1, z.shape[-1]])
        h, c = tf.zeros_like(flat), tf.zeros_like(flat)
        for _ in range(self.processing_steps):
            scores = tf.matmul(tf.reshape(h, tf.shape(z)), examples, transpose_b=True)
            attention = tf.nn.softmax(tf.where(real, scores, lowest))
            read = tf.reshape(tf.matmul(attention, examples), tf.shape(flat))
            h, (_, c) = cell(tf.concat([flat, read], -1), [h, c])
            h += flat
        return tf.reshape(h, tf.shape(z))
