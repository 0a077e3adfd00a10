"""The measures of uncertainty by hand, against plain loops, and against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import tfmeta
from tfmeta import calibration as c
from tfmeta import plots

# Three ways; the confidences 0.5, 0.9, 0.8, 0.5 are right, right, wrong, wrong.
P = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
Y = np.array([0, 0, 2, 1])


def drawn(n: int = 300, ways: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels of which they are the true probabilities."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (n, ways))
    return z, np.array([rng.choice(ways, p=row) for row in c.softmax(z)])


def test_scores_by_hand() -> None:
    assert c.accuracy(P, Y) == 0.5
    logs = np.log([0.5, 0.9, 0.1, 0.3])
    assert c.negative_log_likelihood(P, Y) == pytest.approx(-logs.mean())
    squares = [0.25 + 0.09 + 0.04, 0.01 + 0.01, 0.01 + 0.64 + 0.81, 0.04 + 0.49 + 0.25]
    assert c.brier_score(P, Y) == pytest.approx(np.mean(squares))
    np.testing.assert_allclose(c.entropy(P)[1], -(0.9 * np.log(0.9) + 0.1 * np.log(0.1)))
    np.testing.assert_allclose(c.entropy([[0.25] * 4, [1, 0, 0, 0]]), [np.log(4), 0])


def test_calibration_error_by_hand() -> None:
    # Two bins: (0, 0.5] has 0.5 and 0.5, one of them right; (0.5, 1] has 0.9 and 0.8, likewise.
    found = c.reliability(P, Y, bins=2)
    np.testing.assert_allclose(found.edges, [0, 0.5, 1])
    assert found.count.tolist() == [2, 2]
    np.testing.assert_allclose(found.confidence, [0.5, 0.85])
    np.testing.assert_allclose(found.accuracy, [0.5, 0.5])
    assert c.expected_calibration_error(P, Y, bins=2) == pytest.approx(0.35 / 2)
    assert c.expected_calibration_error(P, Y, bins=1) == pytest.approx(0.675 - 0.5)
    empty = c.reliability(P, Y)
    assert len(empty.count) == 15
    assert np.isnan(empty.accuracy[0])
    assert np.isnan(empty.confidence[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 6), st.integers(1, 20))
def test_scores_are_those_of_plain_loops(seed: int, n: int, ways: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(ways, 0.5), n)
    y = rng.integers(ways, size=n)
    brier, error = 0.0, 0.0
    for row, label in zip(p, y, strict=True):
        brier += sum((row[k] - (k == label)) ** 2 for k in range(ways)) / n
    for b in range(bins):
        inside = [i for i in range(n) if b / bins < p[i].max() <= (b + 1) / bins]
        right = sum(p[i].argmax() == y[i] for i in inside)
        error += abs(sum(p[i].max() for i in inside) - right) / n
    assert c.brier_score(p, y) == pytest.approx(brier)
    assert c.expected_calibration_error(p, y, bins) == pytest.approx(error)


def test_rejection_keeps_the_surest_first() -> None:
    p = [[0.6, 0.4], [0.9, 0.1], [0.3, 0.7]]
    kept, accuracy = c.rejection_curve(p, [1, 0, 1])
    np.testing.assert_allclose(kept, [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(accuracy, [1, 1, 2 / 3])


def test_rejection_prefers_none_of_the_equally_sure() -> None:
    p, y = np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]]), np.array([0, 0, 0, 1])
    for order in ([0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 0, 1]):
        np.testing.assert_allclose(c.rejection_curve(p[order], y[order])[1], 0.75)


def test_auroc_by_hand_and_by_pairs() -> None:
    assert c.auroc([1, 2, 3, 4], np.array([False, False, True, True])) == 1
    assert c.auroc([3, 4, 1, 2], np.array([False, False, True, True])) == 0
    assert c.auroc([5, 5, 5], np.array([False, True, True])) == 0.5
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 50), rng.random(50) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert c.auroc(scores, positive) == pytest.approx(np.mean(pairs))


def test_scores_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    z, y = drawn()
    p = c.softmax(z)
    assert c.negative_log_likelihood(p, y) == pytest.approx(metrics.log_loss(y, p))
    right = p.argmax(1) == y
    rounded = np.round(c.entropy(p), 1)
    assert c.auroc(rounded, right) == pytest.approx(metrics.roc_auc_score(right, rounded))


def test_softmax_of_logarithms_is_the_probability() -> None:
    # What learners that average over several models predict.
    mean = np.stack([c.softmax(drawn(seed=seed)[0]) for seed in range(3)]).mean(axis=0)
    np.testing.assert_allclose(c.softmax(np.log(mean)), mean, rtol=1e-12)
    np.testing.assert_allclose(c.softmax(c.logarithms(P)), P, atol=1e-300)
    np.testing.assert_allclose(c.softmax([[1e30, 0], [-1e30, 0]]), [[1, 0], [0, 1]])


def test_a_probability_rounded_to_zero_has_a_finite_loss() -> None:
    assert c.negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(708.396, abs=1e-3)


def test_temperature_in_closed_form() -> None:
    # sigmoid(2 / T) has to be 3/4.
    logits = [[2.0, 0.0]] * 4
    assert c.fit_temperature(logits, [0, 0, 0, 1]) == pytest.approx(2 / np.log(3))
    assert c.fit_temperature(logits, [0, 0, 0, 0]) == pytest.approx(1e-3)
    assert c.fit_temperature(logits, [0, 0, 1, 1]) == pytest.approx(1e3)


def test_temperature_has_the_least_loss_and_undoes_a_factor() -> None:
    z, y = drawn()
    best = c.fit_temperature(z, y)
    assert c.fit_temperature(3 * z, y) == pytest.approx(3 * best)
    assert c.fit_temperature(np.log(c.softmax(z)), y) == pytest.approx(best)
    losses = [c.negative_log_likelihood(c.softmax(z, best * f), y) for f in (0.99, 1, 1.01)]
    assert losses[1] == min(losses)
    overconfident = c.softmax(3 * z)
    calibrated = c.softmax(3 * z, 3 * best)
    error = c.expected_calibration_error
    assert error(calibrated, y) < error(overconfident, y) / 2
    assert (calibrated.argmax(1) == overconfident.argmax(1)).all()


@pytest.mark.parametrize(
    "score",
    [
        *(c.accuracy, c.negative_log_likelihood, c.brier_score, c.expected_calibration_error),
        *(c.reliability, c.rejection_curve),
    ],
)
def test_bad_probabilities_and_labels(score: object) -> None:
    def refused(p: object, y: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            score(p, y)  # type: ignore[operator]

    refused(P * 1.1, Y, r"sum to 1 in each row\. Received: row 0 with the sum 1\.1")
    refused([[1.5, -0.5]], [0], r"at least 0 .* the least -0\.5")
    refused(np.where(P == 0.9, np.nan, P), Y, r"must be finite\. Received: 1 NaN")
    refused(P, Y + 1, r"`labels` must be between 0 and 2\. Received: labels from 1 to 3")
    refused(P, -Y, r"`labels` must be between 0 and 2\. Received: labels from -2 to 0")
    refused(P, Y[:3], r"`labels` must be 4 integers.*shape=\(3,\)")
    refused(P, Y.astype(float), r"`labels` must be 4 integers.*dtype=float64")
    refused(np.empty((0, 3)), np.empty(0, int), r"one row .* or more\. Received: shape=\(0, 3\)")
    refused([0.5, 0.5], [0], r"`probabilities` must be \[n, ways\].*shape=\(2,\)")
    refused([[1.0]], [0], r"two ways or more. Received: shape=\(1, 1\)")


def test_other_bad_arguments() -> None:
    for bins in (0, -1):
        with pytest.raises(ValueError, match=rf"`bins` must be at least 1.*bins={bins}"):
            c.reliability(P, Y, bins)
    with pytest.raises(TypeError, match=r"`bins` must be an integer.*bins=2.5"):
        c.expected_calibration_error(P, Y, 2.5)  # type: ignore[arg-type]
    for temperature in (0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="`temperature` must be positive and finite"):
            c.softmax(P, temperature)
    with pytest.raises(ValueError, match=r"`logits` must be finite. Received: 1 NaN"):
        c.fit_temperature([[np.inf, 0]], [0])
    with pytest.raises(ValueError, match=r"must have both kinds. Received: 0 of 2 are positive"):
        c.auroc([1, 2], [False, False])
    with pytest.raises(ValueError, match=r"of one length. Received: shapes \(2,\) and \(1,\)"):
        c.auroc([1, 2], [True])
    with pytest.raises(ValueError, match=r"`scores` must not be NaN. Received: 1 of 2"):
        c.auroc([1, np.nan], [True, False])


def test_half_precision_is_near_enough_to_one() -> None:
    z, y = drawn()
    half = c.softmax(z).astype(np.float16)
    assert c.brier_score(half, y) == pytest.approx(c.brier_score(c.softmax(z), y), rel=1e-2)


def test_the_diagram_shows_the_bins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: figures.append(self))
    monkeypatch.setattr("os.replace", lambda *_: None)
    plots.reliability_diagram(P, Y, tmp_path / "diagram.png", bins=2)
    upper, lower = figures[0].axes
    accuracy, gap = upper.containers
    assert [bar.get_height() for bar in accuracy] == [0.5, 0.5]
    np.testing.assert_allclose([bar.get_height() for bar in gap], [0, 0.35])
    assert "17.50 %" in figures[0].get_suptitle()
    assert [bar.get_height() for bar in lower.patches] == [50, 50]


# --- A learner on episodes ----------------------------------------------------------------------


class Scripted:
    """Tasks of vectors near an axis for each class; the queries are the support set, shuffled."""

    def __init__(self, ways: int = 4, noise: float = 0.6, seed: int = 0) -> None:
        self.ways, self.noise, self.seed = ways, noise, seed

    def batch(self, step: int, meta_batch_size: int = 1) -> object:
        rng = np.random.default_rng([self.seed, step])
        shape = (meta_batch_size, self.ways)
        y = np.broadcast_to(np.arange(self.ways, dtype=np.int32), shape)
        x = np.broadcast_to(np.eye(8, dtype=np.float32)[: self.ways], (*shape, 8))
        queries = x + self.noise * rng.normal(size=x.shape).astype(np.float32)
        return {"support_x": x, "support_y": y, "query_x": queries}, y


class Particles(tfmeta.MetaLearner):
    """Predicts the logarithm of the mean over two models' probabilities."""

    def adapt_task(self, support_x, support_y, *, training):
        return keras.ops.take(support_x, keras.ops.argsort(support_y), axis=0)

    def predict_task(self, state, query_x, *, training):
        logits = query_x @ keras.ops.transpose(state)
        pair = keras.ops.stack([keras.ops.softmax(factor * logits) for factor in (1.0, 5.0)])
        return keras.ops.log(keras.ops.mean(pair, axis=0))

    def adapted_model(self, state):
        raise NotImplementedError


