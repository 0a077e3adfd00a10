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
    mu = _channels("mean", 0.0 if mean is None else mean, channels)
    sigma = _channels("std", 1.0 if std is None else std, channels)
    if not (sigma > 0).all():
        raise ValueError(f"`std` must be positive. Received: std={std!r}")
    with np.errstate(over="ignore"):
        scale, offset = (1 / sigma).astype(np.float32), (-mu / sigma).astype(np.float32)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        raise ValueError(
            "`mean` and `std` must be such that 1/std and mean/std are float32 numbers. Received: "
            f"mean={mean!r}, std={std!r}"
        )
    return scale, offset


def _channels(name: str, value: Numbers, channels: int) -> npt.NDArray[np.float64]:
    numbers = np.asarray(value)
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
