"""Layers that few-shot models need and Keras does not have."""

from __future__ import annotations

import math
from typing import Any

import keras

from tfmeta.checks import check_count
from tfmeta.copies import copy_of
from tfmeta.drop_block import DropBlock as DropBlock
from tfmeta.foreign.of_keras import OpenBatchNormalization, layers_of
from tfmeta.means import mean_along
from tfmeta.types import Nest, Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class BatchAtHandNormalization(OpenBatchNormalization):
    """Batch normalisation by the statistics of the batch at hand, in training and inference.

    `y = γ (x − mean(x)) / sqrt(var(x) + ε) + β`. It stands in an adapted model whose learner was
    evaluated transductively, so that both give the same numbers. What it predicts for an example
    therefore depends on the examples beside it; its moving statistics stay as they are. Arguments
    are those of `keras.layers.BatchNormalization`.

    Example:
        >>> tfmeta.layers.BatchAtHandNormalization()(images)
    """

    def call(self, inputs: Nest, training: bool | None = None, mask: Tensor = None) -> Tensor:
        """Normalise `inputs`; neither `training` nor `trainable` makes a difference."""
        # As in Keras, half precision would overflow.
        x = keras.ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        if mask is None:
            axes = [i for i in range(len(x.shape)) if i != self.axis % len(x.shape)]
            wide = mean_along(x, axes)
            squares = mean_along((x - wide) ** 2, axes)
            mean, variance = (keras.ops.squeeze(y, axes) for y in (wide, squares))
        else:
            mean, variance = self.masked_moments(x, mask)
        beta = keras.ops.cast(self.beta, x.dtype) if self.center else None
        gamma = keras.ops.cast(self.gamma, x.dtype) if self.scale else None
        # Keras before 3.13 has no renormalisation.
        if getattr(self, "renorm", False):
            mean, variance, gamma, beta = self.renormalized(mean, variance, gamma, beta, x.dtype)
        outputs = keras.ops.batch_normalization(
            x,
            mean,
            variance,
            self.axis,
            offset=beta,
            scale=gamma,
            epsilon=self.epsilon,
        )
        return keras.ops.cast(outputs, self.compute_dtype)


def particle_mean(predictions: Tensor, from_logits: bool) -> Tensor:
    """Return the mean over axis 1, of the class probabilities as their logarithm if `from_logits`.

    Of a single particle that is its own predictions.
    """
    if predictions.shape[1] == 1:
        return predictions[:, 0]
    if not from_logits:
        return keras.ops.mean(predictions, axis=1)
    logarithms = keras.ops.log_softmax(predictions)
    return keras.ops.logsumexp(logarithms, axis=1) - math.log(predictions.shape[1])


