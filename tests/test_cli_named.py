"""Data sets known by name, asked for by the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.folders import folder_of
from tfmeta.cli import main
from tfmeta.data.class_splits import class_lists
from tfmeta.named_data import NAMED
from tfmeta.runs import Run

TINY = ("--epochs", "1", "--steps", "1", "--meta-batch-size", "1", "--ways", "2", "--queries", "1")
TINY += ("--filters", "4", "--validation-episodes", "2", "-a", "prototypical")


@pytest.fixture(autouse=True)
def cached_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFMETA_CACHE", str(tmp_path / "cache"))


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_all_are_listed_with_what_matters() -> None:
    output = run("datasets").output
    for name, named in NAMED.items():
        start = output.index(f"\n{name} " if name != "omniglot" else name)
        entry = "\n".join(output[start:].lstrip().split("\n")[:2])
        train, validation, test = named.classes
        assert f"classes {train} + {validation} + {test}" in entry
        assert f"licence: {named.licence}" in entry
        assert ("tested on the real data" in entry) == named.tested
        assert ("tested with mock data only" in entry) != named.tested


@pytest.mark.slow
def test_training_on_a_named_data_set_of_a_folder(tmp_path: Path) -> None:
    lists = class_lists("dtd", "meta_dataset")
    photos = folder_of(tmp_path / "photos", [one for part in lists.values() for one in part])
    out = tmp_path / "run"
    words = ("train", "dtd", "--folder", photos, "--image-size", 16, *TINY, "--output", out)
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert Run(out).settings().data_options == {"folder": str(photos), "size": 16}
    assert "33 classes      66 examples  dtd[meta_dataset, 16x16] train" in result.output
    result = run("evaluate", out, "--episodes", 2)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_another_split_and_some_of_the_examples(tmp_path: Path) -> None:
    lists = class_lists("cub", "meta_dataset")
    photos = folder_of(tmp_path / "photos", [one for part in lists.values() for one in part])
    out = tmp_path / "run"
    words = ("train", "cub", "--folder", photos, "--image-size", 16, *TINY, "--output", out)
    options = ("--class-split", "meta_dataset", "--examples-per-class", 2)
    result = run(*words, *options)
    assert result.exit_code == 0, result.output
    assert Run(out).settings().data_options["split"] == "meta_dataset"
    assert "140 classes     280 examples" in result.output
    page = tmp_path / "report.html"
    result = run("report", out, "--episodes", 2, "--output", page, "--no-references")
    assert result.exit_code == 0, result.output
    assert "--class-split meta_dataset --examples-per-class 2" in page.read_text()


def test_what_cannot_be_trained_on(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", class_lists("eurosat", "bscd_fsl")["test"])
    for words, text in (
        (("eurosat", "--folder", photos), "'eurosat' has no classes to train on"),
        (("mini_imagenet",), "`folder` must be given for 'mini_imagenet', of the command --folder"),
        (("glyphs", "--image-size", 16), "--image-size is for a folder of images"),
        (("spoken_digit", "--image-size", 16), "--image-size is for a folder of images"),
        (("cub", "--class-split", "meta"), "'meta' for 'cub', which has closer_look, meta_data"),
        (("glyphs", "--class-split", "own"), "for 'glyphs', which has none by name"),
        (("omniglot", "--examples-per-class", 3), "--examples-per-class is not for 'omniglot'"),
        ((photos, "--class-split", "own"), "--class-split is for a data set known by name"),
        (("glyphs", "--folder", photos), "glyphs are drawn, and have no options"),
        ((photos, "--folder", photos), "--folder is for a data set known by name"),
    ):
        result = run("train", *words, *TINY, "--output", tmp_path / "run")
        assert result.exit_code != 0
        assert text in result.output, result.output
        assert "Traceback" not in result.output
        assert not (tmp_path / "run").exists()


def test_texts_are_refused(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "text" / "clinc150"
    result = run("train", "clinc150", "--folder", folder, *TINY, "--output", tmp_path / "run")
    assert result.exit_code != 0
    assert "`data` must be images" in result.output
