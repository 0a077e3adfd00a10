"""Regression tasks: what they hold, that nothing but `(seed, step)` matters, what is refused."""

from __future__ import annotations

import hashlib
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
        (
            lambda: Sinusoids(1, 1, input_range=((0, 1), (2, 2))),  # type: ignore[arg-type]
            ValueError,
            "`input_range` must not be",
        ),
        (lambda: FunctionSampler(3, 1, 1), TypeError, "`draw` must be a function"),
        (lambda: FunctionSampler(line, 1, 1, input_range=((0, 1), 2)), TypeError, "a pair of"),
        (
            lambda: FunctionSampler(line, 1, 1, outputs=0),
            ValueError,
            "`outputs` must be at",
        ),
        (
            lambda: FunctionSampler(line, 1, 2, outputs=2).batch(0),
            ValueError,
            r"values \(3, 2\), for `outputs=2`. Received: values of shape \(3, 1\)",
        ),
        (
            lambda: FunctionSampler(line, 2, 2, positions=range(3)),
            ValueError,
            r"at least `shots` \+ `queries` = 4 points. Received: shape=\(3,\)",
        ),
        (
            lambda: FunctionSampler(line, 2, 2, positions=range(5), shuffle=False),
            ValueError,
            r"exactly `shots` \+ `queries` = 4 points. Received: shape=\(5,\)",
        ),
        (lambda: FunctionSampler(line, 1, 1, positions=["a", "b"]), TypeError, "must be numbers"),
        (lambda: FunctionSampler(line, 1, 1, positions=[0, np.nan]), ValueError, "must be finite"),
        (
            lambda: FunctionSampler(line, 1, 1, positions=[0, 1], input_range=(0, 1)),
            ValueError,
            "`input_range` must be left out",
        ),
        (lambda: FunctionSampler(line, 1, 1, shuffle=False), ValueError, "`positions` must be"),
        (lambda: FunctionSampler(line, 1, 1, shuffle=0), TypeError, "`shuffle` must be True or"),
        (
            lambda: FunctionSampler(lambda rng: lambda x: x[:, 0], 1, 2).batch(0),
            ValueError,
            r"to values \(3, 1\), for `outputs=1`. Received: values of shape \(3,\)",
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
    assert repr(FunctionSampler(line, 1, 1, positions=range(4), outputs=2)) == (
        "FunctionSampler(shots=1, queries=1, seed=0, positions of shape (4, 1), outputs=2)"
    )


def test_seeds_give_what_they_always_gave() -> None:
    """Uniform points and a product are exact, so the bytes are the same everywhere."""
    inputs, targets = FunctionSampler(line, 2, 3, seed=7, input_range=(-1.0, 4.0)).batch(5, 2)
    drawn = [inputs["support_x"], inputs["support_y"], inputs["query_x"], targets]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in drawn)).hexdigest()
    assert digest == "9b2e42497e582d639d4e11b302d972f3f7113420989a1837e9548ea24db5ca46"


def plane(rng: np.random.Generator) -> Callable[[Any], Any]:
    slopes = rng.uniform(1, 2, size=(2, 3))
    return lambda x: x @ slopes


def test_points_and_values_of_several_dimensions() -> None:
    ranges = ((0.0, 1.0), (10.0, 20.0))
    inputs, targets = FunctionSampler(plane, 4, 50, 3, input_range=ranges, outputs=3).batch(2, 2)
    assert inputs["query_x"].shape == (2, 50, 2)
    assert inputs["support_y"].shape == (2, 4, 3)
    for task in range(2):  # the same, written out
        rng = np.random.default_rng([3, 2, task])
        slopes = rng.uniform(1, 2, size=(2, 3))
        points = [[rng.uniform(0, 1), rng.uniform(10, 20)] for _ in range(54)]
        np.testing.assert_array_equal(inputs["query_x"][task], np.float32(points[4:]))
        np.testing.assert_allclose(targets[task], np.array(points[4:]) @ slopes, rtol=1e-6)


def test_positions_are_drawn_without_replacement() -> None:
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(3)), axis=-1).reshape(-1, 2)
    sampler = FunctionSampler(plane, 3, 9, outputs=3, positions=grid)
    inputs, _ = sampler.batch(0, 20)
    points = np.concatenate([inputs["support_x"], inputs["query_x"]], axis=1)
    orders = set()
    for task in points:
        assert sorted(task.tolist()) == sorted(grid.tolist())
        orders.add(task.tobytes())
    assert len(orders) == 20
    again = sampler.batch(0, 2)[0]["support_x"]
    np.testing.assert_array_equal(again, inputs["support_x"][:2])


def test_positions_as_they_are() -> None:
    times = [0.5, 3.0, 1.0]
    inputs, targets = FunctionSampler(line, 1, 2, positions=times, shuffle=False).batch(4, 3)
    np.testing.assert_array_equal(inputs["support_x"], np.full((3, 1, 1), 0.5, np.float32))
    np.testing.assert_array_equal(inputs["query_x"][..., 0], [[3.0, 1.0]] * 3)
    slopes = targets[..., 0] / [3.0, 1.0]
    np.testing.assert_allclose(slopes[:, 0], slopes[:, 1], rtol=1e-6)
    assert len(set(slopes[:, 0].tolist())) == 3