def identity(factor: float = 1.0) -> keras.Model:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, use_bias=False)])
    model.set_weights([factor * np.eye(8)])
    return model


def nearest(factor: float = 1.0) -> tfmeta.PrototypicalNetwork:
    return tfmeta.PrototypicalNetwork(identity(factor))


def test_uncertainty_of_a_learner() -> None:
    sampler = Scripted()
    found = tfmeta.uncertainty(nearest(), sampler, episodes=20, verbose=False)
    assert found.probabilities.shape == (80, 4)
    x = np.concatenate([sampler.batch(e)[0]["query_x"][0] for e in range(20)])
    squares = ((x[:, None] - np.eye(8)[:4]) ** 2).sum(axis=-1)
    p, y = c.softmax(-squares), np.tile(np.arange(4), 20)
    np.testing.assert_allclose(found.probabilities, p, atol=1e-5)
    np.testing.assert_array_equal(found.labels, y)
    same = tfmeta.evaluate(nearest(), sampler, episodes=20, verbose=False)
    assert found.accuracy == pytest.approx(same.mean)
    assert found.negative_log_likelihood == pytest.approx(c.negative_log_likelihood(p, y), rel=1e-4)
    assert found.rejection_area == pytest.approx(c.rejection_curve(p, y)[1].mean(), rel=1e-4)
    assert np.isnan(found.auroc_entropy)
    text = str(found)
    assert text.startswith("20 episodes, 80 queries, temperature 1.000\n")
    assert text.splitlines()[1].split() == ["accuracy", f"{100 * same.mean:.2f}", "%"]
    assert "AUROC" not in text


