"""SimpleShot: nearest centroids of centred, normalised embeddings.

Wang, Chao, Weinberger and van der Maaten, *SimpleShot: Revisiting Nearest-Neighbor Classification
for Few-Shot Learning*, 2019.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.distribution import replicas_here, summed
from tfmeta.ops import prototypes, squared_euclidean
from tfmeta.types import Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class SimpleShot(EmbeddingLearner):
    """Classify queries by their nearest class mean, on embeddings that are centred and of length 1.

    With the mean m of all embeddings that `fit` has seen, each embedding z becomes
    `(z − m) / ‖z − m‖`; the logits are `−‖z − c_k‖²` with the class means c_k, as in a Prototypical
    Network. It is meant for an encoder that was trained before: `fit` then has one thing to do, the
    mean m, for which one epoch over a few hundred episodes is plenty. An encoder with trainable
    weights is trained as well, and m is then the mean over the whole training.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`, trainable or frozen.
        centre: Whether m is taken away. Before any `fit` it is zero.
        normalize: Whether embeddings are scaled to length 1.
        **kwargs: Those of `PrototypicalNetwork`.

    Raises:
        TypeError: If `encoder` is not a Keras model.

    Example:
        ```python
        encoder.trainable = False
        learner = tfmeta.SimpleShot(encoder)
        learner.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        learner.fit(sampler.dataset(), steps_per_epoch=200)
        print(tfmeta.evaluate(learner, test_sampler))
        ```
    """

    of_classes: tuple[str, ...] = ("prototypes",)

    def __init__(
        self, encoder: keras.Model, centre: bool = True, normalize: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(encoder, **kwargs)
        self.centre = centre
        self.normalize = normalize
        self.gathers = centre

    def build(self, input_shape: Any) -> None:
        """Build the encoder, and the mean of its embeddings."""
        super().build(input_shape)
        size = self.outputs_of_model().shape[-1]
        self.mean = self.add_weight(
            shape=(size,), initializer="zeros", trainable=False, name="mean"
        )
        # As a number of the learner's precision, which sums over replicas leave alone.
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen")

    def gather(self, embedded: Tensor) -> None:
        """Move the mean towards that of more embeddings, as if it were of all of them at once."""
        if not self.centre:
            return
        n = tf.cast(tf.shape(embedded)[0], self.variable_dtype)
        step = tf.reduce_sum(embedded - self.mean, 0)
        if replicas_here() > 1:
            n, step = summed([n, step])
        self.seen.assign_add(n)
        self.mean.assign_add(step / self.seen)

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return the class means `[tasks, ways, d]`."""
        return {"prototypes": prototypes(self._transformed(embedded), labels, ways)}

    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        return -squared_euclidean(self._transformed(embedded), state["prototypes"])

    def _transformed(self, embedded: Tensor) -> Tensor:
        if self.centre:
            embedded -= tf.cast(self.mean, embedded.dtype)
        return tf.math.l2_normalize(embedded, -1) if self.normalize else embedded
