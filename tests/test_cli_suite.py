"""`tfmeta evaluate --suite`: one run on several data sets, in the shape of its own."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import tfmeta as package
from tests.test_cli import ANY_WAYS, refused, tfmeta
from tests.test_unknown import write_images
from tfmeta import run_data, training
from tfmeta.data import ClassDataset
from tfmeta.runs import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("suite")
    photos = write_images(root / "photos", 12)
    tfmeta("train", photos, *ANY_WAYS, "-a", "prototypical", "--output", root / "run")
    return root / "run"


def other_images(folder: Path) -> Path:
    """Six classes of grey images of another size, six of each."""
    random = np.random.default_rng(0)
    for c in range(6):
        (folder / f"kind{c}").mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 256, (9, 15), np.uint8)
            Image.fromarray(pixels).save(folder / f"kind{c}" / f"{i}.png")
    return folder


def test_each_column_is_what_evaluate_says(run: Path, tmp_path: Path) -> None:
    photos, other = run.parent / "photos", other_images(tmp_path / "other")
    encoder = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Flatten()])
    encoder.save(tmp_path / "pixels.keras")
    numbers = ("--episodes", 6, "--ways", 2, "--shots", 1, "--queries", 2, "--seed", 3)
    options = ("--encoder", tmp_path / "pixels.keras", "--json", tmp_path / "suite.json")
    said = tfmeta("evaluate", run, "--suite", f"{photos},{other}", *numbers, *options).output
    found = json.loads((tmp_path / "suite.json").read_text())
    assert (found["episodes"], found["ways"], found["seed"]) == (6, 2, 3)
    alone = tfmeta("evaluate", run, *numbers, "--no-references").output.splitlines()[-1]
    score = found["data_sets"]["photos"]["methods"]["prototypical"]
    assert f"{100 * score['mean']:.2f} % ± {100 * score['ci95']:.2f}" in alone
    # The other folder's classes are all new to the run, and all are used, in its shape.
    learner, settings = Run(run).learner(), Run(run).settings()
    every = ClassDataset.from_directory(other, size=(12, 12))
    assert every.num_classes == 6
    sampler = training.evaluation_sampler(settings, every, 2, 1, 2, 3)
    expected = package.evaluate(learner, sampler, 6, verbose=False)
    methods = found["data_sets"]["other"]["methods"]
    assert methods["prototypical"]["mean"] == pytest.approx(expected.mean)
    # The given encoder hands on the pixels, so that the centroid on them is the same method.
    beside = package.compare({"prototypical": learner}, sampler, 6, verbose=False)
    raw = beside.per_episode["nearest centroid on raw inputs"].mean()
    assert methods["nearest centroid on pixels.keras"]["mean"] == pytest.approx(raw)
    assert "nearest centroid on raw inputs" not in methods
    header = next(line for line in said.splitlines() if "mean rank" in line)
    assert header.split() == ["photos", "other", "mean", "rank"]
    assert "6 classes" in said


def test_a_folder_is_known_by_where_it_lies(run: Path, tmp_path: Path) -> None:
    """A link to the run's own folder is that folder, whose training classes are left out."""
    (tmp_path / "link").symlink_to(run.parent / "photos")
    other = other_images(tmp_path / "photos")
    names = f"{tmp_path / 'link'},{other}"
    said = tfmeta("evaluate", run, "--suite", names, "--episodes", 2, "--ways", 2, "--queries", 2)
    assert "photos (test), 2 classes" in said.output
    header = next(line for line in said.output.splitlines() if "mean rank" in line)
    assert header.split()[:2] == [str(run.parent / "photos"), str(other)]


@pytest.mark.slow
def test_a_data_set_known_by_name_gets_the_runs_shape(run: Path) -> None:
    options = ("--episodes", 3, "--queries", 2)
    said = tfmeta("evaluate", run, "--suite", f"glyphs,{run.parent / 'photos'}", *options).output
    assert "as 12x12 colour" in said


def test_what_cannot_be(run: Path, tmp_path: Path) -> None:
    said = refused("evaluate", run, "--suite", "omniglott")
    assert "'omniglott' is neither a folder nor one of omniglot" in said
    assert "Did you mean 'omniglot'?" in said
    assert "'glyphs' stands there twice" in refused("evaluate", run, "--suite", "glyphs,glyphs")
    said = refused("evaluate", run, "--suite", "glyphs", "--no-references")
    assert "--no-references is not for --suite" in said
    assert "--encoder and --json go with --suite" in refused("evaluate", run, "--json", "x.json")
    encoder = keras.Sequential([keras.Input((10, 12, 3)), keras.layers.Flatten()])
    encoder.save(tmp_path / "encoder.keras")
    options = ("--suite", run.parent / "photos", "--encoder", tmp_path / "encoder.keras")
    assert "--encoder must take the images of the run" in refused("evaluate", run, *options)


def test_classes_that_were_trained_on_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two data sets may divide the same images otherwise, as cifar_fs and fc100 do."""
    random = np.random.default_rng(0)
    names = [f"class{c}" for c in range(12)]
    pixels = random.integers(0, 256, (72, 8, 8, 3), np.uint8)
    every = ClassDataset(pixels, np.repeat(names, 6))
    order = {"cifar_fs": names, "fc100": names[6:] + names[:6]}

    def load(name: str, *_: object, **__: object) -> tuple[ClassDataset, ...]:
        mine = order[name]
        parts = (every.select(mine[i : i + 4]) for i in (0, 4, 8))
        return tuple(parts)

    monkeypatch.setattr(run_data, "load", load)
    tiny = ("--downsample", "stride", "--filters", "4", "--queries", "2", "--steps", "2")
    rest = ("--meta-batch-size", "2", "--validation-episodes", "2", "--ways", "2")
    tfmeta("train", "cifar_fs", *tiny, *rest, "-a", "prototypical", "-o", tmp_path / "run")
    options = ("--episodes", 2, "--ways", 2, "--queries", 2)
    said = tfmeta("evaluate", tmp_path / "run", "--suite", "cifar_fs,fc100", *options).output
    # Of those for training, 0 to 3, the other has 2 and 3 for testing.
    assert "Warning: the run was trained on 2 of the 4 classes of fc100" in said
    assert "as cifar_fs: 'class2', 'class3'" in said
    assert said.count("Warning") == 1
