"""Suites: each data set as `compare` scores it, ranks with ties, and words for what is lost."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

import tfmeta
from tests.test_evaluation import vectors
from tests.test_references import encoder
from tfmeta.comparison import Comparison

EPISODES = 8


def test_each_data_set_is_scored_as_by_compare() -> None:
    model = encoder()
    learners = {"one": tfmeta.PrototypicalNetwork(model), "frozen": (model, NearestCentroid())}
    samplers = {"near": vectors(), "far": vectors()}
    suite = tfmeta.evaluate_suite(learners, samplers, EPISODES, verbose=False)
    for name in samplers:
        alone = tfmeta.compare(learners, vectors(), EPISODES, verbose=False)
        # The learner's own centroid is the learner.
        own = "nearest centroid on the embedding of one and frozen"
        np.testing.assert_array_equal(alone.per_episode[own], alone.per_episode["one"])
        assert {*alone.per_episode} - {*suite.comparisons[name].per_episode} == {own}
        for method, scores in suite.comparisons[name].per_episode.items():
            np.testing.assert_array_equal(alone.per_episode[method], scores)
    found = json.loads(json.dumps(suite.as_dict()))
    assert found["near"]["episodes"] == EPISODES
    own = found["near"]["methods"]["one"]
    assert own["mean"] == pytest.approx(suite.comparisons["near"].per_episode["one"].mean())
    assert not own["baseline"]
    assert found["near"]["methods"]["nearest centroid on raw inputs"]["baseline"]
    # A learner alone is called by its class.
    alone = tfmeta.evaluate_suite(learners["one"], {"near": vectors()}, 2, verbose=False)  # type: ignore[arg-type]
    assert "PrototypicalNetwork" in alone.mean_ranks


def comparison(spread: float, **means: float) -> Comparison:
    """Scores whose paired differences are the means' but for noise, which is small or large."""
    random = np.random.default_rng(0)
    noise = {name: spread * random.standard_normal(100) for name in means}
    scores = {name: mean + noise[name] - noise[name].mean() for name, mean in means.items()}
    return Comparison(scores, "accuracy", tuple(n for n in means if n.startswith("base")))


def test_ranks_and_words() -> None:
    suite = tfmeta.Suite(
        {
            "clear": comparison(0.001, ours=0.7, other=0.9, base=0.8),
            "close": comparison(1.0, ours=0.70, other=0.71, base=0.69),
            "pairs": comparison(0.001, ours=0.9, other=0.9, base=0.2),
        },
        ("other",),
    )
    assert suite.ranks("clear") == {"other": 1, "base": 2, "ours": 3}
    assert suite.ranks("close") == {"other": 2, "base": 2, "ours": 2}
    ties = suite.ranks("pairs")
    assert ties == {"other": 1.5, "ours": 1.5, "base": 3}
    assert suite.mean_ranks == pytest.approx({"other": 4.5 / 3, "ours": 6.5 / 3, "base": 7 / 3})
    assert list(suite.mean_ranks) == ["other", "ours", "base"]
    lines = str(suite).splitlines()
    assert lines[0] == "accuracy, 95 % CI, 100 episodes of each data set"
    assert lines[1].split() == ["clear", "close", "pairs", "mean", "rank"]
    assert lines[2].split()[:4] == ["other", "90.00", "±", "0.02"]
    assert lines[2].split()[-1] == "1.50"
    assert lines[5].endswith("being answered together: other")
    assert lines[6].startswith("On clear: ours does worse than base (by 10.0")
    assert len(lines) == 7
    assert suite.warnings == (lines[6],)


def test_a_method_that_one_data_set_lacks_has_no_mean_rank() -> None:
    suite = tfmeta.Suite(
        {"a": comparison(0.001, ours=0.7, base=0.2), "b": comparison(0.001, ours=0.7)}
    )
    assert suite.mean_ranks == {"ours": 1.0}
    assert str(suite).splitlines()[3].split() == ["base", "20.00", "±", "0.02", "–", "–"]


def test_what_is_wrong_is_said_with_the_data_set() -> None:
    learner: Any = tfmeta.PrototypicalNetwork(keras.Sequential([keras.Input((9,))]))
    with pytest.raises(ValueError, match="On 'other'"):
        tfmeta.evaluate_suite(learner, {"other": vectors()}, 2, verbose=False)
    with pytest.raises(ValueError, match="`samplers` must have at least one sampler"):
        tfmeta.evaluate_suite(learner, {})
    with pytest.raises(TypeError, match="`samplers` must be a dict of data sets and samplers"):
        tfmeta.evaluate_suite(learner, vectors())  # type: ignore[arg-type]
