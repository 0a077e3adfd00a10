"""`unknown` as an answer: the rates it keeps, in Python, in exports and in the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image

import tfmeta
from tfmeta.cli import main
from tfmeta.data import ClassDataset, EpisodeSampler
from tfmeta.evaluation import logits_of_queries
from tfmeta.threshold import scores
from tfmeta.unknown import Threshold

SIZE, EACH = 6, 20
RATES = [{"false_acceptance": 0.05}, {"false_acceptance": 0.2}, {"false_rejection": 0.1}]


def classes(seed: int, number: int = 300) -> ClassDataset:
    """Vectors around the middle of each class, which lies anywhere."""
    rng = np.random.default_rng(seed)
    middles = np.repeat(3 * rng.normal(size=(number, SIZE)), EACH, 0)
    vectors = (middles + rng.normal(size=middles.shape)).astype("float32")
    return ClassDataset(vectors, np.repeat(np.arange(number), EACH))


def sampler(seed: int, ways: int = 10) -> EpisodeSampler:
    return EpisodeSampler(classes(seed), ways, shots=5, queries=10, seed=seed)


def identity() -> keras.Model:
    return keras.Sequential([keras.Input((SIZE,)), keras.layers.Identity()])


def prototypical() -> tfmeta.PrototypicalNetwork:
    return tfmeta.PrototypicalNetwork(identity(), temperature=0.3)


@pytest.fixture(scope="module")
def validation_and_test() -> list[tuple[Any, Any]]:
    """Logits of queries of 100 episodes of each, and which are of classes that were shown."""
    drawn = [
        logits_of_queries(prototypical(), sampler(seed), 100, 5, verbose=False) for seed in (1, 2)
    ]
    return [(z, y < 5) for z, y in drawn]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("score", [None, "probability", "prediction"])
def test_the_rate_is_kept_on_unseen_classes(
    rate: dict[str, float], score: str | None, validation_and_test: Any
) -> None:
    fitted, (z, shown) = validation_and_test
    threshold = tfmeta.unknown.fit_predictions(*fitted, score=score, **rate)
    ((name, asked),) = rate.items()
    # 5,000 queries of each kind.
    assert 0 <= asked - getattr(threshold, name) <= 1 / 5000
    unknown = threshold(z)
    found = {
        "false_acceptance": np.mean(~unknown[~shown]),
        "false_rejection": np.mean(unknown[shown]),
    }
    assert found[name] == pytest.approx(asked, abs=0.03)
    if score != "probability":
        assert sum(found.values()) < 0.5


def test_fit_is_what_its_episodes_say(validation_and_test: Any) -> None:
    """The rates are scikit-learn's, at the place on its curve."""
    threshold = tfmeta.unknown.fit(
        prototypical(), sampler(1), 100, support_ways=5, false_acceptance=0.1, verbose=False
    )
    (z, shown), _ = validation_and_test
    assert threshold == tfmeta.unknown.fit_predictions(z, shown, false_acceptance=0.1)
    found = scores(z, threshold.score).numpy()
    accepted, known, _ = sklearn.metrics.roc_curve(shown, found, drop_intermediate=False)
    last = np.flatnonzero(accepted <= 0.1)[-1]
    assert threshold.false_acceptance == pytest.approx(accepted[last], abs=1 / 5000)
    assert threshold.false_rejection == pytest.approx(1 - known[last], abs=1 / 5000)


def test_scores_are_those_of_numpy() -> None:
    z = np.random.default_rng(0).normal(0, 3, (50, 4))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    middle = np.median(p.max(1))
    by_p = Threshold(float(np.log(middle / (1 - middle))), "probability")
    np.testing.assert_array_equal(by_p(z), p.max(1) < middle)
    by_z = Threshold(2.0, "prediction")
    np.testing.assert_array_equal(by_z(z), z.max(1) < 2)
    assert tf.is_tensor(by_z(tf.constant(z)))
    assert by_z(np.array([[np.nan, np.nan]])).tolist() == [True]
    # Where float32 has p = 1 for both.
    surer = Threshold(60.0, "probability")
    assert surer(np.array([[0.0, 50.0], [0.0, 70.0]])).tolist() == [True, False]


