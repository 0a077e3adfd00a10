"""FEAT: prototypes that look at each other before queries are compared with them.

Ye, Hu, Zhan and Sha, *Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions*,
CVPR 2020.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.prototypical import PrototypicalNetwork
from tfmeta.checks import check_count
from tfmeta.types import Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class FEAT(PrototypicalNetwork):
    """Classify queries by the nearest class mean, the means being adapted to each other before.

    Of a task's class means c_k `[ways, d]`, one layer of a transformer makes
    `c'_k = LayerNorm(c_k + dropout(Attention(c_k; c_1 … c_ways)))`, in which each mean attends to
    all. The order of classes does not count, and any number of them goes. The logits are
    `−t ‖f(x) − c'_k‖²`, or `t cos(f(x), c'_k)`. Encoder and transformer are trained together;
    with a frozen encoder the transformer alone, which is how the paper's second stage may be done.

    The paper's loss has a second part, a contrastive regulariser; here the compiled loss is all.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen. The paper trains it as
            an ordinary classifier beforehand.
        heads: How many heads the attention has, each of d numbers.
        dropout: The share of the attention's outputs that is dropped in training, in `[0, 1)`.
        temperature: t, positive. The length of c'_k is about √d, hence a small number; the paper
            has 1/64 or 1/32.
        **kwargs: Others of `PrototypicalNetwork`.

    Raises:
        TypeError: If `encoder` is not a Keras model, or `heads` is no integer.
        ValueError: If a value is out of range.

    Example:
        ```python
        learner = tfmeta.FEAT(tfmeta.models.conv4((28, 28, 1)))
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                        metrics=["accuracy"])
        learner.fit(sampler.dataset(8), steps_per_epoch=100, epochs=20)
        ```
    """

    has_layers = True
    of_classes = ()  # each is made of the means of all classes

    def __init__(
        self,
        encoder: keras.Model,
        heads: int = 1,
        dropout: float = 0.5,
        temperature: float = 1 / 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, temperature=temperature, **kwargs)
        self.heads = check_count("heads", heads)
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={dropout!r}")
        self.dropout = dropout

    def build(self, input_shape: Any) -> None:
        """Build the encoder, and the transformer for its embeddings."""
        super().build(input_shape)
        size, dtype = self.outputs_of_model().shape[-1], self.variable_dtype
        self.attention = keras.layers.MultiHeadAttention(self.heads, size, dtype=dtype)
        self.attention.build((None, None, size), (None, None, size))
        self.dropping = keras.layers.Dropout(self.dropout, dtype=dtype)
        self.normalization = keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype)
        self.normalization.build((None, None, size))

    def learn(
        self, embedded: Tensor, labels: Tensor, ways: Tensor, *, training: bool = False
    ) -> dict[str, Tensor]:
        """Return the adapted prototypes `[tasks, ways, d]`."""
        means = super().learn(embedded, labels, ways)["prototypes"]
        # Nobody attends to a class that is not there.
        present = tf.reduce_any(tf.one_hot(labels, ways, True, False), 1)[:, None, :]
        attended = self.attention(means, means, attention_mask=present, training=training)
        adapted = means + self.dropping(attended, training=training)
        return {"prototypes": self.normalization(adapted)}

    def answer(self, state: dict[str, Tensor], embedded: Tensor, **_: Any) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        return super().answer(state, embedded)
