"""Random changes of the images of an episode."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfmeta import _core
from tfmeta.checks import check_count
from tfmeta.types import Array


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What `EpisodeSampler` changes at random in each image, drawn anew each time it is shown.

    With the numbers x of an image, between 0 and 1, b and c drawn uniformly from
    `[1 − brightness, 1 + brightness)` and `[1 − contrast, 1 + contrast)`, and m the mean of `b x`
    over the whole image, `x ← min(max((b x − m) c + m, 0), 1)`.

    Before that the image is flipped and cropped, after it the cut-out is filled with zeros;
    classes are turned first of all, and normalisation (`mean` and `std` of the sampler) comes last.
    What happens to an image depends on the sampler's seed, the step, the task and the image's place
    in the task. Which examples are drawn does not depend on the augmentation.

    Args:
        flip: Exchange left and right, with probability 1/2.
        crop: Put so many pixels of zeros around the image, and cut an image of the original size
            out of that at random.
        brightness: Half the width of the interval around 1 from which the factor is drawn, in
            `[0, 1)`.
        contrast: The same for the factor of the distances from the mean.
        cutout: Side of a square, at random within the image, that is filled with zeros.
        queries: Whether queries are changed too, or support and unlabelled examples alone.

    Raises:
        TypeError: An argument is of another type.
        ValueError: An argument is out of range.

    Example:
        >>> import tfmeta
        >>> tfmeta.data.Augmentation(flip=True, crop=4, cutout=8, queries=False)
        Augmentation(flip=True, crop=4, brightness=0.0, contrast=0.0, cutout=8, queries=False)

    Reference:
        DeVries, Taylor. *Improved Regularization of Convolutional Neural Networks with Cutout.*
        2017. (There the square may reach beyond the image.)
    """

    flip: bool = False
    crop: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    cutout: int = 0
    queries: bool = True

    def __post_init__(self) -> None:
        for name in ("flip", "queries"):
            value = getattr(self, name)
            if value is not True and value is not False:
                raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}")
        for name in ("crop", "cutout"):
            check_count(name, getattr(self, name), least=0)
        for name in ("brightness", "contrast"):
            _check_half_width(name, getattr(self, name))

    def check(self, examples: Array) -> None:
        """Raises unless `examples` are images that can be changed so.

        Raises:
            ValueError: They are no images of uint8, uint16 or floats, or `crop` or `cutout` is too
                large for them.
        """
        images = examples.ndim in (3, 4) and (
            examples.dtype.kind == "f" or examples.dtype in ("uint8", "uint16")
        )
        if not images:
            raise ValueError(
                "`augmentation` needs images `[n, height, width, channels]` or `[n, height, "
                f"width]` of uint8, uint16 or floats. Received: examples of type {examples.dtype}, "
                f"shape {examples.shape}"
            )
        smallest = min(examples.shape[1:3])
        if self.crop >= smallest:
            raise ValueError(
                f"`crop` must be less than the height and width of the images, {smallest} at "
                f"least. Received: crop={self.crop}"
            )
        if self.cutout > smallest:
            raise ValueError(
                f"`cutout` must be at most the height and width of the images, {smallest} at "
                f"least. Received: cutout={self.cutout}"
            )

    def draw(
        self, examples: Array, seed: int, step: int, first_task: int, shape: tuple[int, ...]
    ) -> Array:
        """Returns what `_core.gather` is told for images of `shape` `[tasks, ...]`."""
        tasks, *places = shape
        rows, columns = examples.shape[1:3]
        drawn = _core.augmentations(
            math.prod(places),
            rows,
            columns,
            seed,
            step,
            tasks,
            first_task,
            flip=self.flip,
            crop=self.crop,
            brightness=self.brightness,
            contrast=self.contrast,
            cutout=self.cutout,
        )
        return drawn.reshape(shape)


def _check_half_width(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={value!r}")