def test_the_score_is_the_one_that_tells_better(validation_and_test: Any) -> None:
    """Between two class means, probabilities say nothing of what is far from both."""
    (z, shown), _ = validation_and_test
    assert tfmeta.unknown.fit_predictions(z, shown, false_rejection=0.1).score == "prediction"
    # The largest of logits that all moved by as much is worth nothing.
    moved = z + 100 * np.random.default_rng(0).normal(size=(len(z), 1))
    assert tfmeta.unknown.fit_predictions(moved, shown, false_rejection=0.1).score == "probability"


@pytest.mark.parametrize(
    "score", ["probability", pytest.param("prediction", marks=pytest.mark.slow)]
)
def test_exports_say_the_same(score: str, tmp_path: Path) -> None:
    learner, names = prototypical(), list("abcde")
    inputs, _ = sampler(3, ways=5).batch(0)
    x, y, q = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
    adapted = learner.adapt(x, y)
    q = np.concatenate([q, 4 * q])
    logits = np.asarray(adapted(q))
    threshold = Threshold(float(np.median(scores(logits, score))), score)
    expected = threshold(logits)
    assert 0.3 < expected.mean() < 0.7
    labels = np.where(expected, "unknown", np.array(names)[logits.argmax(1)])
    options: Any = {"class_names": names, "unknown": threshold}
    tfmeta.export.saved_model(adapted, tmp_path / "adapted", **options)
    learner.export(tmp_path / "learner", **options)
    few = tf.saved_model.load(tmp_path / "learner")
    for found in (
        tf.saved_model.load(tmp_path / "adapted").predict(query_x=q),
        few.adapt_and_predict(support_x=x, support_y=y.astype("int64"), query_x=q),
        few.predict(query_x=q, **few.adapt(x, y.astype("int64"))),
    ):
        np.testing.assert_array_equal(found["unknown"], expected)
        assert [s.decode() for s in found["labels"].numpy()] == labels.tolist()


def test_what_an_export_cannot_take_for_a_threshold(tmp_path: Path) -> None:
    learner = prototypical()
    inputs, _ = sampler(3, ways=5).batch(0)
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    with pytest.raises(TypeError, match=r"`unknown` must be a tfmeta\.unknown\.Threshold"):
        learner.export(tmp_path / "learner", unknown=0.5)  # type: ignore[arg-type]
    options: Any = {"unknown": Threshold(0.5, "probability")}
    with pytest.raises(ValueError, match="No class may be called 'unknown'"):
        tfmeta.export.saved_model(
            adapted, tmp_path / "adapted", class_names=["a", "b", "c", "d", "unknown"], **options
        )
    # Names are left out where there are none.
    tfmeta.export.saved_model(adapted, tmp_path / "adapted", **options)
    answer = tf.saved_model.load(tmp_path / "adapted").predict(query_x=inputs["query_x"][0])
    assert set(answer) == {"predictions", "unknown"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "Exactly one of `false_acceptance` and `false_rejection` must be given"),
        ({**RATES[0], **RATES[2]}, ValueError, r"Exactly one .*=0\.05, false_rejection=0\.1"),
        ({"false_acceptance": 1.0}, ValueError, "`false_acceptance` must be between 0 and 1"),
        ({"false_rejection": float("nan")}, ValueError, "`false_rejection` must be between"),
        ({"false_rejection": "0.1"}, TypeError, "`false_rejection` must be a number"),
        ({**RATES[0], "score": "entropy"}, ValueError, "`score` must be 'probability' or 'pred"),
        ({**RATES[0], "support_ways": 10}, ValueError, "`support_ways` must be less than"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"support_ways": 5, "verbose": False, **options}
    with pytest.raises(error, match=message):
        tfmeta.unknown.fit(prototypical(), sampler(1), 2, **given)


def test_predictions_of_one_kind_are_refused() -> None:
    z = np.zeros((4, 2))
    for shown in (np.ones(4, bool), np.zeros(4, bool)):
        with pytest.raises(ValueError, match="of classes that are shown, and of others"):
            tfmeta.unknown.fit_predictions(z, shown, false_rejection=0.1)
    with pytest.raises(ValueError, match=r"`predictions` and `shown` must be numbers \[n, ways\]"):
        tfmeta.unknown.fit_predictions(z, np.ones(4, int), false_rejection=0.1)


