"""Prototypical Networks.

Snell, Swersky and Zemel, *Prototypical Networks for Few-shot Learning*, NeurIPS 2017.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.algorithms.prototype_head import model_of_prototypes
from tfmeta.checks import check_positive
from tfmeta.choices import DISTANCES
from tfmeta.copies import copy_of
from tfmeta.ops import cosine_similarity, prototypes, squared_euclidean
from tfmeta.types import Nest, Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class PrototypicalNetwork(EmbeddingLearner):
    """Classify queries by their nearest class mean in a learnt embedding.

    `c_k` is the mean embedding of class k's support examples; the logits are `−t ‖f(x) − c_k‖²`
    or `t cos(f(x), c_k)` with the temperature t. Ways and shots are free: training with more ways
    than testing is the usual practice. In training, support and query are embedded together, so
    batch normalisation sees one batch, as published; evaluation uses its moving averages. They lag
    1/(1 − momentum) steps behind the weights: Keras's momentum of 0.99 needs 500 steps, and a
    network of your own with `keras.layers.BatchNormalization(momentum=0.9)` 50. `fit` says so when
    a training was too short.

    XLA must know the number of ways beforehand. With `jit_compile=True` there are therefore as many
    logits as support examples; those of classes that a task does not have are about −1e38.

    Args:
        encoder: A `keras.Model` `[n, ...]` → `[n, d]`.
        distance: `"squared_euclidean"` or `"cosine"`.
        temperature: t, positive.
        learn_temperature: Whether the outer loop trains t. Advisable with `"cosine"`, whose logits
            lie in `[−t, t]`.
        **kwargs: `name` and `dtype`; and `task_axis`, of which `"loop"` calls the encoder's layers
            where the others take the faster rules for them, if there is one for each.

    Raises:
        TypeError: If `encoder` is not a Keras model.
        ValueError: If a value is out of range.

    Example:
        ```python
        learner = tfmeta.PrototypicalNetwork(tfmeta.models.conv4((28, 28, 1)))
        learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                        metrics=["accuracy"])
        learner.fit(sampler.dataset(), steps_per_epoch=100, epochs=20)
        ```
    """

    of_classes: tuple[str, ...] = ("prototypes",)

    def __init__(
        self,
        encoder: keras.Model,
        distance: str = "squared_euclidean",
        temperature: float = 1.0,
        *,
        learn_temperature: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(encoder, **kwargs)
        if distance not in DISTANCES:
            raise ValueError(
                f"`distance` must be 'squared_euclidean' or 'cosine'. Received: {distance=}"
            )
        check_positive("temperature", temperature)
        self.distance = distance
        self.initial_temperature = temperature
        self.learn_temperature = learn_temperature
        self.temperature = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(temperature),
            trainable=learn_temperature,
            constraint="non_neg",
            name="temperature",
        )

    def learn(self, embedded: Tensor, labels: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """Return the prototypes `[tasks, ways, d]`."""
        return {"prototypes": prototypes(embedded, labels, ways)}

    def answer(self, state: dict[str, Tensor], embedded: Tensor) -> Tensor:
        """Return the logits `[tasks, queries, ways]`."""
        means = state["prototypes"]
        if self.distance == "cosine":
            similarity = cosine_similarity(embedded, means)
        else:
            similarity = -squared_euclidean(embedded, means)
        return tf.cast(self.temperature, similarity.dtype) * similarity

    def adapted_model(self, state: Nest) -> keras.Model:
        """Return encoder and head as one model of Keras's own layers, with the same logits.

        An encoder that cannot be copied is called as the learner calls it, with weights of its own.
        """
        # Under XLA the prototypes of absent classes are there too.
        means = tf.boolean_mask(state["prototypes"], state["present"])
        encoder = copy_of(self.model)
        if encoder is None:
            return super().adapted_model({"prototypes": means})
        return model_of_prototypes(
            encoder,
            self.example,
            means,
            self.distance,
            self.temperature,
            of_classes=bool(self.of_classes),
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {**super().get_config(), "temperature": self.initial_temperature}