@keras.saving.register_keras_serializable(package="tfmeta")
class ParticleMean(keras.layers.Layer):
    """The mean over particles of their predictions: `[n, M, ...]` → `[n, ...]`.

    Args:
        from_logits: Predictions are logits of classes: then the mean is that of the probabilities,
            and its logarithm is returned.
        **kwargs: As for `keras.layers.Layer`.

    Example:
        >>> tfmeta.layers.ParticleMean()([[[1.0], [3.0]]])
        [[2.0]]
    """

    def __init__(self, from_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def call(self, inputs: Nest) -> Tensor:
        """Return the mean of `inputs` over axis 1."""
        return particle_mean(inputs, self.from_logits)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {**super().get_config(), "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="tfmeta")
class PerStepBatchNormalization(OpenBatchNormalization):
    """Batch normalisation with weights and running statistics of its own for each inner step.

    `y = γ_k (x − mean) / sqrt(var + ε) + β_k` in inner step k; γ, β and the running statistics
    have the shape `[steps, channels]`. Learners say which step it is and leave γ and β out of the
    inner loop. The queries after step k are normalised with its row, so called by itself the
    layer uses the last one.

    Args:
        steps: How many inner steps, K.
        **kwargs: Those of `keras.layers.BatchNormalization`.

    Raises:
        ValueError: If `steps` is less than 1.

    Example:
        >>> layer = tfmeta.layers.PerStepBatchNormalization(steps=5)

    Reference:
        Antoniou, Edwards and Storkey, *How to train your MAML*, ICLR 2019.
    """

    def __init__(self, steps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_count("steps", steps)
        if self.renorm:
            raise ValueError("`renorm` must be False for each inner step. Received: renorm=True")
        self.steps = steps
        self.step = -1

    def add_weight(self, shape: Any = None, **kwargs: Any) -> Any:
        """Make a weight with a row for each step."""
        return super().add_weight(shape=(self.steps, *shape), **kwargs)

    def call(self, inputs: Nest, training: bool | None = None, mask: Tensor = None) -> Tensor:
        """Normalise with the row of the current step."""
        # As in Keras, half precision would overflow.
        x = keras.ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        if training and self.trainable:
            mean, variance = self.masked_moments(x, mask)
            self._move(self.moving_mean, mean)
            self._move(self.moving_variance, variance)
        else:
            mean, variance = self._row(self.moving_mean), self._row(self.moving_variance)
        outputs = keras.ops.batch_normalization(
            x,
            keras.ops.cast(mean, x.dtype),
            keras.ops.cast(variance, x.dtype),
            self.axis,
            offset=keras.ops.cast(self._row(self.beta), x.dtype) if self.center else None,
            scale=keras.ops.cast(self._row(self.gamma), x.dtype) if self.scale else None,
            epsilon=self.epsilon,
        )
        return keras.ops.cast(outputs, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {**super().get_config(), "steps": self.steps}

    def _row(self, variable: keras.Variable) -> Any:
        return keras.ops.convert_to_tensor(variable)[self.step]

    def _move(self, variable: keras.Variable, value: Tensor) -> None:
        rows = keras.ops.convert_to_tensor(variable)
        here = keras.ops.one_hot(self.step % self.steps, self.steps, dtype=rows.dtype)[:, None]
        change = (1.0 - self.momentum) * (keras.ops.cast(value, rows.dtype) - rows)
        variable.assign(rows + here * change)


def per_step_batch_norm(model: keras.Model, steps: int) -> keras.Model:
    """Return a copy of a model whose batch normalisation has weights for each inner step.

    Each step starts from the weights and statistics that the model has.

    Args:
        model: A Functional or Sequential model; one without batch normalisation comes back as is.
        steps: How many inner steps, K.

    Raises:
        ValueError: If batch normalisation lies in a subclassed model or layer, where it cannot be
            exchanged: use `PerStepBatchNormalization` there.

    Example:
        >>> model = tfmeta.layers.per_step_batch_norm(tfmeta.models.conv4((28, 28, 1), 5), steps=5)
        >>> model.layers[2].gamma.shape
        (5, 64)

    Reference:
        Antoniou, Edwards and Storkey, ICLR 2019.
    """
    check_count("steps", steps)

    def ordinary(model: keras.Model) -> bool:
        norms = (keras.layers.BatchNormalization, PerStepBatchNormalization)
        kinds = [type(x) for x in layers_of(model) if isinstance(x, norms[0])]
        return any(kind is not norms[1] for kind in kinds)

    def swap(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        if type(layer) is not keras.layers.BatchNormalization:
            return None
        return PerStepBatchNormalization(steps, **layer.get_config())

    if not ordinary(model):
        return model
    copy = copy_of(model, swap)
    if copy is None or ordinary(copy):
        raise ValueError(
            "`model` must be Functional or Sequential, of layers that their configuration makes "
            "again, for its batch normalisation to be exchanged; use "
            "tfmeta.layers.PerStepBatchNormalization in another model, or within a layer. "
            f"Received: model={model.name!r}"
        )
    return copy


def ordinary_batch_norm(layer: keras.layers.Layer, cls: Any) -> keras.layers.Layer | None:
    """Return batch normalisation of class `cls` for the place of `layer`, `None` for other layers.

    A frozen layer stays of its class, for it uses its stored statistics always. Batch normalisation
    of a class of one's own is another layer.

    Args:
        layer: A layer.
        cls: `keras.layers.BatchNormalization`, or a class of the same weights.
    """
    per_step = isinstance(layer, PerStepBatchNormalization)
    plain = type(layer) in (keras.layers.BatchNormalization, BatchAtHandNormalization)
    if not per_step and not (plain and layer.trainable):
        return None
    config = layer.get_config()
    if per_step:
        del config["steps"]
    kind = cls if layer.trainable else keras.layers.BatchNormalization
    return kind.from_config(config)


@keras.saving.register_keras_serializable(package="tfmeta")
class Context(keras.layers.Layer):
    """Append context parameters to the features of each example: `y = [x, φ]`.

    φ is a weight of `units` numbers, 0 at first, the same for all examples: what `tfmeta.CAVIA`
    adapts to a task. Before a convolution it is appended to the channels of each place.

    Args:
        units: How many there are.
        **kwargs: `name` and `dtype`, for `keras.layers.Layer`.

    Example:
        >>> tfmeta.layers.Context(5)(np.ones((2, 3))).shape
        (2, 8)
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_count("units", units)
        self.units = units

    def build(self, input_shape: Any) -> None:
        """Make the parameters."""
        self.context = self.add_weight(shape=(self.units,), initializer="zeros", name="context")

    def call(self, inputs: Nest) -> Tensor:
        """Return `[n, ..., d + units]` of `[n, ..., d]`."""
        sizes = keras.ops.shape(inputs)[:-1]
        context = keras.ops.cast(self.context, inputs.dtype)
        context = keras.ops.broadcast_to(context, (*sizes, self.units))
        return keras.ops.concatenate([inputs, context], axis=-1)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return the shape `[n, ..., d + units]`."""
        return (*input_shape[:-1], input_shape[-1] + self.units)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {**super().get_config(), "units": self.units}