def test_a_threshold_by_hand_is_checked() -> None:
    with pytest.raises(TypeError, match="`value` must be a number"):
        Threshold("0.5", "probability")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`value` must be finite"):
        Threshold(float("nan"), "probability")
    with pytest.raises(ValueError, match="`score` must be 'probability' or 'prediction'"):
        Threshold(0.5, "p")
    with pytest.raises(ValueError, match=r"`predictions` must be \[n, ways\]. Received: .*\(3,\)"):
        Threshold(0.5, "probability")(np.zeros(3))


@pytest.mark.parametrize("rate", RATES)
def test_scores_that_are_all_alike_are_refused(rate: dict[str, float]) -> None:
    """One nearest neighbour is always of one class: nothing tells how near it is."""
    learner = tfmeta.KNearestNeighbors(identity())
    with pytest.raises(ValueError, match="`learner` must be surer of some queries than of others"):
        tfmeta.unknown.fit(learner, sampler(1), 5, support_ways=5, verbose=False, **rate)


def write_images(folder: Path, number: int, first: int = 0, images: int = 6) -> Path:
    """Write a sub-folder a class, whose images are nearly alike."""
    for c in range(first, first + number):
        rng = np.random.default_rng(c)
        pattern = rng.integers(0, 200, (12, 12, 3))
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(images):
            pixels = (pattern + rng.integers(0, 56, pattern.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")
    return folder


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 20 classes, and images of five more."""
    root = tmp_path_factory.mktemp("unknown")
    photos = write_images(root / "photos", 20)
    write_images(root / "few", 2, first=20, images=2)
    write_images(root / "others", 3, first=30)
    small = "--image-size 12 --filters 4 --downsample stride --ways 5 --queries 2 --steps 2"
    small += " --epochs 1 --validation-episodes 0"
    options = [*small.split(), "-a", "prototypical", "--output", root / "run"]
    result = run("train", photos, *options)
    assert result.exit_code == 0, result.output
    return root


def test_the_command_answers_unknown(trained: Path) -> None:
    answers = {}
    command = ("adapt", trained / "run", "--support", trained / "few", "--overwrite", "--output")
    for kind in ("keras", "saved_model"):
        result = run(*command, trained / "out", "--false-rejection", 0.1, "--format", kind)
        assert result.exit_code == 0, result.output
        assert "On validation episodes of 2 classes with 2 image(s) each" in result.output
        result = run("predict", trained / "out", trained / "few", trained / "others")
        answers[kind] = [line.split("\t")[1] for line in result.stdout.splitlines()]
    assert answers["keras"] == answers["saved_model"]
    assert answers["keras"][:4] == ["class20", "class20", "class21", "class21"]
    assert answers["keras"][4:].count("unknown") > 9
    # The exported model by itself.
    model = tf.saved_model.load(trained / "out" / "saved_model")
    files = sorted((trained / "others").rglob("*.png"))
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    labels = [s.decode() for s in model.predict(query_x=images)["labels"].numpy()]
    assert labels == answers["keras"][4:]
    file = trained / "out" / "classifier.json"
    assert json.loads(file.read_text())["unknown"]["score"] in ("probability", "prediction")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--false-rejection", "0.1", "--false-acceptance", "0.1"], "choose one"),
        (["--false-acceptance", "0"], "is not in the range 0<x<1"),
        (["--support", "photos", "--false-acceptance", "0.1"], "more than are shown: 21 at least"),
    ],
)
def test_bad_options_of_the_command(trained: Path, options: list[str], message: str) -> None:
    options = [str(trained / x) if x == "photos" else x for x in options]
    support = [] if "--support" in options else ["--support", trained / "few"]
    result = run("adapt", trained / "run", *support, "--output", trained / "none", *options)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.split())
    assert not (trained / "none").exists()


def test_a_class_that_is_called_unknown(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "few", 2)
    (folder / "class1").rename(folder / "unknown")
    threshold = Threshold(0.5, "probability")
    with pytest.raises(ValueError, match="No class may be called 'unknown'"):
        tfmeta.Classifier.adapt(prototypical(), folder, {"size": 4}, unknown=threshold)
