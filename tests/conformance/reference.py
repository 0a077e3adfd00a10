"""What a learner must give, by Keras alone: an ordinary model, its loss, and nested tapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

RATE = 0.5


class Right(NamedTuple):
    """The right values for a meta-batch: one inner step for each task by itself.

    Attributes:
        losses: The query loss of each task at its adapted weights.
        gradients: Of their mean, for each weight; of their sum where `summed`.
        adapted: For each task its adapted weights.
        predictions: For each task its query predictions.
    """

    losses: np.ndarray
    gradients: list[np.ndarray]
    adapted: list[list[np.ndarray]]
    predictions: list[Any]


def right(
    model: keras.Model,
    loss: keras.losses.Loss,
    inputs: dict[str, Any],
    targets: Any,
    *,
    sample_weight: Any = None,
    first_order: bool = False,
    summed: bool = False,
) -> Right:
    """Adapt an ordinary model to each task, with the compiled loss object itself.

    Args:
        model: A built model, whose weights are the initialisation.
        loss: Called with the labels and predictions of one task, as Keras's own training calls it.
        inputs: A meta-batch, NumPy arrays.
        targets: `[tasks, queries, ...]`.
        sample_weight: `[tasks, queries, ...]`, or `None`.
        first_order: Take inner gradients as constants.
        summed: The outer loss is the sum over tasks, and not the mean.
    """
    theta = [tf.identity(v) for v in model.trainable_variables]

    def call(weights: list[Any], x: Any) -> Any:
        mapping = list(zip(model.trainable_variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return model(x, training=True)

    losses, adapted, predictions = [], [], []
    with tf.GradientTape() as outer:
        outer.watch(theta)
        for t in range(len(inputs["support_y"])):
            with tf.GradientTape() as inner:
                inner.watch(theta)
                support = loss(inputs["support_y"][t], call(theta, inputs["support_x"][t]))
            gradients = inner.gradient(support, theta)
            if first_order:
                gradients = [tf.stop_gradient(g) for g in gradients]
            new = [w - RATE * g for w, g in zip(theta, gradients, strict=True)]
            predicted = call(new, inputs["query_x"][t])
            weight = None if sample_weight is None else sample_weight[t]
            losses.append(tf.cast(loss(targets[t], predicted, weight), "float64"))
            adapted.append([w.numpy() for w in new])
            predictions.append(predicted.numpy())
        total = tf.add_n(losses) / (1 if summed else len(losses))
    found = outer.gradient(total, theta)
    return Right(
        np.array(losses), [tf.convert_to_tensor(g).numpy() for g in found], adapted, predictions
    )
