"""From an encoder that Keras saved and a folder of images to a classifier, by one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfmeta
from tests.test_unknown import run, write_images

SIDE = 8


def encoder(channels: int = 3, side: int | None = SIDE, maps: bool = False) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers: list[Any] = [keras.layers.Rescaling(2.0, -1.0), keras.layers.Conv2D(4, 3)]
    layers += [] if maps else [keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((side, side, channels)), *layers])
    model.trainable = False
    return model


@pytest.mark.parametrize("channels", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_from_a_file_and_a_folder_to_a_classifier(channels: int, tmp_path: Path) -> None:
    model = encoder(channels)
    model.save(tmp_path / "encoder.keras")
    few = write_images(tmp_path / "few", 3, images=2)
    for kind in ("keras", "saved_model"):
        options = ("--support", few, "--output", tmp_path / kind, "--format", kind)
        result = run("adapt", tmp_path / "encoder.keras", *options)
        assert result.exit_code == 0, result.output
    answers = {
        kind: run("predict", tmp_path / kind, few).stdout for kind in ("keras", "saved_model")
    }
    assert answers["keras"] == answers["saved_model"]
    # What the encoder makes of the files, by hand.
    mode = "L" if channels == 1 else "RGB"
    pixels = [
        np.asarray(Image.open(file).convert(mode).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        for file in sorted(few.rglob("*.png"))
    ]
    x = np.reshape(pixels, (6, SIDE, SIDE, channels)).astype("float32") / 255
    z = keras.utils.normalize(np.asarray(model(x)))
    means = z.reshape(3, 2, -1).mean(1)
    nearest = ((z[:, None] - means) ** 2).sum(-1).argmin(1)
    found = [line.split("\t")[1] for line in answers["keras"].splitlines()]
    assert found == [f"class{c}" for c in nearest]
    served = tf.saved_model.load(tmp_path / "saved_model" / "saved_model")
    images = np.stack([np.asarray(Image.open(file)) for file in sorted(few.rglob("*.png"))])
    labels = served.predict(query_x=images)["labels"].numpy()
    assert [s.decode() for s in labels] == found


def test_from_a_learners_file(tmp_path: Path) -> None:
    learner = tfmeta.PrototypicalNetwork(encoder())
    few = write_images(tmp_path / "few", 2, images=2)
    classifier = tfmeta.Classifier.adapt(learner, few)
    learner.save(tmp_path / "learner.keras")
    result = run(
        *("adapt", tmp_path / "learner.keras", "--support", few, "--output", tmp_path / "out")
    )
    assert result.exit_code == 0, result.output
    files = sorted(few.rglob("*.png"))
    found = tfmeta.Classifier.load(tmp_path / "out").classify(files)
    for (name, p), (expected, q) in zip(found, classifier.classify(files), strict=True):
        assert (name, p) == (expected, pytest.approx(q, abs=1e-6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "must be a model that Keras saved"),
        (lambda: encoder(4), "must take images [n, height, width, 1 or 3] of one size"),
        (lambda: encoder(3, None), "of one size. Received: a model"),
        (lambda: encoder(maps=True), "`encoder` must return one vector [n, d] for each example"),
    ],
)
def test_bad_files(make: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "encoder.keras"
    if make is None:
        file.write_text("no model")
    else:
        make().save(file)
    few = write_images(tmp_path / "few", 2, images=2)
    result = run("adapt", file, "--support", few, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_what_a_file_cannot_do(tmp_path: Path) -> None:
    file = tmp_path / "encoder.keras"
    keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Lambda(lambda x: x)]).save(file)
    few = write_images(tmp_path / "few", 2, images=2)
    command = ("adapt", file, "--support", few, "--output", tmp_path / "out")
    assert "must be a model that Keras saved" in " ".join(run(*command).output.split())
    assert "--invert is for a run" in run(*command, "--invert").output
    with pytest.raises(ValueError, match=r"`format` must be one of 'keras'.*Did you mean 'keras'"):
        tfmeta.Classifier(None, ("a", "b"), {}, format="Keras")
    result = run(*command, "--false-acceptance", 0.1)
    assert "need the validation classes of a run" in " ".join(result.output.split())
