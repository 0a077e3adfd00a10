"""What `tfmeta predict` prints: text, JSON and CSV say the same, and any names are quoted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.test_cli import refused, write_images
from tests.test_cli import tfmeta as command
from tfmeta.classifier import Answer, Classifier
from tfmeta.cli.answers import WRITERS
from tfmeta.threshold import Threshold

NAMES = ("cat", 'a, "b"', "eel")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 2, images=2)


def classifier(**more: object) -> Classifier:
    """Logits are the means of the channels, times 20."""
    layers = [keras.Input([8, 8, 3]), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*layers, keras.layers.Rescaling(20.0)])
    how = {"size": [8, 8], "grayscale": False, "invert": False}
    return Classifier(model, NAMES, how, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapted") / "few"
    classifier().save(path)
    return path


def test_ranks_are_those_of_the_logits(images: Path) -> None:
    files = sorted(images.rglob("*.png"))
    whole = classifier()
    answers = whole.rank(files)
    assert whole.classify(files) == [(x.name, x.probability) for x in answers]
    from tfmeta.data.images import read_image

    pixels = np.stack([read_image(file, **whole.images) for file in files]).astype(np.float32)
    logits = 20 * (pixels / 255).mean((1, 2))
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for answer, p in zip(answers, expected, strict=True):
        names, found = zip(*answer.classes, strict=True)
        assert list(names) == [NAMES[i] for i in np.argsort(-p)]
        np.testing.assert_allclose(found, np.sort(p)[::-1], rtol=1e-4)
        assert (answer.name, answer.probability) == answer.classes[0]
    assert [x.classes for x in whole.rank(files, 2)] == [x.classes[:2] for x in answers]
    none = classifier(unknown=Threshold(1e6, "probability")).rank(files)
    assert [x.name for x in none] == ["unknown"] * len(files)
    assert [x[1:] for x in none] == [x[1:] for x in answers]
    with pytest.raises(ValueError, match="`top` must be at most 3, as many as there are classes"):
        whole.rank(files, 4)


def test_every_format_says_the_same(adapted: Path, images: Path) -> None:
    def printed(*options: object) -> str:
        return command("predict", adapted, images, *options).stdout

    objects = json.loads(printed("--format", "json", "--top", 2))
    (names, *rows) = csv.reader(printed("--format", "csv", "--top", 2).splitlines())
    assert names == [
        *("file", "class", "probability", "class_1", "probability_1"),
        *("class_2", "probability_2"),
    ]
    lines = [line.split("\t") for line in printed("--top", 2).splitlines()]
    assert len(objects) == len(rows) == len(lines) == 4
    for found, row, line in zip(objects, rows, lines, strict=True):
        ranked = [x for each in found["classes"] for x in (each["class"], each["probability"])]
        whole = [found["file"], found["class"], found["probability"], *ranked]
        assert row == [str(x) for x in whole]
        assert line == [f"{x:.3f}" if isinstance(x, float) else x for x in whole]
        assert found["class"] == found["classes"][0]["class"]
    assert [x[:3] for x in lines] == [x.split("\t") for x in printed().splitlines()]
    plain = json.loads(printed("--format", "json"))
    assert plain == [{k: v for k, v in x.items() if k != "classes"} for x in objects]
    assert "`top` must be at most 3" in refused("predict", adapted, images, "--top", 4)
    assert "Did you mean 'json'?" in refused("predict", adapted, images, "--format", "jsn")


def test_odd_names_are_quoted() -> None:
    """Those of files that are not UTF-8, and with commas, tabs and quotes."""
    files = [Path('a,"b"\n.png'), Path("caf\udce9.png")]
    answers = [Answer("unknown", 0.5, (("x,y", 0.5), ("z", 0.25)))] * 2
    found = json.loads("\n".join(WRITERS["json"](files, answers, True)))
    assert [x["file"] for x in found] == [str(file) for file in files]
    text = "\n".join(WRITERS["csv"](files, answers, True))
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert [row[0] for row in rows[1:]] == [str(file) for file in files]
    assert rows[1][1:] == ["unknown", "0.5", "x,y", "0.5", "z", "0.25"]
    assert "\udce9" not in "\n".join(WRITERS["json"](files, answers, True))
