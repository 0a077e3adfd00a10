"""Mean and standard deviation of each channel, as what the gather multiplies by and adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmeta.types import Array

Numbers = float | Sequence[float] | npt.NDArray[Any]


def scale_and_offset(
    examples: Array, mean: Numbers | None, std: Numbers | None
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None]:
    r"""Returns \(1/\sigma\) and \(-\mu/\sigma\) of each channel, float32, or nothing.

    Args:
        examples: Images `[n, height, width, channels]` or `[n, height, width]`, or vectors
            `[n, channels]`.
        mean: \(\mu\), one number or one for each channel; 0 when `None`.
        std: \(\sigma\), one number or one for each channel; 1 when `None`.

    Returns:
        `(scale, offset)`, each `[channels]`; `(None, None)` where both arguments are `None`.

    Raises:
        TypeError: There is something else than numbers.
        ValueError: A number is not finite, a standard deviation is not positive or too small, or
            there are not as many as channels.
    """
    if mean is None and std is None:
        return None, None
    channels = 1 if examples.ndim == 3 else examples.shape[-1]
    mu = per_channel("mean", mean, channels, 0.0)
    sigma = positive_per_channel("std", std, channels)
    with np.errstate(over="ignore"):
        scale, offset = (1 / sigma).astype(np.float32), (-mu / sigma).astype(np.float32)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        raise ValueError(
            "`mean` and `std` must be such that 1/std and mean/std are float32 numbers. Received: "
            f"mean={mean!r}, std={std!r}"
        )
    return scale, offset


def positive_per_channel(
    name: str, value: Numbers | None, channels: int
) -> npt.NDArray[np.float64]:
    """Return a standard deviation for each channel; 1 when `None`.

    Args:
        name: How the argument is called.
        value: One number, or one for each channel.
        channels: How many there are.

    Raises:
        TypeError: There is something else than numbers.
        ValueError: One is not positive and finite, or there are not as many as channels.
    """
    sigma = per_channel(name, value, channels, 1.0)
    if not (sigma > 0).all():
        raise ValueError(f"`{name}` must be positive. Received: {name}={value!r}")
    return sigma


def per_channel(
    name: str, value: Numbers | None, channels: int, default: float
) -> npt.NDArray[np.float64]:
    """Return a finite number for each channel.

    Args:
        name: How the argument is called.
        value: One number, or one for each channel.
        channels: How many there are.
        default: What `None` stands for.

    Raises:
        TypeError: There is something else than numbers.
        ValueError: One is not finite, or there are not as many as channels.
    """
    numbers = np.asarray(default if value is None else value)
    if numbers.dtype.kind not in "iuf":
        raise TypeError(
            f"`{name}` must be a number, or one for each channel. Received: {name}={value!r}"
        )
    if numbers.ndim and numbers.shape != (channels,):
        raise ValueError(
            f"`{name}` must be a number, or one for each of the {channels} channels. "
            f"Received: {name}={value!r}"
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"`{name}` must be finite. Received: {name}={value!r}")
    return np.broadcast_to(numbers, [channels]).astype(np.float64)
