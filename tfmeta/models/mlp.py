"""A fully connected network."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from tfmeta.checks import check_count


def mlp(
    input_shape: Sequence[int] | int, outputs: int, units: Sequence[int] = (40, 40)
) -> keras.Model:
    """Return a fully connected network with ReLU between its layers.

    Args:
        input_shape: Shape of one example, or its length; more than one axis is flattened.
        outputs: Number of outputs, linear.
        units: Widths of the hidden layers; MAML's sinusoid regressor has `(40, 40)`.

    Returns:
        A Functional model `[n, *input_shape]` → `[n, outputs]`.

    Raises:
        ValueError: If a width is less than 1.

    Example:
        >>> tfmeta.models.mlp((1,), 1).count_params()
        1761

    Reference:
        Finn, Abbeel and Levine, *Model-Agnostic Meta-Learning*, ICML 2017.
    """
    shape = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    for width in units:
        check_count("units", width)
    check_count("outputs", outputs)
    inputs = x = keras.Input(shape)
    if len(shape) > 1:
        x = layers.Flatten()(x)
    for width in units:
        x = layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(outputs)(x), name="mlp")
