"""Comparisons: the same episodes for all, and nobody's classifier is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tfmeta
from tests.test_evaluation import sampler_of, vectors
from tests.test_references import LOSS, drawn, encoder, expected

EPISODES = 9


def compared(learners: Any, sampler: Any, episodes: int = EPISODES) -> tfmeta.Comparison:
    return tfmeta.compare(learners, sampler, episodes, verbose=False)


def test_all_are_scored_on_the_same_episodes(tmp_path: Path) -> None:
    model = encoder()
    network, sampler = tfmeta.PrototypicalNetwork(model), vectors()
    logistic = make_pipeline(StandardScaler(), LogisticRegression())
    guess = DummyClassifier(strategy="constant", constant=0)
    result = compared(
        {
            "network": network,
            "on features": (model, logistic),
            "on what a function makes": (lambda x: 2 * x, NearestCentroid()),
            "on raw inputs": logistic,
            "guess": guess,
        },
        sampler,
    )
    assert sampler.steps == [(e, 1) for e in range(EPISODES)]
    embed = lambda x: np.asarray(model(x))  # noqa: E731
    same = tfmeta.evaluate(network, sampler, EPISODES, verbose=False)
    for name, scores in {
        "network": same.per_episode,
        "on features": expected(logistic, sampler, embed),
        "on what a function makes": expected(NearestCentroid(), sampler),
        "on raw inputs": expected(logistic, sampler),
        "guess": expected(guess, sampler),
        # One for the encoder that two of them have in common.
        "nearest centroid on the embedding of network and on features": same.per_episode,
        "nearest centroid on raw inputs": expected(NearestCentroid(), sampler),
    }.items():
        np.testing.assert_array_equal(result.per_episode[name], scores, err_msg=name)
    assert set(result.baselines) == set(list(result.per_episode)[5:])
    assert result.left_out == {
        "the embedding of on what a function makes": "its encoder is no Keras model"
    }
    means = [result.per_episode[name].mean() for name in result.ranking]
    assert means == sorted(means, reverse=True)
    assert result.ranking[-1] == "guess"
    text = str(result)
    assert text.startswith("accuracy, 95 % CI, 9 episodes; differences from the best\n")
    assert [line.split("  ")[1] for line in text.splitlines()[1:8]] == result.ranking
    assert "guess does worse than " in text
    result.plot(tmp_path / "comparison.png", "on vectors")
    assert (tmp_path / "comparison.png").stat().st_size > 0


def test_what_is_given_is_not_changed() -> None:
    given = LogisticRegression()
    compared({"logistic": given}, vectors(), 2)
    assert not hasattr(given, "classes_")


@pytest.mark.slow
def test_tasks_of_several_sizes() -> None:
    sampler = vectors(ways=(2, 5))
    result = compared({"logistic": LogisticRegression()}, sampler)
    np.testing.assert_array_equal(
        result.per_episode["logistic"], expected(LogisticRegression(), sampler)
    )
    np.testing.assert_array_equal(
        result.per_episode["nearest centroid on raw inputs"], expected(NearestCentroid(), sampler)
    )


def test_regression() -> None:
    sampler = tfmeta.data.Sinusoids(shots=5, queries=10, seed=0)
    result = compared({"ridge": Ridge(alpha=1.0)}, sampler)
    assert result.metric == "mean squared error"
    np.testing.assert_allclose(
        result.per_episode["ridge"], result.per_episode["ridge on raw inputs"], rtol=1e-5
    )
    errors = [np.mean((y.mean() - t) ** 2) for _, y, _, t in drawn(sampler)]
    np.testing.assert_allclose(result.per_episode["mean of the support set"], errors, rtol=1e-5)
    means = [result.per_episode[name].mean() for name in result.ranking]
    assert means == sorted(means)


class Bad:
    """A classifier with something wrong with its answers."""

    def __init__(self, answers: Any) -> None:
        self.answers = answers

    def fit(self, x: Any, y: Any) -> None:
        pass

    def predict(self, x: Any) -> Any:
        return self.answers(x)


def failing(x: Any) -> Any:
    raise RuntimeError("no licence")


@pytest.mark.parametrize(
    ("learners", "error", "match"),
    [
        ([encoder], TypeError, "`learners` must be a dict.*list"),
        ({}, ValueError, "at least one learner"),
        ({1: NearestCentroid()}, TypeError, "names for keys. Received: 1"),
        ({"a": encoder()}, TypeError, "objects with `fit` and `predict`.*'a'"),
        ({"a": NearestCentroid}, TypeError, "objects with `fit` and `predict`.*'a'"),
        ({"a": (encoder(), 3)}, TypeError, "pairs \\(encoder, object"),
        ({"nearest centroid on raw inputs": NearestCentroid()}, ValueError, "no baseline has"),
        ({"a": Bad(lambda x: np.zeros([len(x), 2]))}, ValueError, "shape \\(12, 2\\) in episode 0"),
        ({"a": Bad(lambda x: np.full(len(x), np.nan))}, ValueError, "finite numbers.*episode 0"),
        ({"a": Bad(failing)}, ValueError, "failed in episode 0: no licence"),
        ({"a": (lambda x: x[None], NearestCentroid())}, ValueError, "one vector \\[n, d\\]"),
        (
            {"a": (lambda x: x * np.nan, Bad(lambda x: x))},
            ValueError,
            r"`learners\['a'\]` must have finite features.*episode 0",
        ),
    ],
)
def test_what_cannot_be_compared(learners: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        compared(learners, vectors(), 2)


def test_a_classifier_needs_numbers() -> None:
    x, y = np.ones((1, 4, 3), np.int32), np.array([[0, 0, 1, 1]])
    sampler = sampler_of({"support_x": x, "support_y": y, "query_x": x}, y)
    with pytest.raises(ValueError, match=r"pair \(encoder, classifier\).*int32 examples may be"):
        compared({"a": NearestCentroid()}, sampler, 2)


def test_losses_must_leave_out_the_same_class() -> None:
    one, other = (tfmeta.PrototypicalNetwork(encoder()) for _ in range(2))
    one.compile(loss=LOSS)
    other.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    )
    with pytest.raises(ValueError, match=r"leave out the same class.*'b': 255"):
        compared({"a": one, "b": other}, vectors(), 2)


def test_an_unknown_name_is_said() -> None:
    result = tfmeta.Comparison({"maml": np.ones(3), "other": np.zeros(3)}, "accuracy")
    with pytest.raises(ValueError, match=r"Received: 'mamml'. Did you mean 'maml'\?"):
        result.difference("mamml", "other")
    assert result.difference("maml", "other").mean == 1
