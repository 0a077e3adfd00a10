"""The compiled loss of each of several tasks; and the loss of a normal distribution."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfmeta.checks import check_at_least_zero, check_positive


@keras.saving.register_keras_serializable(package="tfmeta")
class GaussianNLL(keras.losses.Loss):
    """The negative log likelihood of a normal distribution, for regression with uncertainty.

    A network of 2d outputs `[m, s]` predicts the mean m of d numbers and, of each, the variance
    `v = softplus(s) + least_variance`. The loss is the mean over the d numbers of
    `½ [log v + (y − m)²/v] + w (y − m)²`, without the constant `½ log 2π`. Both parts are least at
    the true mean; where the variance is large, the second is what makes the mean be learnt.

    Args:
        squared_error: w, at least 0.
        least_variance: What is added to each variance, positive.
        **kwargs: `reduction`, `name` and `dtype`, as for `keras.losses.Loss`.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If it is out of range.

    Example:
        ```python
        loss = tfmeta.losses.GaussianNLL(squared_error=1.0)
        learner = tfmeta.MAML(tfmeta.models.mlp((1,), outputs=2), 0.01, 5)
        learner.compile("adam", loss)
        mean, variance = loss.mean_and_variance(learner.predict(inputs))
        ```

    References:
        - Nix and Weigend. *Estimating the Mean and Variance of the Target Probability
          Distribution.* ICNN 1994.
    """

    def __init__(
        self, squared_error: float = 0.0, least_variance: float = 1e-4, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_at_least_zero("squared_error", squared_error)
        check_positive("least_variance", least_variance)
        self.squared_error = squared_error
        self.least_variance = least_variance

    def mean_and_variance(self, outputs: Any) -> tuple[Any, Any]:
        """Return m and v, `[..., d]` each, of a network's outputs `[..., 2d]`.

        Raises:
            ValueError: If the number of outputs is odd.
        """
        if outputs.shape[-1] is None or outputs.shape[-1] % 2:
            raise ValueError(
                "`outputs` must be twice as many as there are numbers to predict. Received: "
                f"shape={tuple(outputs.shape)}"
            )
        mean, spread = keras.ops.split(outputs, 2, axis=-1)
        return mean, keras.ops.softplus(spread) + self.least_variance

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return the loss of each example, `[...]` of `[..., d]` and `[..., 2d]`."""
        mean, variance = self.mean_and_variance(y_pred)
        if y_true.shape[-1] != mean.shape[-1]:
            raise ValueError(
                f"`y_pred` must have two outputs for each of the {y_true.shape[-1]} targets. "
                f"Received: shape={tuple(y_pred.shape)}"
            )
        squares = (keras.ops.cast(y_true, mean.dtype) - mean) ** 2
        losses = (keras.ops.log(variance) + squares / variance) / 2 + self.squared_error * squares
        return keras.ops.mean(losses, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {
            **super().get_config(),
            "squared_error": self.squared_error,
            "least_variance": self.least_variance,
        }


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
    GaussianNLL: None,
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
        if function is not None and loss is function:
            return kind(reduction="none")
        if type(loss) is kind:
            return kind.from_config({**loss.get_config(), "reduction": "none"})
    return None