def test_the_temperature_is_fitted_on_other_episodes() -> None:
    sure = nearest(4.0)
    plain = tfmeta.uncertainty(sure, Scripted(), 40, verbose=False)
    validation = Scripted(seed=1)
    fitted = tfmeta.uncertainty(sure, Scripted(), 40, validation, verbose=False)
    others = tfmeta.uncertainty(sure, validation, 40, verbose=False)
    expected = c.fit_temperature(c.logarithms(others.probabilities), others.labels)
    assert fitted.temperature == pytest.approx(expected, rel=1e-3)
    assert fitted.temperature > 1.5
    assert fitted.negative_log_likelihood < plain.negative_log_likelihood
    assert fitted.accuracy == plain.accuracy
    with pytest.raises(ValueError, match=r"`temperature` must be a sampler of validation classes"):
        tfmeta.uncertainty(sure, validation, 2, validation, verbose=False)
    images = tfmeta.data.ClassDataset(np.zeros((40, 8), np.float32), np.repeat(np.arange(10), 4))
    one, other = (tfmeta.data.EpisodeSampler(images, 4, 1, 1, seed) for seed in (0, 1))
    with pytest.raises(ValueError, match=r"it would flatter them. Received: temperature=Episode"):
        tfmeta.uncertainty(sure, one, 2, other, verbose=False)
    with pytest.raises(ValueError, match=r"`temperature` must be positive.*temperature=0"):
        tfmeta.uncertainty(sure, one, 2, 0, verbose=False)


def test_log_probabilities_of_several_models_are_logits() -> None:
    found = tfmeta.uncertainty(Particles(identity()), Scripted(), 3, verbose=False)
    logits = np.concatenate([Scripted().batch(e)[0]["query_x"][0][:, :4] for e in range(3)])
    mean = (c.softmax(logits) + c.softmax(5 * logits)) / 2
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-6)


