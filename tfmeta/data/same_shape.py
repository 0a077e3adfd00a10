"""Images of one data set in the size and the channels of another's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmeta.checks import check_size
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.images import check_image_options, prepare
from tfmeta.types import Array

# Images that are decoded to more than this at once would need a second copy of all.
_AT_ONCE = 4096


def resize(
    dataset: ClassDataset, shape: Sequence[int], *, resample: str = "lanczos"
) -> ClassDataset:
    """Returns a data set with its images in another size or number of channels.

    So sources of a `Mixture`, and data sets that a learner is tested on, get the shape that the
    model takes. Colours become grey by `0.299 r + 0.587 g + 0.114 b`, and grey becomes three equal
    channels; the proportions of an image are not kept.

    Args:
        dataset: Of uint8 images `[n, height, width, 1 or 3]`.
        shape: `(height, width, channels)` of the images asked for, 1 or 3 channels.
        resample: `"lanczos"`, `"area"` or `"bilinear"`.

    Returns:
        The same classes and examples, the images in memory; `dataset` itself if nothing changes.

    Raises:
        TypeError: `dataset` is no `ClassDataset`.
        ValueError: Its examples are no such images, `shape` is no such shape, or classes that are
            turned by quarters would no longer be squares.

    Example:
        >>> letters, _, _ = tfmeta.data.load("glyphs")
        >>> tfmeta.data.resize(letters, (32, 32, 3)).example_shape
        (32, 32, 3)
    """
    if not isinstance(dataset, ClassDataset):
        raise TypeError(f"`dataset` must be a tfmeta.data.ClassDataset. Received: {dataset!r}")
    before = tuple(dataset.example_shape)
    if len(before) != 3 or before[2] not in (1, 3) or dataset.dtype != np.uint8:
        raise ValueError(
            "`dataset` must have uint8 images [height, width, 1 or 3]. Received: examples of shape "
            f"{before} and type {dataset.dtype}"
        )
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise ValueError(f"`shape` must be (height, width, 1 or 3). Received: shape={tuple(shape)}")
    size = check_size((shape[0], shape[1]))
    check_image_options(size, resample)
    if np.any(dataset.quarter_turns) and shape[0] != shape[1]:
        raise ValueError(
            f"`shape` must be a square for classes that are turned. Received: shape={tuple(shape)}"
        )
    if before == tuple(shape):
        return dataset
    return _with_images(dataset, _resized(dataset.examples, shape, resample))


def resize_parts(parts: Sequence[ClassDataset], shape: Sequence[int]) -> tuple[ClassDataset, ...]:
    """Return parts of one data set as `resize` makes them, with images that they share made once.

    Args:
        parts: Data sets.
        shape: As for `resize`.

    Raises:
        ValueError: As of `resize`.
    """
    found: list[ClassDataset] = []
    for part in parts:
        first = next(i for i, other in enumerate(parts) if other.examples is part.examples)
        if first < len(found) and found[first] is not parts[first]:
            found.append(_with_images(part, found[first].examples))
        else:
            found.append(resize(part, shape))
    return tuple(found)


def _resized(examples: Any, shape: Sequence[int], resample: str) -> Array:
    """Return images in another size and with other channels."""
    images = np.empty((len(examples), *shape), np.uint8)
    for first in range(0, len(images), _AT_ONCE):
        part = np.asarray(examples[first : first + _AT_ONCE])
        # One channel is broadcast to three.
        images[first : first + _AT_ONCE] = prepare(
            part, size=(shape[0], shape[1]), grayscale=shape[2] == 1, resample=resample
        )
    return images


def _with_images(dataset: ClassDataset, images: Array) -> ClassDataset:
    """Return the same classes with other images."""
    made = copy.copy(dataset)
    made.examples = images
    _, height, width, channels = images.shape
    colours = "grey" if channels == 1 else "colour"
    made.description = f"{dataset.description} as {height}x{width} {colours}".strip()
    return made
