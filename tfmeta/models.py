"""The field's standard backbones, as ordinary Keras models."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from tfmeta.checks import check_count

# Of the running statistics, which lag 1/(1 - momentum) steps behind the weights.
MOMENTUM = 0.9


def conv4(
    input_shape: Sequence[int],
    outputs: int | None = None,
    filters: int = 64,
    downsample: str = "pool",
) -> keras.Model:
    """Return the four-block convolutional network of few-shot learning.

    Four times: 3×3 convolution, batch normalisation, ReLU, with a 2×2 max-pool after it
    (`"pool"`, Matching and Prototypical Networks) or a stride of 2 in the convolution
    (`"stride"`, MAML on Omniglot); then flatten, then a dense layer of logits if asked for.
    Batch normalisation's momentum is 0.9, so that its running statistics serve after 50 steps
    already, where Keras's 0.99 needs 500; longer trainings end the same with either.

    Args:
        input_shape: `(height, width, channels)`.
        outputs: Number of logits; `None` gives the encoder.
        filters: Filters in each block.
        downsample: `"pool"` or `"stride"`.

    Returns:
        A Functional model `[n, height, width, channels]` → `[n, outputs or features]`.

    Raises:
        ValueError: If an argument is out of range or the image is too small for four halvings.

    Example:
        >>> tfmeta.models.conv4((28, 28, 1)).output_shape
        (None, 64)

    References:
        Vinyals et al., *Matching Networks for One Shot Learning*, NeurIPS 2016;
        Finn, Abbeel and Levine, *Model-Agnostic Meta-Learning*, ICML 2017.
    """
    input_shape = tuple(input_shape)
    if len(input_shape) != 3:
        raise ValueError(
            f"`input_shape` must be (height, width, channels). Received: input_shape={input_shape}"
        )
    if downsample not in ("pool", "stride"):
        raise ValueError(
            f"`downsample` must be 'pool' or 'stride'. Received: downsample={downsample!r}"
        )
    if downsample == "pool" and min(input_shape[:2]) < 16:
        raise ValueError(
            "`input_shape` must be at least 16×16 for four 2×2 pools; use downsample='stride' "
            f"for smaller images. Received: input_shape={input_shape}"
        )
    check_count("filters", filters)
    if outputs is not None:
        check_count("outputs", outputs)
    inputs = x = keras.Input(input_shape)
    for _ in range(4):
        x = layers.Conv2D(filters, 3, 2 if downsample == "stride" else 1, padding="same")(x)
        x = layers.BatchNormalization(momentum=MOMENTUM)(x)
        x = layers.ReLU()(x)
        if downsample == "pool":
            x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    if outputs is not None:
        x = layers.Dense(outputs)(x)
    return keras.Model(inputs, x, name="conv4")


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
