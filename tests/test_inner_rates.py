"""The sweep over inner learning rates: its losses, and that nothing is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfmeta
from tests.learners import LEARNERS, WAYS, episodes
from tests.test_evaluation import sampler_of, vectors
from tests.test_references import LOSS

RATES = (0.01, 0.5, 3.0)


def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(6, "elu"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *layers])


def maml(rate: float = 0.07, steps: int = 2, **options: Any) -> tfmeta.MAML:
    learner = tfmeta.MAML(classifier(), rate, steps, **options)
    learner.compile("adam", LOSS, metrics=["accuracy"])
    return learner


def suggested(learner: Any, sampler: Any, episodes: int = 5, **options: Any) -> tfmeta.InnerRates:
    given = {"rates": RATES, "verbose": False, **options}
    return tfmeta.suggest_inner_rate(learner, sampler, episodes, **given)


def test_the_losses_are_those_of_learners_with_these_rates(tmp_path: Path) -> None:
    sampler, learner = vectors(), maml()
    found = suggested(learner, sampler, 11, rates=(*RATES[::-1], 1e30))
    assert found.rates.tolist() == [*RATES, 1e30]
    assert sampler.steps == [(0, 8), (1, 3)]
    for i, rate in enumerate(RATES[:2]):
        other = maml(rate)
        other.set_weights(learner.get_weights())
        for part, (step, size) in zip((slice(0, 8), slice(8, 11)), sampler.steps[:2], strict=True):
            inputs, targets = sampler.sampler.batch(step, size)
            logits = other.predict_on_batch(inputs)
            by_hand = np.asarray(
                keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
            ).mean(1)
            np.testing.assert_allclose(found.losses[i, part], by_hand, rtol=1e-4)
            np.testing.assert_array_equal(
                found.accuracies[i, part], (logits.argmax(-1) == targets).mean(1)
            )
    assert np.isinf(found.losses[3]).all()
    assert np.isnan(found.accuracies[3]).all()
    best = RATES[int(found.losses[:3].mean(1).argmin())]
    assert found.rate == best / 2
    lines = str(found).splitlines()
    assert lines[0] == f"Query loss after 2 inner steps, 11 episodes; suggested rate {best / 2:g}"
    assert "diverges" in lines[4]
    assert next(line for line in lines if "least loss" in line).split()[0] == f"{best:g}"
    found.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 0


def unchanged(learner: Any, sampler: Any) -> None:
    """Check that a sweep changes no weight, metric, setting or prediction of a learner."""
    inputs, targets = sampler.batch(0, 2)
    learner.test_on_batch(inputs, targets)  # with metrics in between
    values = lambda: [np.array(v) for v in (*learner.variables, *learner.metrics_variables)]  # noqa: E731
    predicted, before = learner.predict_on_batch(inputs), values()
    config = learner.get_config()
    suggested(learner, sampler)
    for a, b in zip(before, values(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(predicted, learner.predict_on_batch(inputs))
    assert {**config, "model": 0} == {**learner.get_config(), "model": 0}


def test_the_learner_stays_as_it_is() -> None:
    unchanged(maml(), vectors())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in LEARNERS if not n.startswith("Prototypical")])
def test_every_learner_with_an_inner_loop_has_a_rate(name: str) -> None:
    learner = LEARNERS[name]()
    learner.compile("adam", LOSS, metrics=["accuracy"])
    sampler = type("Some", (), {"batch": staticmethod(lambda step, n=1: episodes(step, n))})
    unchanged(learner, sampler)
    assert suggested(learner, sampler).rate in np.array(RATES) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_has_references(name: str) -> None:
    learner = LEARNERS[name]()
    learner.compile("adam", LOSS, metrics=["accuracy"])
    sampler = type("Some", (), {"batch": staticmethod(lambda step, n=1: episodes(step, n))})
    result = tfmeta.evaluate(learner, sampler, 3, references=True, verbose=False)
    assert result.left_out == {}
    adapts = not name.startswith("Prototypical")
    assert ("before adaptation" in result.references) == adapts
    assert len(result.references) == 7 + adapts
    assert result.references["chance"].mean == pytest.approx(1 / WAYS)


def test_regression_and_steps_of_ones_own() -> None:
    keras.utils.set_random_seed(0)
    learner = tfmeta.MAML(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]), 0.01)
    learner.compile(loss="mse")
    sampler = tfmeta.data.Sinusoids(shots=5, queries=10, seed=0)
    found = suggested(learner, sampler, rates=(0.01, 0.1), steps=3)
    assert (found.accuracies, found.steps) == (None, 3)
    # Of a line through one point after another, by hand.
    inputs, targets = sampler.batch(0, 5)
    kernel, bias = (np.asarray(v, np.float64) for v in learner.model.weights)
    for i, rate in enumerate((0.01, 0.1)):
        for task in range(5):
            x, y = inputs["support_x"][task].astype(float), inputs["support_y"][task]
            w, b = kernel[0, 0], bias[0]
            for _ in range(3):
                error = w * x + b - y
                w, b = w - rate * 2 * (error * x).mean(), b - rate * 2 * error.mean()
            loss = ((w * inputs["query_x"][task] + b - targets[task]) ** 2).mean()
            assert found.losses[i, task] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"episodes": 0}, ValueError, "`episodes` must be at least 1"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1"),
        ({"rates": (0.1, 0.1)}, ValueError, "`rates` must be numbers that all differ"),
        ({"rates": 0.1}, ValueError, "`rates` must be numbers that all differ"),
        ({"rates": (0.1, -1.0)}, ValueError, "`rates` must be positive and finite"),
        ({"rates": (1e30,)}, ValueError, "`rates` must have one with which.*1e\\+30"),
    ],
)
def test_options_out_of_range(options: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        suggested(maml(), vectors(), **options)


def test_what_has_no_rate() -> None:
    with pytest.raises(TypeError, match="`learner` must be one with an inner loop"):
        suggested(tfmeta.PrototypicalNetwork(classifier()), vectors())
    with pytest.raises(ValueError, match="`learner` must have a loss: call compile"):
        suggested(tfmeta.MAML(classifier(), 0.1), vectors())
    with pytest.raises(TypeError, match="`sampler` must be a sampler"):
        suggested(maml(), sampler_of({}, 0).batch)
