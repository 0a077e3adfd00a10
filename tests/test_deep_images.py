"""Images of 16 bits, with transparency or of several pages: from training to the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import tfmeta
from tests.data.image_bytes import png
from tests.test_cli import refused
from tests.test_cli import tfmeta as command
from tfmeta.cli.repeat import train_command
from tfmeta.cli.train import train
from tfmeta.data import ClassDataset, EpisodeSampler
from tfmeta.runs import Run

SIDE = 16
DEEP: dict[str, Any] = {"size": [SIDE, SIDE], "grayscale": False, "dtype": "uint16", "alpha": True}


def write(folder: Path, classes: int, images: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        pattern = rng.integers(0, 40000, [SIDE, SIDE, 4])
        for i in range(images):
            pixels = (pattern + rng.integers(0, 20000, pattern.shape)).astype(np.uint16)
            (folder / f"class{c}" / f"{i}.png").write_bytes(png(pixels, 6))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "deep", 3)


def learner() -> tfmeta.MetaLearner:
    keras.utils.set_random_seed(0)
    layers = [keras.Input((SIDE, SIDE, 4)), keras.layers.Flatten(), keras.layers.Dense(5)]
    return tfmeta.PrototypicalNetwork(keras.Sequential(layers))


def test_a_classifier_sees_what_a_sampler_draws(folder: Path, tmp_path: Path) -> None:
    classifier = tfmeta.Classifier.adapt(learner(), folder, DEEP)
    files = sorted(folder.rglob("*.png"))
    dataset = ClassDataset.from_directory(folder, dtype="uint16", alpha=True)
    inputs, _ = EpisodeSampler(dataset, ways=3, shots=2, queries=1).batch(0)
    drawn = {x.tobytes() for key in ("support_x", "query_x") for x in inputs[key][0]}
    seen: list[np.ndarray] = []
    model = classifier.model

    def spy(x: np.ndarray) -> Any:
        seen.append(np.asarray(x))
        return model(x)

    object.__setattr__(classifier, "model", spy)
    answers = classifier.rank(files)
    assert {x.tobytes() for x in seen[0]} == drawn  # bit for bit
    object.__setattr__(classifier, "model", model)
    classifier.save(tmp_path / "saved")
    read = tfmeta.Classifier.load(tmp_path / "saved")
    assert read.images == DEEP
    for one, other in zip(answers, read.rank(files), strict=True):
        assert one.name == other.name
        assert one.probability == pytest.approx(other.probability, abs=1e-6)
    one_more = read.add_class("another", files[:2])
    assert len(one_more.rank(files[:1])[0].classes) == 4


def test_what_is_lost_of_files_to_classify_is_said_once(folder: Path) -> None:
    plain = keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten()])
    words = r"^Of 9 image\(s\) .*: 9 brought from 16 bits to 8 \(.*; 9 laid on white paper where tr"
    with pytest.warns(UserWarning, match=words) as caught:
        classifier = tfmeta.Classifier.adapt(tfmeta.PrototypicalNetwork(plain), folder)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=words) as caught:
        classifier.classify(sorted(folder.rglob("*.png")))
    assert len(caught) == 1


def test_exports_with_a_preprocessing_of_8_bits_refuse(folder: Path, tmp_path: Path) -> None:
    message = r"`format` must be one of 'keras', 'tflite' for images of other types than uint8 or "
    for images in ({"dtype": "uint16"}, {"alpha": True}, {"dtype": "float32"}):
        with pytest.raises(ValueError, match=message):
            tfmeta.Classifier.adapt(
                learner(), tmp_path, {"size": SIDE, **images}, format="saved_model"
            )
        with pytest.raises(ValueError, match=message):
            tfmeta.Classifier(None, ("a", "b"), images, format="saved_model")
    tfmeta.Classifier(None, ("a", "b"), {"dtype": "uint8"}, format="saved_model")


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"dtype": "int64"}, "`dtype` must be one of"), ({"alpha": 3}, "alpha and transductive must")],
)
def test_a_strangers_classifier_of_other_images(
    facts: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    from tfmeta.classifier import _digest

    tfmeta.Classifier.adapt(learner(), folder, DEEP).save(tmp_path / "saved")
    file = tmp_path / "saved" / "classifier.json"
    known = json.loads(file.read_text())
    known["images"] |= facts
    del known["sha256"]
    file.write_text(json.dumps({**known, "sha256": _digest(known)}))
    with pytest.raises(ValueError, match=message):
        tfmeta.Classifier.load(tmp_path / "saved")


def test_options_are_of_folders() -> None:
    for options in (("--dtype", "uint16"), ("--alpha",), ("--pages", "all")):
        said = refused("train", "glyphs", *options)
        assert f"{options[0]} is for a folder of images, not for 'glyphs'." in said
    assert "'uint17' is none of uint8, uint16, float32. Did you mean 'uint16'?" in refused(
        "train", "glyphs", "--dtype", "uint17"
    )


@pytest.mark.slow
def test_from_training_to_answers(tmp_path: Path) -> None:
    folder, run, adapted = write(tmp_path / "deep", 9), tmp_path / "run", tmp_path / "adapted"
    pages = [Image.fromarray(np.full((SIDE, SIDE, 3), 60 * i, np.uint8)) for i in range(3)]
    pages[0].save(folder / "class0" / "pages.gif", save_all=True, append_images=pages[1:])
    options = ("--dtype", "uint16", "--alpha", "--pages", "all")
    few = ("--ways", 2, "--queries", 1, "--epochs", 1, "--steps", 2, "--validation-episodes", 2)
    said = command("train", folder, *options, *few, "--filters", 4, "-o", run).output
    assert "could not be kept" not in said
    settings = Run(run).settings()
    assert settings.images == {
        **{"size": [SIDE, SIDE], "grayscale": False, "invert": False},
        **{"dtype": "uint16", "alpha": True},
    }
    assert settings.data_options == {"dtype": "uint16", "alpha": True, "pages": "all"}
    again = train_command(settings, train.params, "run")
    assert "--dtype uint16 --alpha --pages all" in again
    command("evaluate", run, "--episodes", 2, "--no-references")
    command("report", run, "-o", tmp_path / "report.html", "--episodes", 4)
    for name in ("class7", "class8"):
        (tmp_path / "support" / name).parent.mkdir(exist_ok=True)
        (folder / name).rename(tmp_path / "support" / name)
    command("adapt", run, "--support", tmp_path / "support", "-o", adapted)
    lines = command("predict", adapted, tmp_path / "support").output
    assert "class7\t" in lines
    assert "could not be kept" not in lines
    said = refused(
        *("adapt", run, "--support", tmp_path / "support", "-o", tmp_path / "other"),
        *("--format", "saved_model"),
    )
    assert "`format` must be one of 'keras', 'tflite' for images of other types than uint8" in said
    assert not (tmp_path / "other").exists()
