"""Few-shot regression tasks: functions drawn from a distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tfmeta.checks import check_count
from tfmeta.data.stream import stream
from tfmeta.types import Array, Episodes

if TYPE_CHECKING:
    import tensorflow as tf

Floats = npt.NDArray[np.float64]


class FunctionSampler:
    """Draws regression tasks; meta-batch `step` is a function of `(seed, step)`.

    A task is a function, shown at `shots` support and `queries` query points that are drawn
    uniformly from `input_range`. Task `t` of meta-batch `s` depends on `(seed, s, t)` and nothing
    else.

    Args:
        draw: Draws the function of one task from a generator of random numbers; the function
            maps points `[n, 1]` to values `[n, 1]`.
        shots: Support points of a task.
        queries: Query points of a task.
        seed: Another seed gives other tasks; at least 0.
        input_range: The interval `(low, high)` of the points.

    Raises:
        TypeError: `draw` cannot be called, or a number is of another type.
        ValueError: A number or range is out of range.

    Example:
        >>> import tfmeta
        >>> def line(rng):
        ...     slope = rng.uniform(-1, 1)
        ...     return lambda x: slope * x
        >>> lines = tfmeta.data.FunctionSampler(line, shots=2, queries=10)
        >>> inputs, targets = lines.batch(step=0, meta_batch_size=4)
        >>> inputs["support_x"].shape, inputs["support_y"].shape, targets.shape
        ((4, 2, 1), (4, 2, 1), (4, 10, 1))
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator], Callable[[Floats], Floats]],
        shots: int,
        queries: int,
        seed: int = 0,
        *,
        input_range: tuple[float, float] = (-5.0, 5.0),
    ) -> None:
        if not callable(draw):
            raise TypeError(f"`draw` must be a function. Received: draw={draw!r}")
        self.draw = draw
        self.shots = check_count("shots", shots)
        self.queries = check_count("queries", queries)
        self.seed = check_count("seed", seed, least=0)
        self.input_range = _interval("input_range", input_range)
        if self.input_range[0] == self.input_range[1]:
            raise ValueError(f"`input_range` must not be empty. Received: {input_range}")

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        """Returns meta-batch number `step` as NumPy arrays.

        Args:
            step: Number of the meta-batch, at least 0.
            meta_batch_size: Number of tasks.

        Returns:
            `(inputs, targets)`, all float32: `inputs["support_x"]` and `inputs["support_y"]` are
            `[tasks, shots, 1]`, `inputs["query_x"]` and `targets` `[tasks, queries, 1]`.

        Raises:
            ValueError: `step` or `meta_batch_size` is out of range, or a function gave values of
                another shape or ones that are not finite.
        """
        step = check_count("step", step, least=0)
        tasks = check_count("meta_batch_size", meta_batch_size)
        x = np.empty((tasks, self.shots + self.queries, 1), np.float32)
        y = np.empty_like(x)
        for task in range(tasks):
            rng = np.random.default_rng([self.seed, step, task])
            function = self.draw(rng)
            points = rng.uniform(*self.input_range, size=x.shape[1:])
            x[task], y[task] = points, _values(function, points)
        inputs: dict[str, Array] = {
            "support_x": x[:, : self.shots],
            "support_y": y[:, : self.shots],
            "query_x": x[:, self.shots :],
        }
        return inputs, y[:, self.shots :]

    def dataset(self, meta_batch_size: int = 1, start: int = 0) -> tf.data.Dataset:
        """Returns the endless `tf.data.Dataset` of the meta-batches from number `start`.

        Args:
            meta_batch_size: Number of tasks in a batch.
            start: Number of the first meta-batch; a run that is resumed goes on where it was.

        Returns:
            A prefetched dataset of `(inputs, targets)` as in `batch`, all shapes static.

        Example:

        ```python
        learner.fit(sampler.dataset(meta_batch_size=25), steps_per_epoch=500, epochs=20)
        ```
        """
        return stream(self, meta_batch_size, start)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shots={self.shots}, queries={self.queries}, seed={self.seed}, "
            f"input_range={self.input_range})"
        )


class Sinusoids(FunctionSampler):
    """Draws sine waves, the regression tasks of the MAML paper.

    `y = A sin(ω x − φ) + ε`, with ε normal of standard deviation `noise · A`. Amplitude, phase and
    frequency of a task are drawn uniformly.

    Args:
        shots: Support points of a task.
        queries: Query points of a task.
        seed: Another seed gives other tasks; at least 0.
        amplitude: The interval of A.
        phase: The interval of φ.
        frequency: The interval of ω.
        noise: Standard deviation of the noise on support and query values, as a part of A.
        input_range: The interval of x.

    Raises:
        TypeError: A number is of another type.
        ValueError: A number or interval is out of range.

    Example:
        >>> import tfmeta
        >>> waves = tfmeta.data.Sinusoids(shots=5, queries=10)
        >>> inputs, targets = waves.batch(step=0, meta_batch_size=25)
        >>> bool(abs(targets).max() <= 5)
        True

    Reference:
        Finn, Abbeel, Levine: Model-agnostic meta-learning for fast adaptation of deep networks
        (ICML 2017).
    """

    def __init__(
        self,
        shots: int,
        queries: int,
        seed: int = 0,
        *,
        amplitude: tuple[float, float] = (0.1, 5.0),
        phase: tuple[float, float] = (0.0, float(np.pi)),
        frequency: tuple[float, float] = (1.0, 1.0),
        noise: float = 0.0,
        input_range: tuple[float, float] = (-5.0, 5.0),
    ) -> None:
        self.amplitude = _interval("amplitude", amplitude)
        self.phase = _interval("phase", phase)
        self.frequency = _interval("frequency", frequency)
        if not (np.isfinite(noise) and noise >= 0):
            raise ValueError(f"`noise` must be at least 0 and finite. Received: noise={noise}")
        self.noise = float(noise)
        super().__init__(self._wave, shots, queries, seed, input_range=input_range)

    def _wave(self, rng: np.random.Generator) -> Callable[[Floats], Floats]:
        amplitude, phase = rng.uniform(*self.amplitude), rng.uniform(*self.phase)
        frequency = rng.uniform(*self.frequency)

        def wave(x: Floats) -> Floats:
            y = amplitude * np.sin(frequency * x - phase)
            if self.noise:
                y += self.noise * amplitude * rng.standard_normal(x.shape)
            return y

        return wave


def _values(function: Callable[[Floats], Floats], points: Floats) -> Floats:
    values = np.asarray(function(points))
    if values.shape != points.shape:
        raise ValueError(
            f"The functions that `draw` gives must map points {points.shape} to values of the same "
            f"shape. Received: values of shape {values.shape}"
        )
    if not np.isfinite(values).all():
        where = points[~np.isfinite(values)][0]
        raise ValueError(
            f"The functions that `draw` gives must be finite. Received: NaN or infinity at {where}"
        )
    return values


def _interval(name: str, interval: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in interval)
    except (TypeError, ValueError):
        raise TypeError(
            f"`{name}` must be a pair of numbers (low, high). Received: {name}={interval!r}"
        ) from None
    if not (np.isfinite([low, high]).all() and low <= high):
        raise ValueError(f"`{name}` must be finite and low <= high. Received: {name}={interval!r}")
    return low, high
