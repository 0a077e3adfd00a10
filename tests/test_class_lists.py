"""Lists of classes and of the fewest images: what is left out is said, what is wrong is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_cli import ANY_WAYS, refused, write_images
from tests.test_cli import tfmeta as command
from tests.test_cli_learners import SETTINGS
from tfmeta.class_lists import ClassLists, files_of
from tfmeta.run_data import load_data
from tfmeta.runs import SPLITS, Run, Settings

LISTS = {"train": ["class4", "class1", "class6"], "validation": ["class0", "class2"]}
LISTS |= {"test": ["class3", "class5"]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine classes; the seventh has two images, the others five."""
    folder = write_images(tmp_path_factory.mktemp("data") / "photos", 9)
    for number in (0, 1, 2):
        (folder / "class7" / f"{number}.png").unlink()
    return folder


def write(folder: Path, **lists: list[str] | bytes) -> Path:
    """Write a file for each part, as an editor of Windows would."""
    folder.mkdir(exist_ok=True)
    for part, names in {**LISTS, **lists}.items():
        text = names if isinstance(names, bytes) else "\r\n".join(["", *names, " "]).encode()
        (folder / f"{part}.txt").write_bytes(b"\xef\xbb\xbf" + text if part == "train" else text)
    return folder


def test_lists_decide_and_go_on(photos: Path, tmp_path: Path) -> None:
    folder, run = write(tmp_path / "splits"), tmp_path / "run"
    shared = ("train", photos, *ANY_WAYS, "-o", run)
    said = command(*shared, "--epochs", 1, "--splits", folder).output
    assert Run(run).settings().classes == LISTS
    assert "Left out 2 classes in no list: class7, class8" in said
    assert "train           3 classes      15 examples" in said
    each = [x for part in SPLITS for x in (f"--{part}-classes", folder / f"{part}.txt")]
    command(*shared, "--epochs", 2, "--resume", *each)
    command(*shared, "--epochs", 2, "--resume")  # those of the run
    write(folder, train=["class4", "class1", "class8"])
    said = refused(*shared, "--epochs", 3, "--resume", "--splits", folder)
    assert "The train classes must be the 3 that there were when this was started" in said
    command("evaluate", run, "--episodes", 2, "--no-references")


def test_classes_of_few_images_are_left_out(photos: Path, tmp_path: Path) -> None:
    values = json.loads(SETTINGS) | {"data": str(photos), "min_per_class": 3}
    settings, said = Settings(**values), []
    parts = load_data(settings, tell=said.append)
    assert sorted(name for part in parts for name in part.class_names) == [
        f"class{c}" for c in range(9) if c != 7
    ]
    assert said == ["Left out 1 class of fewer than 3 images: class7 (2)"]
    assert all(np.diff(part.class_offsets).min() >= 3 for part in parts)
    said.clear()
    folder = write(tmp_path / "splits", train=["class7", "class1", "class4"])
    parts = load_data(settings, ClassLists(files_of(folder)), said.append)
    assert {split: [*part.class_names] for split, part in zip(SPLITS, parts, strict=True)} == {
        **LISTS,
        "train": ["class1", "class4"],
    }
    assert said == [
        "Left out 2 classes in no list: class6, class8",
        "Left out 1 class of fewer than 3 images: class7 (2)",
    ]
    message = "`min_per_class` must leave a class for training. Received: min_per_class=9 for"
    shared = ("train", photos, *ANY_WAYS, "-o", tmp_path / "run")
    assert message in refused(*shared, "--min-per-class", 9)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"test": ["class3", "clas5"]}, "test.txt', line 3 must name one of the 9 classes of the"),
        ({"test": ["class3", "clas5"]}, "Received: 'clas5'. Did you mean 'class5'?"),
        ({"test": ["a", "b", "c"]}, "Received: 'a' (and 2 more of them)."),
        ({"test": ["class3", "class3"]}, "Received: 'class3' in '{folder}/test.txt', line 3 and"),
        ({"test": ["class0"]}, "line 2 and in '{folder}/validation.txt', line 2"),
        ({"test": []}, "'{folder}/test.txt' must name at least one class. Received: none"),
        (
            {"test": b"class3\nclass\xff\n"},
            "must be text in UTF-8. Received: other bytes in line 2",
        ),
    ],
)
def test_what_is_wrong_with_a_list_is_said(
    lists: dict[str, list[str] | bytes], message: str, photos: Path, tmp_path: Path
) -> None:
    folder = write(tmp_path / "splits", **lists)
    said = refused("train", photos, *ANY_WAYS, "--splits", folder, "-o", tmp_path / "run")
    assert message.format(folder=folder) in said
    assert not (tmp_path / "run").exists()


def test_lists_go_together(photos: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "splits")
    one = ("--train-classes", folder / "train.txt")
    assert "go together: say all of them." in refused("train", photos, *one)
    assert "choose one." in refused("train", photos, *one, "--splits", folder)
    assert "are for a folder of images, not for 'glyphs'" in refused("train", "glyphs", *one)
    assert "--min-per-class is for a folder" in refused("train", "glyphs", "--min-per-class", 3)
    (folder / "test.txt").unlink()
    said = refused("train", photos, "--splits", folder)
    assert f"There is no list of classes '{folder / 'test.txt'}'" in said


def test_names_are_lines(tmp_path: Path) -> None:
    """Whatever Python takes for the end of a line, only that of a text file is one."""
    odd = ["Greek/alpha\u2028beta", "a # b", "c\x0bd"]
    lists = ClassLists(files_of(write(tmp_path, train=odd)))
    assert lists.checked([*odd, *LISTS["validation"], *LISTS["test"]])["train"] == odd
