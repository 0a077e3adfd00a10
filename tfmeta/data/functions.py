"""Few-shot regression tasks: functions drawn from a distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfmeta.checks import check_count
from tfmeta.data.stream import stream
from tfmeta.types import Array, Episodes

if TYPE_CHECKING:
    import tensorflow as tf

Floats = npt.NDArray[np.float64]
_INPUT_RANGE = (-5.0, 5.0)


class FunctionSampler:
    """Draws regression tasks; meta-batch `step` is a function of `(seed, step)`.

    A task is a function, shown at `shots` support and `queries` query points that are drawn
    uniformly from `input_range`, or without replacement from `positions`. Task `t` of meta-batch
    `s` depends on `(seed, s, t)` and nothing else.

    Args:
        draw: Draws the function of one task from a generator of random numbers; the function
            maps points `[n, d]` to values `[n, outputs]`.
        shots: Support points of a task.
        queries: Query points of a task.
        seed: Another seed gives other tasks; at least 0.
        input_range: The interval `(low, high)` of the points, d = 1; or one for each of their d
            dimensions.
        outputs: How many numbers a value has.
        positions: Points `[n, d]`, or `[n]` where d = 1, in the place of `input_range`: a grid, for
            instance, or the times of measurements.
        shuffle: Whether the points of a task are drawn from `positions`. Otherwise these are the
            points of every task, the first `shots` its support set, the others its queries.

    Raises:
        TypeError: `draw` cannot be called, or a number is of another type.
        ValueError: A number or range is out of range, or there are not as many `positions` as it
            takes.

    Example:
        >>> import tfmeta
        >>> def line(rng):
        ...     slope = rng.uniform(-1, 1)
        ...     return lambda x: slope * x
        >>> lines = tfmeta.data.FunctionSampler(line, shots=2, queries=10)
        >>> inputs, targets = lines.batch(step=0, meta_batch_size=4)
        >>> inputs["support_x"].shape, inputs["support_y"].shape, targets.shape
        ((4, 2, 1), (4, 2, 1), (4, 10, 1))

        A plane over two dimensions, at the points of a grid:

        >>> import numpy as np
        >>> def plane(rng):
        ...     slopes = rng.uniform(-1, 1, size=(2, 1))
        ...     return lambda x: x @ slopes
        >>> grid = np.stack(np.meshgrid(range(4), range(3)), axis=-1).reshape(-1, 2)
        >>> planes = tfmeta.data.FunctionSampler(plane, shots=3, queries=9, positions=grid)
        >>> planes.batch(step=0)[0]["query_x"].shape
        (1, 9, 2)
    """

    def __init__(
        self,
        draw: Callable[[np.random.Generator], Callable[[Floats], Floats]],
        shots: int,
        queries: int,
        seed: int = 0,
        *,
        input_range: tuple[float, float] | Sequence[tuple[float, float]] = _INPUT_RANGE,
        outputs: int = 1,
        positions: npt.ArrayLike | None = None,
        shuffle: bool = True,
    ) -> None:
        if not callable(draw):
            raise TypeError(f"`draw` must be a function. Received: draw={draw!r}")
        self.draw = draw
        self.shots = check_count("shots", shots)
        self.queries = check_count("queries", queries)
        self.seed = check_count("seed", seed, least=0)
        self.input_range = _intervals("input_range", input_range)
        self.outputs = check_count("outputs", outputs)
        if not isinstance(shuffle, bool):
            raise TypeError(f"`shuffle` must be True or False. Received: shuffle={shuffle!r}")
        self.shuffle = shuffle
        self.positions = None if positions is None else self._checked(positions)
        if not shuffle and positions is None:
            raise ValueError("`positions` must be given for `shuffle=False`. Received: None")

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        """Returns meta-batch number `step` as NumPy arrays.

        Args:
            step: Number of the meta-batch, at least 0.
            meta_batch_size: Number of tasks.

        Returns:
            `(inputs, targets)`, all float32: `inputs["support_x"]` is `[tasks, shots, d]`,
            `inputs["support_y"]` `[tasks, shots, outputs]`, `inputs["query_x"]` `[tasks, queries,
            d]` and `targets` `[tasks, queries, outputs]`.

        Raises:
            ValueError: `step` or `meta_batch_size` is out of range, or a function gave values of
                another shape or ones that are not finite.
        """
        step = check_count("step", step, least=0)
        tasks = check_count("meta_batch_size", meta_batch_size)
        points, values = [], []
        for task in range(tasks):
            rng = np.random.default_rng([self.seed, step, task])
            function = self.draw(rng)
            points.append(self._points(rng))
            values.append(_values(function, points[-1], self.outputs))
        x, y = np.stack(points).astype(np.float32), np.stack(values).astype(np.float32)
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
            f"{self._told()})"
        )

    def _told(self) -> str:
        outputs = "" if self.outputs == 1 else f", outputs={self.outputs}"
        if self.positions is None:
            return f"input_range={self.input_range}{outputs}"
        fixed = "" if self.shuffle else ", shuffle=False"
        return f"positions of shape {self.positions.shape}{outputs}{fixed}"

    def _points(self, rng: np.random.Generator) -> Floats:
        """Draw the points of one task, `[shots + queries, d]`."""
        number = self.shots + self.queries
        if self.positions is not None:
            order = rng.permutation(len(self.positions)) if self.shuffle else np.arange(number)
            return self.positions[order[:number]]
        low, high = np.transpose(np.atleast_2d(self.input_range))
        return rng.uniform(low, high, size=(number, len(low)))

    def _checked(self, positions: npt.ArrayLike) -> Floats:
        if self.input_range != _INPUT_RANGE:
            raise ValueError(
                "`input_range` must be left out where there are `positions`. Received: "
                f"input_range={self.input_range}"
            )
        points = np.asarray(positions)
        if points.dtype.kind not in "iuf":
            raise TypeError(f"`positions` must be numbers. Received: type {points.dtype}")
        points = points.astype(np.float64)
        points = points[:, None] if points.ndim == 1 else points
        needed = self.shots + self.queries
        fits = len(points) >= needed if self.shuffle else len(points) == needed
        if points.ndim != 2 or 0 in points.shape or not fits:
            number = "at least" if self.shuffle else "exactly"
            raise ValueError(
                f"`positions` must be [n, d] with {number} `shots` + `queries` = {needed} points. "
                f"Received: shape={np.shape(positions)}"
            )
        if not np.isfinite(points).all():
            raise ValueError("`positions` must be finite. Received: NaN or infinity")
        return points


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


def _values(function: Callable[[Floats], Floats], points: Floats, outputs: int) -> Floats:
    values = np.asarray(function(points))
    expected = (len(points), outputs)
    if values.shape != expected:
        raise ValueError(
            f"The functions that `draw` gives must map points {points.shape} to values {expected}, "
            f"for `outputs={outputs}`. Received: values of shape {values.shape}"
        )
    if not np.isfinite(values).all():
        where = points[~np.isfinite(values).all(axis=1)][0]
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


def _intervals(name: str, given: Any) -> Any:
    """Return an interval that is not empty, or one for each of several dimensions."""
    several = isinstance(given, Sequence) and any(isinstance(x, Sequence) for x in given)
    found = tuple(_interval(name, part) for part in (given if several else [given]))
    if any(low == high for low, high in found):
        raise ValueError(f"`{name}` must not be empty. Received: {given}")
    return found if several else found[0]
