"""`tfmeta train --also`: one learner trained on several data sets."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_cli import TINY, refused, tfmeta
from tests.test_unknown import write_images
from tfmeta import run_data, training
from tfmeta.data import ClassDataset
from tfmeta.runs import Run

LEARNER = ("-a", "prototypical")


def grey_images(folder: Path, classes: int = 15, side: int = 9) -> Path:
    """Grey images of another size than the others', six of each class."""
    random = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"kind{c}").mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 256, (side, side + 4), np.uint8)
            Image.fromarray(pixels).save(folder / f"kind{c}" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("sources")
    return write_images(root / "photos", 12), grey_images(root / "drawings")


@pytest.fixture(scope="module")
def run(sources: tuple[Path, Path]) -> Path:
    photos, drawings = sources
    path = photos.parent / "run"
    tfmeta("train", photos, "--also", drawings, *TINY, *LEARNER, "--epochs", 2, "-o", path)
    return path


def test_episodes_are_of_either_in_the_shape_of_the_first(
    run: Path, sources: tuple[Path, Path]
) -> None:
    settings = Run(run).settings()
    assert [*settings.also] == [str(sources[1])]
    parts = run_data.load_data(settings)
    photos = ClassDataset.from_directory(sources[0], size=12)
    drawings = ClassDataset.from_directory(sources[1], size=12)
    assert parts[0].example_shape == (12, 12, 3)
    # Six tenths, two tenths and two tenths of the classes of each, by themselves.
    counts = [(part.groups or ()).count for part in parts]
    assert [count("photos") for count in counts] == [7, 3, 2]
    assert [count("drawings") for count in counts] == [9, 3, 3]
    for part in parts:
        for c, name in enumerate(part.class_names):
            source, _, own = name.partition("/")
            of = {"photos": photos, "drawings": drawings}[source]
            k = of.class_names.index(own)
            here, there = (
                x.examples[x.class_indices[x.class_offsets[i] : x.class_offsets[i + 1]]]
                for x, i in ((part, c), (of, k))
            )
            # Grey becomes three equal channels.
            np.testing.assert_array_equal(here, np.broadcast_to(there, here.shape))
    sampler = training.training_sampler(settings, parts[0])
    drawn = sampler.draw_classes(0, 64)
    of_tasks = [{(parts[0].groups or ())[c] for c in task} for task in drawn]
    assert all(len(of) == 1 for of in of_tasks)
    assert {name for of in of_tasks for name in of} == {"photos", "drawings"}


def test_parts_stay_the_same_when_classes_are_added(run: Path, sources: tuple[Path, Path]) -> None:
    settings = Run(run).settings()
    before = [part.class_names for part in run_data.load_data(settings)]
    new = sources[1] / "another"
    new.mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(new / "0.png")
    try:
        assert [part.class_names for part in run_data.load_data(settings)] == before
        apart = dataclasses.replace(settings, classes=None)
        assert [part.class_names for part in run_data.load_data(apart)] != before
    finally:
        (new / "0.png").unlink()
        new.rmdir()


def test_it_is_evaluated_on_all_and_on_each(run: Path, sources: tuple[Path, Path]) -> None:
    photos, drawings = sources
    numbers = ("--episodes", 4, "--queries", 2, "--ways", 2)
    said = tfmeta("evaluate", run, *numbers, "--no-references").output
    assert f"{photos} (test) (2 classes) and images of {drawings} (test) (3 classes), 5" in said
    file = run.parent / "suite.json"
    said = tfmeta(
        "evaluate", run, "--suite", f"{drawings},{photos}", *numbers, "--json", file
    ).output
    # Of each only the classes that were not trained on.
    assert f"{photos} (test), 2 classes" in said
    assert f"{drawings} (test), 3 classes" in said
    assert [*json.loads(file.read_text())["data_sets"]] == ["drawings", "photos"]
    page = run.parent / "report.html"
    tfmeta("report", run, "--output", page, *numbers, "--no-references")
    assert f"--also {drawings}" in page.read_text()


def test_it_goes_on_where_it_was(run: Path, sources: tuple[Path, Path]) -> None:
    """The same weights as of a run that was not interrupted."""
    photos, drawings = sources
    path = run.parent / "resumed"
    options = ("train", photos, "--also", drawings, *TINY, *LEARNER, "-o", path)
    tfmeta(*options, "--epochs", 1)
    tfmeta(*options, "--epochs", 2, "--resume")
    one, other = (Run(folder).learner().get_weights() for folder in (run, path))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    said = refused("train", photos, *TINY, *LEARNER, "-o", path, "--epochs", 3, "--resume")
    assert "`also` must be" in said
    assert str(drawings) in said


@pytest.mark.slow
def test_other_commands_take_it(run: Path, sources: tuple[Path, Path], tmp_path: Path) -> None:
    photos, drawings = sources
    support = write_images(tmp_path / "support", 2, images=2)
    options = ("--support", support, "--output", tmp_path / "adapted", "--false-acceptance", 0.2)
    tfmeta("adapt", run, *options)
    tiny = ("--ways", "2", "--queries", "2", "--steps", "1", "--meta-batch-size", "2")
    rest = ("--validation-episodes", "2", "--image-size", "12", "--downsample", "stride")
    search = ("--search", "filters=2,4", "--trials", 2, "--epochs", 1)
    options = ("--also", drawings, *LEARNER, *tiny, *rest, *search, "-o", tmp_path / "tuned")
    said = tfmeta("tune", photos, *options).output
    assert "Best of 2 trials" in said
    options = ("--also", drawings, *TINY, "-a", "simple-shot", "--pretrain-epochs", 1)
    said = tfmeta("train", photos, *options, "-o", tmp_path / "pretrained").output
    assert "classifier of 16 classes" in said  # seven and nine


def test_data_sets_known_by_name(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets the folder of data sets, and a stranger's run is given another one."""
    asked = []

    def load(name: str, **options: object) -> tuple[ClassDataset, ...]:
        asked.append((name, options))
        pixels = np.random.default_rng(0).integers(0, 256, (48, 8, 8, 3), np.uint8)
        every = ClassDataset(pixels, np.repeat(np.arange(8), 6), description=name)
        return every.select(range(4)), every.select([4, 5]), every.select([6, 7])

    monkeypatch.setattr(run_data, "load", load)
    there = tmp_path / "there"
    for source in ("cifar100", "dtd"):
        (there / source / "1").mkdir(parents=True)
        (there / source / "1" / "dataset_info.json").touch()
    options = (*TINY, *LEARNER, "--data-dir", there, "-o", tmp_path / "run")
    tfmeta("train", sources[0], "--also", "cifar_fs,dtd", *options)
    expected = {"data_dir": str(there.resolve())}
    assert asked == [("cifar_fs", expected), ("dtd", expected)]
    settings = Run(tmp_path / "run").settings()
    assert "data_dir" not in settings.data_options
    assert [name.split("/")[0] for name in (settings.classes or {})["test"]] == [
        *["photos"] * 2,
        *["cifar_fs"] * 2,
        *["dtd"] * 2,
    ]
    options = ("--episodes", 2, "--ways", 2, "--queries", 2, "--no-references")
    tfmeta("evaluate", tmp_path / "run", *options)
    there.rename(tmp_path / "elsewhere")
    assert "where there are none: say --data-dir" in refused("evaluate", tmp_path / "run", *options)
    asked.clear()
    tfmeta("evaluate", tmp_path / "run", *options, "--data-dir", tmp_path / "elsewhere")
    expected = {"data_dir": str(tmp_path / "elsewhere")}
    assert asked == [("cifar_fs", expected), ("dtd", expected)]


@pytest.mark.slow
def test_damaged_files_of_either_are_left_out(sources: tuple[Path, Path], tmp_path: Path) -> None:
    broken = write_images(tmp_path / "broken", 10)
    (broken / "class0" / "bad.png").write_text("no image")
    command = ("train", sources[0], "--also", broken, *TINY, *LEARNER, "--epochs", 1)
    said = refused(*command, "-o", tmp_path / "no")
    assert f"In '{broken}': " in said
    assert "bad.png" in said
    with pytest.warns(UserWarning, match=r"bad\.png"):
        tfmeta(*command, "--skip-unreadable", "-o", tmp_path / "run")
    assert Run(tmp_path / "run").settings().also == {str(broken): {"skip_unreadable": True}}
    command = ("train", "glyphs", "--also", broken, *TINY[2:], *LEARNER, "--epochs", 1)
    with pytest.warns(UserWarning, match=r"bad\.png"):
        tfmeta(*command, "--skip-unreadable", "-o", tmp_path / "letters")


def test_data_sets_to_test_on_alone_are_no_sources(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ClassDataset.from_directory(sources[0], size=12)
    nothing = copy.copy(every)
    nothing.class_names, nothing.class_offsets = (), np.zeros(1, np.int64)
    monkeypatch.setattr(run_data, "load", lambda *_, **__: (nothing, nothing, every))
    said = refused("train", sources[0], "--also", "eurosat", *TINY, *LEARNER, "-o", tmp_path / "r")
    assert "must have classes to train on" in said
    assert "Received: 'eurosat', which lacks some" in said


def test_what_cannot_be(sources: tuple[Path, Path], tmp_path: Path) -> None:
    photos, drawings = sources
    command = ("train", photos, *TINY, *LEARNER, "-o", tmp_path / "run", "--also")
    assert "Did you mean 'omniglot'?" in refused(*command, "omniglott")
    assert "stands there twice" in refused(*command, f"{drawings},{drawings}")
    assert "--also is for further data sets" in refused(*command, photos)
    for nothing in ("", f"{drawings},", ","):  # which would be the current folder
        assert "a name must not be empty" in refused(*command, nothing)
    said = refused(*command, "flowers,vgg_flowers")
    assert "'vgg_flowers', whose images are those of 'flowers'" in said
    said = refused("train", "cifar_fs", *TINY, *LEARNER, "--also", "fc100")
    assert "'fc100', whose images are those of 'cifar_fs': classes to train on would be" in said
    assert "--also reads 'mini_imagenet' from no folder" in refused(*command, "mini_imagenet")
    assert "lie in no other" in refused(*command, photos / "class0")
    assert "of 3 classes" in refused(*command, grey_images(tmp_path / "few", 3))
    said = refused(*command, drawings, "--ways", 8)
    assert "at most 7, for episodes are of each data set, and 'photos' has no more" in said
    # MAML's outputs are as many as the ways, in validation too, where each has three classes.
    said = refused(*command, drawings, "--ways", 4, "-a", "maml")
    assert "`ways` must be at most 3" in said
    assert "(validation) (3 classes)" in said
    said = refused(*command, drawings, "--dtype", "uint16")
    assert "brought to one shape: `dataset` must have uint8 images" in said
    output = ("-o", drawings / "run")
    assert "must lie outside" in refused(*command[:-3], *output, "--also", drawings)
    said = refused("train", "omniglot", *LEARNER, "--preset", "maml", "--also", drawings)
    assert "--preset maml turns the images of each episode at random" in said
    assert not (tmp_path / "run").exists()


def test_a_strangers_run_is_checked(run: Path, tmp_path: Path) -> None:
    settings = json.loads((run / "settings.json").read_text())
    for wrong in (
        {"omniglott": {}},
        {"relative/folder": {}},
        {"glyphs": {"preset": "x"}},
        ["glyphs"],
    ):
        (tmp_path / "settings.json").write_text(json.dumps({**settings, "also": wrong}))
        with pytest.raises(ValueError, match="`also` must be an object of data sets"):
            Run(tmp_path).settings()


def test_names_of_folders() -> None:
    assert run_data.names_of(["glyphs", "/a/photos", "/b/cats"]) == {
        "glyphs": "glyphs",
        "/a/photos": "photos",
        "/b/cats": "cats",
    }
    two = ["/a/photos", "/b/photos"]
    assert run_data.names_of(two) == dict(zip(two, two, strict=True))
