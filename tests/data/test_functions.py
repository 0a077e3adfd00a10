"""Regression tasks: what they hold, that nothing but `(seed, step)` matters, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmeta.data import FunctionSampler, Sinusoids
from tfmeta.types import Episodes


def arrays(batch: Episodes) -> dict[str, np.ndarray]:
    inputs, targets = batch
    return {**inputs, "targets": targets}


def line(rng: np.random.Generator) -> Callable[[Any], Any]:
    slope = rng.uniform(1, 2)
    return lambda x: slope * x


def test_shapes_and_types() -> None:
    inputs, targets = FunctionSampler(line, shots=3, queries=7).batch(0, 5)
    assert {name: array.shape for name, array in inputs.items()} == {
        "support_x": (5, 3, 1),
        "support_y": (5, 3, 1),
        "query_x": (5, 7, 1),
    }
    assert targets.shape == (5, 7, 1)
    assert {array.dtype for array in (*inputs.values(), targets)} == {np.dtype(np.float32)}


def test_a_task_is_one_function_at_other_points() -> None:
    inputs, targets = FunctionSampler(line, 3, 7, input_range=(1.0, 2.0)).batch(4, 6)
    slopes = np.concatenate(
        [inputs["support_y"] / inputs["support_x"], targets / inputs["query_x"]], axis=1
    )
    assert (slopes.std(axis=1) < 1e-5).all()
    assert slopes[:, 0].std() > 0.05
    points = np.concatenate([inputs["support_x"], inputs["query_x"]], axis=1)
    assert len(np.unique(points)) == points.size
    assert points.min() >= 1
    assert points.max() <= 2


@given(
    seed=st.integers(0, 2**64), step=st.integers(0, 2**40), few=st.integers(1, 4), more=st.just(6)
)
def test_a_task_depends_on_seed_step_and_its_number_only(
    seed: int, step: int, few: int, more: int
) -> None:
    waves = Sinusoids(2, 3, seed, noise=0.1)
    waves.batch(step + 1)
    some, all_ = (
        arrays(waves.batch(step, few)),
        arrays(Sinusoids(2, 3, seed, noise=0.1).batch(step, more)),
    )
    for name, array in some.items():
        np.testing.assert_array_equal(array, all_[name][:few])


def test_other_seeds_and_steps_give_other_tasks() -> None:
    batches = [Sinusoids(2, 3, seed).batch(step)[1] for seed in range(3) for step in range(3)]
    assert len(np.unique(np.stack(batches).reshape(9, -1), axis=0)) == 9


def test_dataset_gives_the_batches_in_order() -> None:
    waves = Sinusoids(2, 3)
    for step, element in zip(range(4, 7), waves.dataset(5, start=4), strict=False):
        expected = arrays(waves.batch(step, 5))
        for name, tensor in arrays(element).items():
            np.testing.assert_array_equal(tensor, expected[name])


def test_sinusoids_are_sine_waves_of_the_paper() -> None:
    inputs, targets = Sinusoids(5, 200).batch(0, 200)
    x = np.concatenate([inputs["support_x"], inputs["query_x"]], axis=1)[..., 0]
    y = np.concatenate([inputs["support_y"], targets], axis=1)[..., 0]
    assert x.min() >= -5
    assert x.max() <= 5
    # y = A sin(x - p) = (A cos p) sin x - (A sin p) cos x, so least squares find A and p.
    fitted = [
        np.linalg.lstsq(np.stack([np.sin(a), -np.cos(a)], 1), b, rcond=None)
        for a, b in zip(x.astype(np.float64), y, strict=True)
    ]
    assert max(residual[0] for _, residual, *_ in fitted) < 1e-6
    c, s = np.array([solution for solution, *_ in fitted]).T
    amplitude, phase = np.hypot(c, s), np.arctan2(s, c)
    for values, low, high in ((amplitude, 0.1, 5), (phase, 0, np.pi)):
        assert values.min() > low - 1e-3
        assert values.max() < high + 1e-3
        # Uniform: the mean of 200 is within 4 standard errors.
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * 200)


def test_frequency_and_noise() -> None:
    options: dict[str, Any] = {"amplitude": (2, 2), "phase": (0, 0), "frequency": (0.5, 0.5)}
    inputs, targets = Sinusoids(1, 500, **options).batch(0)
    clean = 2 * np.sin(0.5 * inputs["query_x"])
    np.testing.assert_allclose(targets, clean, atol=1e-5)
    inputs, targets = Sinusoids(1, 500, noise=0.1, **options).batch(0)
    noise = targets - 2 * np.sin(0.5 * inputs["query_x"])
    assert noise.std() == pytest.approx(0.2, rel=0.15)
    assert abs(noise.mean()) < 4 * 0.2 / np.sqrt(500)


@pytest.mark.parametrize(
    ("attempt", "error", "text"),
    [
        (lambda: Sinusoids(0, 1), ValueError, "`shots` must be at least 1. Received: shots=0"),
        (lambda: Sinusoids(1, 1.5), TypeError, "`queries` must be an integer"),
        (lambda: Sinusoids(1, 1, -1), ValueError, "`seed` must be at least 0. Received: seed=-1"),
        (lambda: Sinusoids(1, 1).batch(-1), ValueError, "`step` must be at least 0"),
        (lambda: Sinusoids(1, 1).batch(0, 0), ValueError, "`meta_batch_size` must be at least 1"),
        (lambda: Sinusoids(1, 1, amplitude=(5, 1)), ValueError, r"`amplitude`.*\(5, 1\)"),
        (lambda: Sinusoids(1, 1, phase=(0, np.inf)), ValueError, "`phase` must be finite"),
        (lambda: Sinusoids(1, 1, frequency=2), TypeError, "`frequency` must be a pair"),
        (lambda: Sinusoids(1, 1, noise=-1), ValueError, "`noise` must be at least 0"),
        (lambda: Sinusoids(1, 1, input_range=(1, 1)), ValueError, "`input_range` must not be"),
        (lambda: FunctionSampler(3, 1, 1), TypeError, "`draw` must be a function"),
        (
            lambda: FunctionSampler(lambda rng: lambda x: x[:, 0], 1, 2).batch(0),
            ValueError,
            r"same shape. Received: values of shape \(3,\)",
        ),
        (
            lambda: FunctionSampler(lambda rng: lambda x: x + np.nan, 1, 2).batch(0),
            ValueError,
            "Received: NaN or infinity at",
        ),
    ],
)
def test_refused(attempt: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        attempt()


def test_repr() -> None:
    expected = "Sinusoids(shots=5, queries=10, seed=3, input_range=(-5.0, 5.0))"
    assert repr(Sinusoids(5, 10, 3)) == expected