def test_a_learner_that_predicts_probabilities() -> None:
    class Probable(Particles):
        def predict_task(self, state, query_x, *, training):
            return keras.ops.exp(super().predict_task(state, query_x, training=training))

    found = tfmeta.uncertainty(
        Probable(identity()), Scripted(), 3, from_logits=False, verbose=False
    )
    same = tfmeta.uncertainty(Particles(identity()), Scripted(), 3, verbose=False)
    np.testing.assert_allclose(found.probabilities, same.probabilities, atol=1e-6)
    with pytest.raises(ValueError, match=r"`probabilities` must be at least 0 and sum to 1"):
        tfmeta.uncertainty(nearest(), Scripted(), 3, from_logits=False, verbose=False)


def test_out_of_task_queries() -> None:
    learner = nearest(2.0)
    found = tfmeta.uncertainty(learner, Scripted(8, 0.2), 20, support_ways=5, verbose=False)
    assert found.probabilities.shape == (100, 5)
    assert found.out_of_task.shape == (60, 5)
    # Without them, the same: this learner's queries do not depend on each other.
    x = np.concatenate([Scripted(8, 0.2).batch(e)[0]["query_x"][0] for e in range(20)])
    p = c.softmax(-4 * ((x[:, None] - np.eye(8)[:5]) ** 2).sum(axis=-1))
    outside = np.tile(np.arange(8) >= 5, 20)
    np.testing.assert_allclose(found.out_of_task, p[outside], atol=1e-5)
    np.testing.assert_allclose(found.probabilities, p[~outside], atol=1e-5)
    assert found.auroc_entropy == pytest.approx(c.auroc(c.entropy(p), outside), abs=1e-3)
    assert found.auroc_max_probability == pytest.approx(c.auroc(-p.max(axis=1), outside), abs=1e-3)
    assert 0.9 < found.auroc_entropy < 1
    assert "100 queries, 60 out of task" in str(found)
    assert "AUROC, entropy" in str(found)


def test_out_of_task_queries_of_drawn_episodes() -> None:
    glyphs = np.random.default_rng(0).random((80, 8), np.float32)
    sampler = tfmeta.data.EpisodeSampler(
        tfmeta.data.ClassDataset(glyphs, np.repeat(np.arange(10), 8)), ways=7, shots=2, queries=3
    )
    found = tfmeta.uncertainty(nearest(), sampler, 4, support_ways=5, verbose=False)
    assert (len(found.labels), len(found.out_of_task)) == (4 * 15, 4 * 6)
    inputs, targets = sampler.batch(0)
    of_class = [inputs["support_x"][0][inputs["support_y"][0] == k].mean(axis=0) for k in range(5)]
    squares = ((inputs["query_x"][0][:, None] - of_class) ** 2).sum(axis=-1)
    np.testing.assert_allclose(
        found.probabilities[:15], c.softmax(-squares[targets[0] < 5]), atol=1e-5
    )


def test_what_has_no_uncertainty() -> None:
    with pytest.raises(ValueError, match=r"`support_ways` must be less than the sampler's ways"):
        tfmeta.uncertainty(nearest(), Scripted(4), 2, support_ways=4, verbose=False)
    with pytest.raises(ValueError, match=r"`support_ways` must be at least 2.*support_ways=1"):
        tfmeta.uncertainty(nearest(), Scripted(4), 2, support_ways=1, verbose=False)
    with pytest.raises(ValueError, match="`episodes` must be at least 1"):
        tfmeta.uncertainty(nearest(), Scripted(), 0)
    with pytest.raises(TypeError, match=r"`learner` must be a tfmeta.MetaLearner"):
        tfmeta.uncertainty(tfmeta.models.mlp((4,), 4), Scripted())
    regression = tfmeta.MAML(tfmeta.models.mlp((1,), 1, units=(3,)), 0.1)
    regression.compile("sgd", "mse")
    waves = tfmeta.data.Sinusoids(shots=2, queries=2)
    with pytest.raises(ValueError, match="Received: targets of float"):
        tfmeta.uncertainty(regression, waves, 1, verbose=False)
    images = tfmeta.data.ClassDataset(np.ones((40, 8), np.float32), np.repeat(np.arange(10), 4))
    ranges = tfmeta.data.EpisodeSampler(images, (4, 6), 1, 1)
    with pytest.raises(ValueError, match="must draw tasks of one size where there are `support_"):
        tfmeta.uncertainty(nearest(), ranges, 1, support_ways=3, verbose=False)
    padded = tfmeta.uncertainty(nearest(), ranges, 3, verbose=False)
    assert padded.probabilities.shape[1] == 6
    assert 12 <= len(padded.labels) <= 18
