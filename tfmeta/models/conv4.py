"""Four blocks of convolution, batch normalisation and ReLU."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from tfmeta.checks import check_count
from tfmeta.models.parts import MOMENTUM, ended, image_shape, widths


def conv4(
    input_shape: Sequence[int],
    outputs: int | None = None,
    filters: int | Sequence[int] = 64,
    downsample: str = "pool",
) -> keras.Model:
    """Return the four-block convolutional network of few-shot learning.

    Four times: 3×3 convolution, batch normalisation, ReLU, with a 2×2 max-pool after it
    (`"pool"`, Matching and Prototypical Networks) or a stride of 2 in the convolution
    (`"stride"`, MAML on Omniglot); then flatten, then a dense layer of logits if asked for.
    Batch normalisation's momentum is 0.9, so that its running statistics serve after 50 steps
    already, where Keras's 0.99 needs 500; longer trainings end the same with either.

    R2D2 has the widths `(96, 192, 384, 512)`; its own network has LeakyReLU and dropout besides,
    and hands on what comes out of its last two blocks.

    Args:
        input_shape: `(height, width, channels)`.
        outputs: Number of logits; `None` gives the encoder.
        filters: Filters of each block, one number or four.
        downsample: `"pool"` or `"stride"`.

    Returns:
        A Functional model `[n, height, width, channels]` → `[n, outputs or features]`.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If an argument is out of range or the image is too small for four halvings.

    Example:
        >>> tfmeta.models.conv4((28, 28, 1)).output_shape
        (None, 64)
        >>> tfmeta.models.conv4((32, 32, 3), filters=(96, 192, 384, 512)).output_shape
        (None, 2048)

    References:
        Vinyals et al., *Matching Networks for One Shot Learning*, NeurIPS 2016;
        Finn, Abbeel and Levine, *Model-Agnostic Meta-Learning*, ICML 2017; Bertinetto et al.,
        *Meta-learning with Differentiable Closed-form Solvers*, ICLR 2019.
    """
    if downsample not in ("pool", "stride"):
        raise ValueError(
            f"`downsample` must be 'pool' or 'stride'. Received: downsample={downsample!r}"
        )
    pooled = downsample == "pool"
    shape = image_shape(
        input_shape, 16 if pooled else 1, "; use downsample='stride' for smaller images"
    )
    if outputs is not None:
        check_count("outputs", outputs)
    inputs = x = keras.Input(shape)
    for width in widths(filters, (1, 1, 1, 1)):
        x = layers.Conv2D(width, 3, 1 if pooled else 2, padding="same")(x)
        x = layers.BatchNormalization(momentum=MOMENTUM)(x)
        x = layers.ReLU()(x)
        if pooled:
            x = layers.MaxPooling2D()(x)
    return ended(inputs, layers.Flatten()(x), outputs, "conv4")
