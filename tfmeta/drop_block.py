"""`DropBlock`: dropout of squares of an image's activations.

Ghiasi, Lin and Le, *DropBlock: A Regularization Method for Convolutional Networks*, NeurIPS 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfmeta.checks import check_at_least_zero, check_count
from tfmeta.types import Nest, Tensor


@keras.saving.register_keras_serializable(package="tfmeta")
class DropBlock(keras.layers.Layer):
    """Set squares of activations to zero in training, in each channel others.

    In a channel of `height` × `width` places, a square of `b` × `b` begins at each place where it
    lies within the channel, with probability

    `γ = rate / b² · height · width / ((height − b + 1)(width − b + 1))`,

    so that about the share `rate` of an example's activations goes (somewhat less, for squares
    overlap). Those that stay are multiplied by all / kept, counted over the example. What becomes
    of an example thus depends on no other one of the batch. `b` is `block_size`, or the image's
    height or width where that is less: then whole rows, columns or channels go.

    Args:
        rate: In `[0, 1)`.
        block_size: Side of the squares.
        seed: Of the draws, an integer or `None`.
        **kwargs: `name` and `dtype`, for `keras.layers.Layer`.

    Raises:
        TypeError: If a number is none.
        ValueError: If `rate` or `block_size` is out of range; in a call, if the inputs are no
            images `[n, height, width, channels]` of known size.

    Example:
        >>> tfmeta.layers.DropBlock(0.1, block_size=2)(np.ones((1, 4, 4, 8)), training=True)
    """

    def __init__(
        self, rate: float, block_size: int = 5, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_at_least_zero("rate", rate)
        if rate >= 1:
            raise ValueError(f"`rate` must be less than 1. Received: rate={rate}")
        check_count("block_size", block_size)
        self.rate, self.block_size, self.seed = rate, block_size, seed
        if rate > 0:
            self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs: Nest, training: bool | None = None) -> Tensor:
        """Return `inputs`, in training without what is dropped."""
        if not training or self.rate == 0:
            return inputs
        sizes = [n if known is None else known for n, known in self._sizes(inputs)]
        return inputs * ops.cast(rescaled(self.kept(sizes), (1, 2, 3)), inputs.dtype)

    def kept(self, shape: Sequence[Any]) -> Tensor:
        """Return what stays, 1 where it does and 0 elsewhere, `[n, height, width, channels]`.

        Args:
            shape: That of the answer; of the first size a scalar will do.
        """
        n, height, width, channels = shape
        square = tuple(min(self.block_size, size) for size in (height, width))
        begins = (height - square[0] + 1, width - square[1] + 1)
        likely = self.rate * height * width / (math.prod(square) * math.prod(begins))
        drawn = keras.random.uniform((n, *begins, channels), seed=self.seed_generator)
        corners = ops.cast(drawn < likely, "float32")
        # Each place is covered by the squares that begin there, or less than a side before.
        before = [(size - 1, size - 1) for size in square]
        padded = ops.pad(corners, [(0, 0), *before, (0, 0)])
        return 1.0 - ops.max_pool(padded, square, strides=1, data_format="channels_last")

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape, which does not change."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        arguments = {"rate": self.rate, "block_size": self.block_size, "seed": self.seed}
        return {**super().get_config(), **arguments}

    def _sizes(self, inputs: Any) -> list[tuple[Any, int | None]]:
        known = tuple(inputs.shape)
        if len(known) != 4 or None in known[1:]:
            raise ValueError(
                f"`inputs` of the layer {self.name!r} must be [n, height, width, channels], of "
                f"known size. Received: shape={known}"
            )
        return list(zip(ops.shape(inputs), known, strict=True))


def rescaled(kept: Tensor, axes: Sequence[int]) -> Tensor:
    """Return what to multiply by: what is kept, times all / kept over some axes of an example."""
    every = math.prod(kept.shape[axis] for axis in axes)
    # Where nothing is kept, nothing is to be divided.
    return kept * (every / ops.maximum(ops.sum(kept, axes, keepdims=True), 1.0))
