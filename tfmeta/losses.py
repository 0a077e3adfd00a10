"""The compiled loss of each of several tasks."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

# Losses that are the mean, or sum, of what each example has by itself.
_BY_EXAMPLE = {
    keras.losses.BinaryCrossentropy: keras.losses.binary_crossentropy,
    keras.losses.BinaryFocalCrossentropy: keras.losses.binary_focal_crossentropy,
    keras.losses.CategoricalCrossentropy: keras.losses.categorical_crossentropy,
    keras.losses.CategoricalFocalCrossentropy: keras.losses.categorical_focal_crossentropy,
    keras.losses.CategoricalHinge: keras.losses.categorical_hinge,
    keras.losses.Hinge: keras.losses.hinge,
    keras.losses.Huber: keras.losses.huber,
    keras.losses.KLDivergence: keras.losses.kl_divergence,
    keras.losses.LogCosh: keras.losses.log_cosh,
    keras.losses.MeanAbsoluteError: keras.losses.mean_absolute_error,
    keras.losses.MeanSquaredError: keras.losses.mean_squared_error,
    keras.losses.Poisson: keras.losses.poisson,
    keras.losses.SparseCategoricalCrossentropy: keras.losses.sparse_categorical_crossentropy,
    keras.losses.SquaredHinge: keras.losses.squared_hinge,
}


def of_class_numbers(loss: Any) -> bool:
    """Return whether a loss, as given to `compile`, is one of integer class labels."""
    return isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or loss in (
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
    )


def task_losses(
    learner: keras.Model, x: Any, y: Any, y_pred: Any, sample_weight: Any, *, training: bool
) -> Any:
    """Return what `learner.compute_loss` gives for each task, `[tasks]`.

    Args:
        learner: A compiled model.
        x: A nest of `[tasks, ...]`, or `None`.
        y: Labels, a nest of `[tasks, n, ...]`.
        y_pred: Predictions, a nest of `[tasks, n, ...]`.
        sample_weight: A nest of `[tasks, n]`, or `None`.
        training: The Keras flag.
    """
    by_example = None if sample_weight is not None else _by_example(learner)
    if by_example is None or tf.nest.is_nested(y_pred):
        # Any loss at all, at the price of as many operations as there are tasks.
        tasks = tf.nest.flatten(y_pred)[0].shape[0]
        given = (x, y, y_pred, sample_weight)

        def of(task: int) -> Any:
            return tf.nest.map_structure(lambda z: None if z is None else z[task], given)

        each = [of(task) for task in range(tasks)]
        return tf.stack([learner.compute_loss(*parts, training=training) for parts in each])
    flat = [tf.reshape(part, tf.concat([[-1], tf.shape(part)[2:]], 0)) for part in (y, y_pred)]
    values = tf.reshape(by_example(*flat), [y_pred.shape[0], -1])
    summed = getattr(learner.loss, "reduction", "mean") == "sum"
    return tf.reduce_sum(values, axis=1) if summed else tf.reduce_mean(values, axis=1)


def _by_example(learner: Any) -> Any:
    """Return the compiled loss without its reduction, if it treats examples by themselves."""
    if learner.loss_weights is not None:
        return None
    loss = keras.losses.get(learner.loss) if isinstance(learner.loss, str) else learner.loss
    for kind, function in _BY_EXAMPLE.items():
        if loss is function:
            return kind(reduction="none")
        if type(loss) is kind:
            return kind.from_config({**loss.get_config(), "reduction": "none"})
    return None
