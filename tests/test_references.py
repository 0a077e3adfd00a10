"""Reference scores against scikit-learn, SciPy and NumPy on the same episodes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

import tfmeta
from tests.test_evaluation import sampler_of, vectors
from tfmeta.embeddings import embedding_of

EPISODES = 9
CLASSIFIERS = {
    "nearest centroid": NearestCentroid(),
    "nearest neighbour": KNeighborsClassifier(1),
    "logistic regression": LogisticRegression(C=1.0, tol=1e-8, max_iter=1000),
}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def evaluated(learner: Any, sampler: Any, episodes: int = EPISODES) -> tfmeta.Evaluation:
    return tfmeta.evaluate(learner, sampler, episodes, references=True, verbose=False)


def drawn(sampler: Any) -> list[tuple[Any, ...]]:
    """Support and query sets of the episodes, without what fills them up."""
    found = []
    for e in range(EPISODES):
        inputs, targets = sampler.batch(e)
        s, q = (inputs.get(name, np.ones([1, 99], bool))[0] for name in MASKS)
        x, y, z = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
        found.append((x[s[: len(x)]], y[s[: len(x)]], z[q[: len(z)]], targets[0][q[: len(z)]]))
    return found


MASKS = ("support_mask", "query_mask")


def expected(classifier: Any, sampler: Any, embed: Any = lambda x: x) -> list[float]:
    return [
        np.mean(classifier.fit(embed(x), y).predict(embed(z)) == t) for x, y, z, t in drawn(sampler)
    ]


def encoder(outputs: int = 3) -> keras.Sequential:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs, "tanh")])


@pytest.mark.parametrize("ways", [3, (2, 5)])
def test_heads_on_embedding_and_raw_inputs_are_those_of_scikit_learn(ways: Any) -> None:
    model, sampler = encoder(), vectors(ways=ways)
    result = evaluated(tfmeta.PrototypicalNetwork(model), sampler)
    assert sampler.steps == [(e, 1) for e in range(EPISODES)]
    embed = lambda x: np.asarray(model(x))  # noqa: E731
    for name, classifier in CLASSIFIERS.items():
        found = result.references[f"{name} on raw inputs"]
        np.testing.assert_array_equal(found.per_episode, expected(classifier, sampler))
        found = result.references[f"{name} on the embedding"]
        np.testing.assert_array_equal(found.per_episode, expected(classifier, sampler, embed))
        np.testing.assert_array_equal(
            found.difference.per_episode, result.per_episode - found.per_episode
        )
    chance = [1 / len(np.unique(y)) for _, y, _, _ in drawn(sampler)]
    np.testing.assert_allclose(result.references["chance"].per_episode, chance)
    assert result.left_out == {}
    # The learner is one of them itself.
    assert not result.references["nearest centroid on the embedding"].difference.per_episode.any()
    assert "nearest centroid on the embedding" in str(result)
    assert "the same" in str(result)
    without = tfmeta.evaluate(tfmeta.PrototypicalNetwork(model), sampler, EPISODES, verbose=False)
    assert "\n" not in str(without)
    np.testing.assert_array_equal(without.per_episode, result.per_episode)


def classifier() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(6), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *layers])


def normalised(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """What the last layer reads, with the statistics of the batch at hand."""
    w, b = (np.asarray(v, np.float64) for v in model.layers[0].weights)
    gamma, beta = (np.asarray(v, np.float64) for v in model.layers[1].weights[:2])
    h = x @ w + b
    return gamma * (h - h.mean(0)) / np.sqrt(h.var(0) + model.layers[1].epsilon) + beta


def test_a_classifier_has_the_embedding_that_its_last_layer_reads() -> None:
    model, sampler = classifier(), vectors()
    learner = tfmeta.MAML(model, 0.1, 2)
    learner.compile(loss=LOSS)
    before = [v.numpy() for v in learner.variables]
    result = evaluated(learner, sampler)
    for name, other in CLASSIFIERS.items():
        found = result.references[f"{name} on the embedding"].per_episode
        # Each set by its own statistics, as the learner has it.
        by_twin = expected(other, sampler, lambda x: normalised(model, x))
        np.testing.assert_array_equal(found, by_twin)
    w, b = (np.asarray(v) for v in model.layers[2].weights)
    at_start = [
        np.mean((normalised(model, z) @ w + b).argmax(1) == t) for _, _, z, t in drawn(sampler)
    ]
    np.testing.assert_array_equal(result.references["before adaptation"].per_episode, at_start)
    for a, b in zip(before, learner.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_adaptation_that_does_harm_is_said_with_rate_and_steps() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    learner = tfmeta.ProtoMAML(model, 20.0, 3)
    learner.compile(loss=LOSS)
    result = evaluated(learner, vectors(), 40)
    start = result.references["before adaptation"]
    np.testing.assert_array_equal(
        start.per_episode, result.references["nearest centroid on the embedding"].per_episode
    )
    assert start.difference.mean + start.difference.ci95 < 0
    assert (
        f"Adaptation lowers the accuracy from {100 * start.mean:.2f} % to {100 * result.mean:.2f} "
        "%: 3 inner steps at the rate 20." in str(result)
    )
    assert "ProtoMAML does worse than " in str(result)
    assert "does worse than chance" not in str(result)


def test_regression_has_means_a_ridge_and_r2() -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    learner = tfmeta.MAML(model, 0.01)
    learner.compile(loss="mse")
    sampler = tfmeta.data.Sinusoids(shots=5, queries=10, seed=0)
    result = evaluated(learner, sampler)
    episodes = [
        (i["support_x"][0], i["support_y"][0], i["query_x"][0], t[0])
        for i, t in (sampler.batch(e) for e in range(EPISODES))
    ]
    everywhere = np.mean([y for _, y, _, _ in episodes])
    for name, predict in {
        "mean of the support set": lambda x, y, z: y.mean(),
        "global mean": lambda x, y, z: everywhere,
        "ridge on raw inputs": lambda x, y, z: Ridge(alpha=1.0).fit(x, y).predict(z).reshape(-1, 1),
    }.items():
        by_hand = [np.mean((predict(x, y, z) - t) ** 2) for x, y, z, t in episodes]
        np.testing.assert_allclose(result.references[name].per_episode, by_hand, rtol=1e-5)
    assert "before adaptation" in result.references
    assert "chance" not in result.references
    one = tfmeta.evaluate(learner, sampler, 1, verbose=False)
    inputs, targets = sampler.batch(0)
    predicted = learner.predict_on_batch(inputs)[0]
    assert one.r2 == pytest.approx(r2_score(targets[0], predicted), abs=1e-5)
    spreads = [t.var() for *_, t in episodes]
    assert result.r2 == pytest.approx(1 - result.per_episode.sum() / np.sum(spreads), abs=1e-5)
    assert f"R² {result.r2:.4f}" in str(result)


def test_what_is_left_out_has_its_reason() -> None:
    identity = keras.Sequential([keras.Input((4,)), keras.layers.Identity()])
    result = evaluated(tfmeta.PrototypicalNetwork(identity), vectors(), 2)
    assert result.left_out == {"raw inputs": "they are what the embedding is"}
    assert "left out: raw inputs, for they are what the embedding is" in str(result)
    assert not [name for name in result.references if name.endswith("raw inputs")]

    linear = tfmeta.MAML(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), 0.1)
    linear.compile(loss=LOSS)
    result = evaluated(linear, vectors(), 2)
    assert "reads the raw inputs" in result.left_out["the embedding"]
    assert "logistic regression on raw inputs" in result.references

    x = keras.Input((2, 2))
    whole = tfmeta.MAML(
        keras.Model(x, keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(3)(x))), 0.1
    )
    whole.compile(loss=LOSS)
    x, y = np.random.default_rng(0).random((1, 6, 2, 2), np.float32), np.arange(6)[None] % 3
    inputs = {"support_x": x, "support_y": y, "query_x": x}
    result = evaluated(whole, sampler_of(inputs, y), 2)
    assert "no last dense layer is plainly found" in result.left_out["the embedding"]


def test_maps_are_no_embedding() -> None:
    maps = keras.Sequential([keras.Input((4,)), keras.layers.Reshape((2, 2))], name="maps")
    learner = tfmeta.PrototypicalNetwork(maps)
    learner.check_inputs(vectors().batch(0)[0])
    assert embedding_of(learner) == "model 'maps' returns no vectors [n, d]"


def ids() -> tuple[keras.Model, Any]:
    layers = [keras.layers.Embedding(9, 4), keras.layers.Flatten(), keras.layers.Dense(3, "relu")]
    model = keras.Sequential([keras.Input((2,), dtype="int32"), *layers, keras.layers.Dense(3)])
    return model, np.random.default_rng(0).integers(0, 9, (1, 6, 2))


def two_inputs() -> tuple[keras.Model, Any]:
    a, b = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([a, b], keras.layers.Dense(3)(keras.layers.Concatenate()([a, b])))
    x = np.random.default_rng(0).random((1, 6, 2), np.float32)
    return model, [x, x]


@pytest.mark.parametrize(
    ("made", "raw", "embedding"),
    [(ids, "int64 examples may be ids", None), (two_inputs, "2 parts", "2 parts")],
)
def test_examples_that_are_no_vectors_of_numbers(made: Any, raw: str, embedding: Any) -> None:
    model, x = made()
    learner = tfmeta.MAML(model, 0.1)
    learner.compile(loss=LOSS)
    y = np.arange(6)[None] % 3
    result = evaluated(learner, sampler_of({"support_x": x, "support_y": y, "query_x": x}, y), 2)
    assert raw in result.left_out["raw inputs"]
    assert ("nearest centroid on the embedding" in result.references) == (embedding is None)
    assert embedding is None or embedding in result.left_out["the embedding"]
    assert {"chance", "before adaptation"} <= set(result.references)


@pytest.mark.parametrize("n", [2, 3, 30, 600])
def test_a_paired_difference_is_that_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a = rng.random(n)
    b = a + rng.normal(0.1, 0.3, n)
    found = tfmeta.Difference(a - b)
    test = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(test.pvalue, rel=1e-9)
    low, high = test.confidence_interval(0.95)
    assert found.mean - found.ci95 == pytest.approx(low, rel=1e-9)
    assert found.mean + found.ci95 == pytest.approx(high, rel=1e-9)
    assert found.significant == (low > 0 or high < 0) == (test.pvalue < 0.05)


def test_differences_that_have_no_test() -> None:
    one = tfmeta.Difference(np.array([0.5]))
    assert np.isnan([one.ci95, one.p_value]).all()
    assert not one.significant
    assert tfmeta.Difference(np.full(7, 0.1)).p_value == 0
    assert tfmeta.Difference(np.zeros(7)).p_value == 1
    assert not tfmeta.Difference(np.zeros(7)).significant


def test_references_are_asked_for_by_a_flag() -> None:
    learner = tfmeta.PrototypicalNetwork(encoder())
    with pytest.raises(TypeError, match=r"`references` must be True or False.*'yes'"):
        tfmeta.evaluate(learner, vectors(), 2, references="yes")
