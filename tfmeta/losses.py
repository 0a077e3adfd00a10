"""The compiled loss of each of several tasks; and the loss of a normal distribution."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfmeta.checks import check_at_least_zero, check_positive
from tfmeta.foreign.of_keras import MASK, additional_loss, arguments_of_loss, loss_metrics_of
from tfmeta.notes import keeping_notes
from tfmeta.padding import without_padding
from tfmeta.task_map import current_tasks, in_one_axis
from tfmeta.types import Nest, Tensor


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

    def mean_and_variance(self, outputs: Tensor) -> tuple[Any, Any]:
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

    def call(self, y_true: Nest, y_pred: Nest) -> Nest:
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


# Losses that are the mean, or sum, of what each example has by itself, and the functions that Keras
# makes the same losses of.
_BY_EXAMPLE = {
    keras.losses.BinaryCrossentropy: keras.losses.binary_crossentropy,
    keras.losses.BinaryFocalCrossentropy: keras.losses.binary_focal_crossentropy,
    keras.losses.CategoricalCrossentropy: keras.losses.categorical_crossentropy,
    keras.losses.CategoricalFocalCrossentropy: keras.losses.categorical_focal_crossentropy,
    keras.losses.CategoricalHinge: keras.losses.categorical_hinge,
    keras.losses.CosineSimilarity: keras.losses.cosine_similarity,
    keras.losses.Hinge: keras.losses.hinge,
    keras.losses.Huber: keras.losses.huber,
    keras.losses.KLDivergence: keras.losses.kl_divergence,
    keras.losses.LogCosh: keras.losses.log_cosh,
    keras.losses.MeanAbsoluteError: keras.losses.mean_absolute_error,
    keras.losses.MeanAbsolutePercentageError: keras.losses.mean_absolute_percentage_error,
    keras.losses.MeanSquaredError: keras.losses.mean_squared_error,
    keras.losses.MeanSquaredLogarithmicError: keras.losses.mean_squared_logarithmic_error,
    keras.losses.Poisson: keras.losses.poisson,
    keras.losses.SparseCategoricalCrossentropy: keras.losses.sparse_categorical_crossentropy,
    keras.losses.SquaredHinge: keras.losses.squared_hinge,
    GaussianNLL: None,
}
# What must be as it is by default, for an example to have its loss by itself.
_ACROSS_EXAMPLES = {"axis": -1, "ignore_class": None}


def of_class_numbers(loss: Any) -> bool:
    """Return whether a loss, as given to `compile`, is one of integer class labels."""
    return isinstance(loss, keras.losses.SparseCategoricalCrossentropy) or loss in (
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
    )


def task_losses(
    learner: keras.Model,
    x: Any,
    y: Nest,
    y_pred: Nest,
    sample_weight: Nest,
    *,
    training: bool,
    mask: Tensor = None,
) -> Any:
    """Return what `learner.compute_loss` gives for each task by itself, `[tasks]`.

    Args:
        learner: A compiled model.
        x: A nest of `[tasks, ...]`, or `None`.
        y: Labels, a nest of `[tasks, n, ...]`.
        y_pred: Predictions, a nest of `[tasks, n, ...]`.
        sample_weight: A nest of `[tasks, n]`, or `None`.
        training: The Keras flag.
        mask: `[tasks, n]`, true where there is an example; all are there where it is `None`.
    """
    by_example = None if sample_weight is not None else _by_example(learner, y_pred)
    if by_example is not None:
        return _means(by_example, y, y_pred, mask, summed=_reduction(learner.loss) == "sum") + sum(
            additional_loss(learner, loss) for loss in learner.losses
        )

    # Any loss at all, at the price of as many operations as there are tasks.
    def of(task: int) -> Any:
        def at(z: Any) -> Any:
            return keeping_notes(lambda part: part[task], z)

        parts = [at(y), at(y_pred), at(sample_weight)]
        if mask is not None:
            parts = without_padding(mask[task], *parts)
        with _counted(learner, task):
            return learner.compute_loss(at(x), *parts, training=training)

    tasks = tf.nest.flatten(y_pred)[0].shape[0]
    if tasks is None:
        number = tf.shape(tf.nest.flatten(y_pred)[0])[0]
        return tf.map_fn(of, tf.range(number), fn_output_signature=learner.compute_dtype)
    return tf.stack([of(task) for task in range(tasks)])


@contextlib.contextmanager
def _counted(learner: Any, task: Any) -> Iterator[None]:
    """Let the metrics that Keras has of the losses of several outputs see real tasks alone.

    The last chunk of tasks may be filled up with some that have the weight 0.
    """
    tasks = current_tasks()
    if tasks is None or tasks.weights is None:
        yield
        return
    with keras.StatelessScope() as scope:
        yield
    for variable in [v for metric in loss_metrics_of(learner) for v in metric.variables]:
        old, new = tf.convert_to_tensor(variable), scope.get_current_value(variable)
        if new is not None:
            variable.assign(old + tf.cast(tasks.weights[task], old.dtype) * (new - old))


def _means(by_example: Any, y: Nest, y_pred: Nest, mask: Tensor, *, summed: bool) -> Any:
    """Return the mean, or sum, over the examples of each task of what each has by itself."""
    if mask is None:
        tasks = y_pred.shape[0]
        values = by_example(*(keeping_notes(in_one_axis, part) for part in (y, y_pred)))
        values = tf.reshape(values, [tf.shape(y_pred)[0] if tasks is None else tasks, -1])
        return tf.reduce_sum(values, axis=1) if summed else tf.reduce_mean(values, axis=1)
    values = by_example(*without_padding(mask, y, y_pred))
    axes = range(1, len(values.shape))
    reduce, join = (
        (tf.reduce_sum, tf.math.segment_sum) if summed else (tf.reduce_mean, tf.math.segment_mean)
    )
    # Each task has examples, or it would have been refused.
    return join(reduce(values, list(axes)), tf.where(mask)[:, 0])


def _reduction(loss: Any) -> Any:
    return getattr(loss, "reduction", "mean")


def _by_example(learner: Any, y_pred: Nest) -> Any:
    """Return the compiled loss without its reduction, if it treats examples by themselves."""
    masked = keras.tree.is_nested(y_pred) or getattr(y_pred, MASK, None) is not None
    if masked or learner.loss_weights is not None:
        return None
    given = keras.losses.get(learner.loss) if isinstance(learner.loss, str) else learner.loss
    for kind, function in _BY_EXAMPLE.items():
        # Keras itself makes the loss of a function of its own.
        loss = kind() if function is not None and given is function else given
        if type(loss) is kind and _treats_examples_alone(loss):
            return functools.partial(_values, loss)
    return None


def _treats_examples_alone(loss: Any) -> bool:
    # The configuration of some losses, as of CosineSimilarity, lacks arguments.
    made_with = {**loss.get_config(), **arguments_of_loss(loss)}
    return all(made_with.get(name, usual) == usual for name, usual in _ACROSS_EXAMPLES.items())


def _values(loss: Any, y_true: Nest, y_pred: Nest) -> Any:
    """Return what the examples have, as the loss itself would before it reduces that."""
    y_true, y_pred = (keras.ops.convert_to_tensor(z, dtype=loss.dtype) for z in (y_true, y_pred))
    return loss.call(y_true, y_pred)
