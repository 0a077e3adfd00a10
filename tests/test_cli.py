"""The command line, from training on a folder of images to classifying others."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result
from PIL import Image

from tfmeta import run_data, training
from tfmeta.classifier import Classifier
from tfmeta.cli import main
from tfmeta.cli.adapt import image_files
from tfmeta.cli.settings import run_outside_images
from tfmeta.data import ClassDataset
from tfmeta.distribution import digest
from tfmeta.runs import SPLITS, Run, Settings
from tfmeta.states import files as states

CLASSES = 10
ANY_WAYS = (
    *("--image-size", "12", "--downsample", "stride", "--filters", "4"),
    *("--queries", "2", "--steps", "2", "--meta-batch-size", "2", "--validation-episodes", "2"),
)
TINY = (*ANY_WAYS, "--ways", "2")


def tfmeta(*arguments: object, code: int = 0) -> Result:
    """Run the command and check its exit code."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object) -> str:
    """Run a command that must fail with an error and without a traceback; return what it says."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Error: " in result.output
    return " ".join(result.output.split())


def write_images(folder: Path, classes: int, images: int = 5) -> Path:
    """Write a sub-folder a class; images of a class share a pattern."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        pattern = rng.integers(0, 200, (14, 16, 3))
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(images):
            pixels = (pattern + rng.integers(0, 56, pattern.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "photos", CLASSES)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "few", 2, images=2)


@pytest.fixture(scope="module")
def prototypical(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "prototypical"
    tfmeta("train", photos, *TINY, "--epochs", 2, "--output", path)
    return path


@pytest.fixture(scope="module")
def maml(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "maml"
    said = tfmeta("train", photos, *TINY, "-a", "fomaml", "--epochs", 1, "--output", path).output
    rate = Run(path).settings().inner_learning_rate
    assert f"Inner learning rate {rate:g}, by the query loss of 32 training episodes" in said
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_datasets_lists_the_names() -> None:
    output = tfmeta("datasets").output
    for name in ("omniglot", "cifar_fs", "fc100", "glyphs"):
        assert name in output


@pytest.mark.parametrize("command", ["train", "evaluate", "adapt", "predict", "datasets"])
def test_help(command: str) -> None:
    assert f"Usage: main {command}" in tfmeta(command, "--help").output
    assert command in tfmeta("--help").output


def test_train_writes_a_run(prototypical: Path) -> None:
    assert set(contents(prototypical)) == {
        "model.keras",
        "settings.json",
        "history.csv",
        "learning_curve.png",
        "states/state-000000000002",
        "states/state-000000000004",
    }
    rows = Run(prototypical).history()
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(rows[0])
    with Image.open(prototypical / "learning_curve.png") as curve:
        assert min(curve.size) > 100


def test_a_folders_classes_are_split_and_written_down(prototypical: Path, photos: Path) -> None:
    settings = Run(prototypical).settings()
    assert settings.classes is not None
    together = [name for part in settings.classes.values() for name in part]
    assert sorted(together) == sorted(f"class{c}" for c in range(CLASSES))
    assert [len(settings.classes[split]) for split in SPLITS] == [6, 2, 2]
    parts = run_data.load_data(settings)
    assert [list(part.class_names) for part in parts] == list(settings.classes.values())


def test_a_class_added_to_the_folder_later_is_not_used(tmp_path: Path, prototypical: Path) -> None:
    settings = json.loads((prototypical / "settings.json").read_text())
    more = write_images(tmp_path / "more", CLASSES + 3)
    parts = run_data.load_data(Settings(**{**settings, "data": str(more)}))
    assert [list(part.class_names) for part in parts] == list(settings["classes"].values())


def test_omniglot_with_turned_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts share one array, which holds fewer examples than the turned classes have."""
    alphabets = [a for a in ("Greek", "Armenian", "ULOG") for _ in range(3)]
    names = [f"{alphabet}_{c}" for c, alphabet in enumerate(alphabets)]
    images = np.random.default_rng(0).integers(0, 256, (27, 16, 16, 1), np.uint8)
    characters = ClassDataset(images, np.arange(27) // 3, names, alphabets)
    monkeypatch.setattr(ClassDataset, "from_tfds", lambda *_, **__: characters)
    command = ("train", "omniglot", "--preset", "vinyals_final", *TINY[2:], "--epochs", 1)
    output = tfmeta(*command, "--output", tmp_path / "run").output
    assert "24 classes" in output
    assert Run(tmp_path / "run").model_file.exists()


@pytest.mark.parametrize("rotations", [False, True])
def test_a_part_is_told_by_its_own_examples(rotations: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), np.uint8)

    def told(images: np.ndarray, classes: list[int]) -> bytes:
        part = ClassDataset(images, np.repeat([2, 0, 1], 4)).select(classes)
        return digest(*training._samples(part.with_rotations() if rotations else part))

    for c in range(3):
        expected = told(images, [c])
        for i in range(12):
            other = images.copy()
            other[i, 0, 0] ^= 1
            assert (told(other, [c]) != expected) == (i // 4 == (1, 2, 0)[c])


def test_evaluate_prints_what_the_score_means(prototypical: Path, photos: Path) -> None:
    command = ("evaluate", prototypical, "--episodes", 7, "--queries", 3, "--seed", 5)
    output = tfmeta(*command).output
    assert f"images of {photos} (test), 2 classes" in output
    assert "prototypical, batch norm: running statistics" in output
    (score,) = (line for line in output.splitlines() if line.startswith("2-way 1-shot, seed 5: "))
    assert score.endswith("(95 % CI, 7 episodes)")
    assert tfmeta(*command, "--no-references").output.splitlines()[-1] == score
    for kind in ("the embedding", "raw inputs"):
        assert f"nearest centroid on {kind}" in output


@pytest.mark.slow
def test_the_rate_that_was_found_is_kept(photos: Path, tmp_path: Path, maml: Path) -> None:
    rate = Run(maml).settings().inner_learning_rate
    assert Run(maml).learner().inner_learning_rate == rate
    shutil.copytree(maml, tmp_path / "run")
    command = ("train", photos, *TINY, "-a", "fomaml", "--output")
    said = tfmeta(*command, tmp_path / "run", "--epochs", 2, "--resume").output
    assert "Inner learning rate" not in said
    assert Run(tmp_path / "run").settings().inner_learning_rate == rate
    other = (tmp_path / "run", "--resume", "--inner-learning-rate", rate / 2)
    assert f"`inner_learning_rate` must be {rate}" in refused(*command, *other)
    # Looking for it leaves no trace in what is trained: neither in names nor in numbers.
    assert Run(maml).learner().weights[0].path == "conv2d/kernel"
    given = (tmp_path / "given", "--epochs", 1, "--inner-learning-rate", rate)
    assert "Inner learning rate" not in tfmeta(*command, *given).output
    pairs = zip(Run(tmp_path / "given").learner().weights, Run(maml).learner().weights, strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_evaluate_names_the_batch_norm_of_maml(maml: Path) -> None:
    output = tfmeta("evaluate", maml, "--episodes", 2, "--split", "validation").output
    assert "fomaml, batch norm: transductive" in output


def test_a_run_that_is_interrupted_and_resumed_is_the_run_that_was_not(
    photos: Path, prototypical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", photos, *TINY, "--epochs", 2, "--output", tmp_path / "run")

    def interrupt(self: training.SaveEpoch, epoch: int, logs: object = None) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.SaveEpoch, "on_epoch_begin", interrupt)
        output = tfmeta(*command, code=130).output
    assert "1 of 2 epochs" in output
    assert "--resume" in output
    # As if the power had failed when the second epoch had its row but not yet its model.
    rows = Run(tmp_path / "run").history()
    Run(tmp_path / "run").write_history([*rows, {**rows[0], "epoch": "2"}])
    tfmeta(*command, "--resume")

    resumed, whole = Run(tmp_path / "run"), Run(prototypical)
    assert len(whole.history()) == 2
    assert resumed.history_file.read_bytes() == whole.history_file.read_bytes()
    pairs = zip(resumed.learner().weights, whole.learner().weights, strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_sigterm_in_an_epoch_loses_no_step(
    photos: Path, prototypical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", photos, *TINY, "--epochs", 2, "--output", tmp_path / "run")

    def end(self: training.SaveEpoch, batch: int, logs: object = None) -> None:
        if int(self.model.optimizer.iterations) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training.SaveEpoch, "on_train_batch_end", end)
        output = tfmeta(*command, code=128 + signal.SIGTERM).output
    assert "the state after step 3, and the model after 1 of 2 epochs" in output
    assert "The same command with --resume goes on from there." in output
    tfmeta(*command, "--resume")
    resumed, whole = Run(tmp_path / "run"), Run(prototypical)
    assert resumed.history_file.read_bytes() == whole.history_file.read_bytes()
    for a, b in zip(resumed.learner().weights, whole.learner().weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.slow
def test_maml_plus_plus_is_resumed_in_an_epoch(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", photos, *TINY, "-a", "maml++", "--epochs", 2, "--inner-steps", 2)
    tfmeta(*command, "--output", tmp_path / "whole")

    def end(self: training.SaveEpoch, batch: int, logs: object = None) -> None:
        if int(self.model.optimizer.iterations) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(training.SaveEpoch, "on_train_batch_end", end)
        tfmeta(*command, "--output", tmp_path / "run", code=130)
    tfmeta(*command, "--output", tmp_path / "run", "--resume")
    resumed, whole = Run(tmp_path / "run"), Run(tmp_path / "whole")
    assert resumed.history_file.read_bytes() == whole.history_file.read_bytes()
    for a, b in zip(resumed.learner().variables, whole.learner().variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_without_states_a_run_goes_on_from_its_model(
    prototypical: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(prototypical, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "states")
    tfmeta("train", photos, *TINY, "--epochs", 3, "--output", tmp_path / "run", "--resume")
    rows, before = Run(tmp_path / "run").history(), Run(prototypical).history()
    assert rows[:2] == before
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert int(Run(tmp_path / "run").learner().optimizer.iterations) == 6
    # As where it was killed after the model of an epoch, before its state: that is as it would be.
    shutil.copytree(prototypical, tmp_path / "whole")
    tfmeta("train", photos, *TINY, "--epochs", 3, "--output", tmp_path / "whole", "--resume")
    whole, lost = (
        {
            # Without the digest, and the numbers that layers get within a process.
            x.name: re.sub(rb"_\d+(?=[/_])", b"", x.read_bytes().partition(b"\n")[2])
            for x in Run(tmp_path / name).states.glob("state-*")
        }
        for name in ("whole", "run")
    )
    assert lost == {name: whole[name] for name in ("state-000000000004", "state-000000000006")}


def test_a_run_of_another_version_is_refused(prototypical: Path, tmp_path: Path) -> None:
    values = json.loads((prototypical / "settings.json").read_text())
    del values["shots"]
    (tmp_path / "settings.json").write_text(json.dumps({**values, "colour": 3}))
    text = refused("evaluate", tmp_path)
    assert "is damaged or of another version (it lacks ['shots'], and has ['colour'] that" in text


def test_a_run_stopped_in_its_first_epoch_has_no_model_and_can_be_resumed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without --ways: as many as there are classes to train on, and the same when resumed.
    command = ("train", photos, *ANY_WAYS, "--epochs", 1, "--output", tmp_path / "run")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.SaveEpoch, "on_epoch_begin", interrupt)
        output = tfmeta(*command, code=130).output
    assert "no model yet: no epoch was finished" in output
    assert "after 0" not in output
    assert Run(tmp_path / "run").settings().ways == 6
    tfmeta(*command, "--resume")
    assert Run(tmp_path / "run").model_file.exists()
    assert Run(tmp_path / "run").settings().ways == 6
    assert "`ways` must be 6" in refused(*command, "--resume", "--ways", 5)


def test_training_that_diverges_stops_with_an_error(photos: Path, tmp_path: Path) -> None:
    command = ("train", photos, *TINY, "-a", "fomaml", "--epochs", 2, "--output", tmp_path / "run")
    text = refused(*command, "--inner-learning-rate", "1e30")
    assert "The support loss must be finite; a smaller inner learning rate may help" in text
    assert "in inner step 0 of task 0" in text
    assert set(contents(tmp_path / "run")) == {"settings.json"}
    # In a single step no inner loop sees what the query loss made of the weights.
    single = ("--steps", 1, "--validation-episodes", 0, "--overwrite")
    text = refused(*command, "--inner-learning-rate", "1e30", *single)
    assert "`loss` must be finite. Received: loss=nan in epoch 1" in text
    assert "Lower `learning_rate` or, with MAML, `inner_learning_rate`" in text
    assert set(contents(tmp_path / "run")) == {"settings.json"}


def test_resume_needs_the_same_settings(prototypical: Path, photos: Path) -> None:
    before = contents(prototypical)
    command = ("train", photos, *TINY, "--output", prototypical, "--resume")
    assert "`shots` must be 1" in refused(*command, "--shots", 2)
    assert contents(prototypical) == before


def test_resume_needs_a_run(photos: Path, tmp_path: Path) -> None:
    """It is said what to do, which is then what can be done."""
    path = tmp_path / "none"
    command = ("train", photos, *TINY, "--ways", 9, "--output", path)
    nothing = f"'{path}' has nothing to resume: "
    begin = "To begin, run the same command without --resume"
    text = refused(*command, "--resume")
    assert f"{nothing}there is no such folder. {begin}" in text
    assert not path.exists()
    path.mkdir()
    for name in (None, ".tfmeta.lock", ".tfmeta-abcd1234", "worker_0.log"):  # of dead processes
        if name is not None:
            (path / name).touch()
        assert f"{nothing}nothing was saved there yet. {begin}" in refused(*command, "--resume")
        # It gets as far as the data.
        assert "`ways` must be at most the number of classes" in refused(*command)
    (path / "thesis.tex").touch()
    assert f"'{path}' is no run folder: it has no settings.json" in refused(*command, "--resume")
    assert f"'{path}' exists and is no run folder" in refused(*command)


def test_interrupted_before_anything_is_saved(
    photos: Path, prototypical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is nothing for --resume; nor in an older run, which has other settings."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "new_learner", interrupt)
    command = ("train", photos, *TINY, "--output")
    said = "Stopped before anything was saved; the same command begins again."
    assert said in tfmeta(*command, tmp_path / "run", code=130).output
    assert not (tmp_path / "run").exists()
    shutil.copytree(prototypical, tmp_path / "run")
    assert said in tfmeta(*command, tmp_path / "run", "--shots", 2, "--overwrite", code=130).output
    assert contents(tmp_path / "run") == contents(prototypical)


def test_an_existing_run_is_left_alone_unless_asked(prototypical: Path, photos: Path) -> None:
    before = contents(prototypical)
    text = refused("train", photos, *TINY, "--output", prototypical)
    assert "holds a run" in text
    assert "--overwrite" in text
    assert contents(prototypical) == before


def test_overwrite_replaces_a_run_and_keeps_other_files(
    prototypical: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(prototypical, tmp_path, dirs_exist_ok=True)
    (tmp_path / "notes.txt").write_text("mine")
    tfmeta("train", photos, *TINY, "--epochs", 1, "--output", tmp_path, "--overwrite")
    assert len(Run(tmp_path).history()) == 1
    assert [state.name for state in (tmp_path / "states").iterdir()] == ["state-000000000002"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwrite_that_fails_early_leaves_the_run(prototypical: Path, photos: Path) -> None:
    before = contents(prototypical)
    command = ("train", photos, *TINY, "--output", prototypical, "--overwrite")
    text = refused(*command, "--ways", 7)
    assert f"at most the number of classes of 'images of {photos} (train)', 6." in text
    assert contents(prototypical) == before


def test_overwrite_whose_first_batch_fails_leaves_the_run(
    prototypical: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(prototypical)

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(training.EpisodeSampler, "dataset", fail)
    command = ("train", photos, *TINY, "--validation-episodes", 0)
    assert "Error: MemoryError" in refused(*command, "--output", prototypical, "--overwrite")
    assert contents(prototypical) == before


def test_a_part_of_one_class_is_refused_before_training(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", 4, images=3)
    text = refused("train", folder, *TINY, "--output", tmp_path / "run")
    assert "`dataset` must have at least 2 classes" in text
    assert f"Received: 1 class of 'images of {folder} (validation)'" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("inside", ["", "runs/first"])
def test_a_run_inside_the_folder_of_images_is_refused(photos: Path, inside: str) -> None:
    text = refused("train", photos, *TINY, "--output", photos / inside)
    assert "--output must lie outside the folder of images" in text
    assert not (photos / "runs").exists()


def test_a_folder_that_is_no_run_is_never_overwritten(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    text = refused("train", photos, *TINY, "--output", tmp_path, "--overwrite")
    assert "is no run folder; nothing is changed" in text
    assert set(contents(tmp_path)) == {"thesis.tex"}


def test_adapt_and_predict(prototypical: Path, few: Path, tmp_path: Path) -> None:
    output = tfmeta(
        "adapt", prototypical, "--support", few, "--output", tmp_path / "adapted"
    ).output
    assert "Adapted to class0, class1." in output
    result = tfmeta("predict", tmp_path / "adapted", few, few / "class1" / "0.png")
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    files = [str(few / f"class{c}" / f"{i}.png") for c in (0, 1) for i in (0, 1)]
    assert [row[0] for row in rows] == [*files, files[2]]
    # Images of a class are alike, and the prototype is their mean.
    assert [row[1] for row in rows] == ["class0", "class0", "class1", "class1", "class1"]
    assert all(0.5 <= float(row[2]) <= 1 for row in rows)
    assert "Note:" not in result.output
    keras.models.load_model(tmp_path / "adapted" / "model.keras", compile=False)


def test_every_format_gives_the_same_predictions(
    prototypical: Path, few: Path, tmp_path: Path
) -> None:
    """Also with photos read in grey and turned, which is inside of a SavedModel."""
    given = {}
    for kind in ("keras", "saved_model"):
        command = ("adapt", prototypical, "--support", few, "--invert", "--format", kind)
        tfmeta(*command, "--output", tmp_path / kind)
        given[kind] = tfmeta("predict", tmp_path / kind, few).stdout
    assert given["keras"] == given["saved_model"]
    assert len(given["keras"].splitlines()) == 4
    few_of = tf.saved_model.load(tmp_path / "saved_model" / "saved_model")
    image = np.asarray(Image.open(few / "class1" / "0.png"))[None]
    assert few_of.predict(query_x=image)["labels"].numpy().tolist() == [b"class1"]
    # What was read is a program, which cannot be written again.
    exported = Classifier.load(tmp_path / "saved_model")
    with pytest.raises(
        ValueError, match=r"a Keras model to be written\. .*'saved_model'; copy the"
    ):
        exported.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    # another format takes the place of the former
    tfmeta(*command, "--output", tmp_path / "keras", "--overwrite")
    assert set(os.listdir(tmp_path / "keras")) == {"classifier.json", "saved_model"}
    assert tfmeta("predict", tmp_path / "keras", few).stdout == given["keras"]


@pytest.mark.slow
def test_a_lite_model_gives_the_same_classes(prototypical: Path, few: Path, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT")
    command = ("adapt", prototypical, "--support", few, "--output", tmp_path)
    tfmeta(*command, "--format", "tflite")
    lite = tfmeta("predict", tmp_path, few).stdout
    tfmeta(*command, "--overwrite")
    assert tfmeta("predict", tmp_path, few).stdout == lite


def test_adapt_refuses_what_exists(prototypical: Path, few: Path, tmp_path: Path) -> None:
    command = ("adapt", prototypical, "--support", few, "--output")
    assert "is no adapted model" in refused(*command, prototypical, "--overwrite")
    tfmeta(*command, tmp_path / "adapted")
    assert "--overwrite replaces it" in refused(*command, tmp_path / "adapted")
    tfmeta(*command, tmp_path / "adapted", "--overwrite", "--invert")
    assert json.loads((tmp_path / "adapted" / "classifier.json").read_text())["images"]["invert"]


def classifier(*names: str) -> Classifier:
    layers = [keras.Input([2, 2, 3]), keras.layers.Flatten(), keras.layers.Dense(len(names))]
    return Classifier(keras.Sequential(layers), names, {})


@pytest.mark.parametrize("first", [True, False])
def test_an_interrupted_save_leaves_no_names_beside_another_model(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not first:
        classifier("a", "b").save(tmp_path)
        (tmp_path / "notes.txt").write_text("mine")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("tfmeta.classifier.replacing", fail)
        with pytest.raises(OSError, match="disk full"):
            classifier("b", "c").save(tmp_path)
    with pytest.raises(
        FileNotFoundError if first else ValueError,
        match="no classifier.json" if first else r"model\.keras' is damaged .*not the file that cl",
    ):
        Classifier.load(tmp_path)
    with pytest.raises(FileExistsError, match="--overwrite replaces it"):
        Classifier.check_free(tmp_path, overwrite=False)
    classifier("b", "c").save(tmp_path)
    assert Classifier.load(tmp_path).class_names == ("b", "c")
    assert set(contents(tmp_path)) == {
        "classifier.json",
        "model.keras",
        *([] if first else ["notes.txt"]),
    }


@pytest.mark.parametrize(
    "strange",
    ["notes.txt", "saved_model/notes.txt", "saved_model/variables/notes.txt", "saved_model"],
)
def test_what_is_not_an_adapted_model_is_not_replaced(strange: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapted"
    mine = folder / strange
    if strange == "saved_model":
        classifier("a", "b").save(folder)
        (tmp_path / "elsewhere").mkdir()
        mine.symlink_to(tmp_path / "elsewhere")
    else:
        if strange != "notes.txt":
            dataclasses.replace(classifier("a", "b"), format="saved_model").save(folder)
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("mine")
    before = contents(tmp_path)
    for kind in ("keras", "saved_model"):
        with pytest.raises(FileExistsError, match=r"is no .*adapted model.*; nothing is changed"):
            dataclasses.replace(classifier("b", "c"), format=kind).save(folder)
    assert contents(tmp_path) == before
    assert mine.is_symlink() == (strange == "saved_model")


@pytest.mark.parametrize("garbage", [b"", b"{}", b'{"data": ', b"PK\x03\x04 and no more"])
def test_damaged_files_are_named(garbage: bytes, tmp_path: Path) -> None:
    damaged = "{}' is damaged or of another version ("
    classifier("a", "b").save(tmp_path)
    whole = (tmp_path / "classifier.json").read_bytes()
    for name in ("settings.json", "model.keras", "classifier.json"):
        (tmp_path / name).write_bytes(garbage)
    text = refused("evaluate", tmp_path)
    assert damaged.format(tmp_path / "settings.json") in text
    with pytest.raises(ValueError, match=r"model\.keras' is damaged or of another version \("):
        Run(tmp_path).learner()
    text = refused("predict", tmp_path, tmp_path)
    assert damaged.format(tmp_path / "classifier.json") in text
    (tmp_path / "classifier.json").write_bytes(whole)
    text = refused("predict", tmp_path, tmp_path)
    assert damaged.format(tmp_path / "model.keras") in text


def test_transductive_predictions_come_with_a_note(maml: Path, few: Path, tmp_path: Path) -> None:
    adapted = tfmeta("adapt", maml, "--support", few, "--output", tmp_path / "adapted")
    predicted = tfmeta("predict", tmp_path / "adapted", few)
    for result in (adapted, predicted):
        assert "a prediction depends on the images" in result.stderr
        assert "--batch-norm support" in result.stderr
    assert len(predicted.stdout.splitlines()) == 4


def test_a_network_with_fixed_outputs_needs_as_many_classes(
    maml: Path, photos: Path, tmp_path: Path
) -> None:
    text = refused("adapt", maml, "--support", photos, "--output", tmp_path / "adapted")
    assert "`folder` must hold 2 classes" in text
    assert f"with {CLASSES}" in text
    assert "`ways` must be 2" in refused("evaluate", maml, "--ways", 3)


def test_a_damaged_image_is_named_and_skipped_only_when_asked(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos", CLASSES)
    damaged = folder / "class3" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    command = ("train", folder, *TINY, "--epochs", 1, "--output", tmp_path / "run")
    text = refused(*command)
    assert str(damaged) in text
    assert "with skip_unreadable=True (--skip-unreadable)" in text
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match=r"class3.0\.png"):
        tfmeta(*command, "--skip-unreadable")
    assert Run(tmp_path / "run").model_file.exists()


def test_adapt_leaves_out_damaged_images_when_asked(
    prototypical: Path, few: Path, tmp_path: Path
) -> None:
    support = write_images(tmp_path / "few", 2, images=2)
    (support / "class1" / "0.png").write_text("no image")
    command = ("adapt", prototypical, "--support", support, "--output", tmp_path / "adapted")
    assert "(--skip-unreadable)" in refused(*command)
    with pytest.warns(UserWarning, match=r"Left out 1 .*class1.0\.png"):
        tfmeta(*command, "--skip-unreadable")
    assert tfmeta("predict", tmp_path / "adapted", few).stdout.count("class1") >= 2


def test_images_of_a_folder_are_files_that_are_not_hidden(tmp_path: Path) -> None:
    folder = tmp_path / ".home" / "photos"
    for name in ("a.png", ".b.png", ".cache/c.png", "d.png/e.JPG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    assert image_files(folder) == [folder / "a.png", folder / "d.png" / "e.JPG"]


def test_unknown_names_get_a_suggestion(photos: Path) -> None:
    assert "Did you mean 'omniglot'?" in refused("train", "omnigolt")
    assert "Did you mean 'fomaml'?" in refused("train", photos, "-a", "fo-maml")
    assert "Did you mean 'stride'?" in refused("train", photos, "--downsample", "strided")


def test_a_preset_that_does_not_exist(tmp_path: Path) -> None:
    text = refused("train", "omniglot", "--preset", "vinyal", "--output", tmp_path / "run")
    assert "Did you mean 'vinyals'?" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "glyphs", "--grayscale"], "--grayscale is for a folder of images"),
        (["train", "glyphs", "--preset", "maml"], "--preset is for omniglot"),
        (["train", "{photos}", "--preset", "maml"], "--preset is for a data set known by name"),
        (["train", "{photos}/class0/0.png"], "is a file, not a folder"),
        (["train", "{photos}/nowhere"], "neither a folder nor one of the data sets"),
        (["train", ""], "it must not be empty"),
        (["train", "{photos}", "--ways", "0"], "--ways"),
        (["train", "{photos}", "--seed", "4294967296"], "--seed"),
        (["train", "{photos}", "--learning-rate", "nan"], "'nan' is not a positive, finite"),
        (["train", "{photos}", "--learning-rate", "inf"], "'inf' is not a positive, finite"),
        (["train", "{photos}", "--inner-learning-rate", "-1"], "'-1' is not a positive, finite"),
        (["train", "{photos}", "--resume", "--overwrite"], "--overwrite replaces it: choose one"),
        (["evaluate", "{photos}"], "is no run folder"),
        (["adapt", "{photos}", "--support", "{photos}", "--output", "x"], "is no run folder"),
        (["predict", "{photos}", "{photos}"], "is no adapted model"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, photos: Path) -> None:
    assert message in refused(*(argument.format(photos=photos) for argument in arguments))


def test_what_is_wrong_with_files_to_adapt_to_and_to_classify(
    prototypical: Path, few: Path, tmp_path: Path
) -> None:
    nowhere, adapted, empty = (tmp_path / name for name in ("nowhere", "adapted", "empty"))
    empty.mkdir()
    assert str(nowhere) in refused("adapt", prototypical, "--support", nowhere, "-o", adapted)
    assert not adapted.exists()
    tfmeta("adapt", prototypical, "--support", few, "-o", adapted)
    assert str(nowhere) in refused("predict", adapted, nowhere)
    assert "holds no images" in refused("predict", adapted, empty)
    (empty / "text.png").write_text("no image")
    assert "text.png" in refused("predict", adapted, empty)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "Error: MemoryError"),
        (ImportError("no module"), "Error: no module"),
        (tf.errors.ResourceExhaustedError(None, None, "out of memory"), "Error: out of memory"),
    ],
)
def test_errors_of_the_machine_are_one_line_too(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(run_data, "load_data", fail)
    assert text in refused("train", "glyphs", "--output", tmp_path / "run")


def test_traceback_is_shown_when_asked(photos: Path) -> None:
    result = CliRunner().invoke(main, ["--traceback", "evaluate", str(photos)])
    assert isinstance(result.exception, FileNotFoundError)


# --- Folders that are shared, removed, damaged and oddly named ----------------------------------


def test_default_folders_of_a_sweep_of_seeds_differ(prototypical: Path) -> None:
    settings = Run(prototypical).settings()
    paths = [
        str(run_outside_images(None, dataclasses.replace(settings, seed=seed)).path)
        for seed in (0, 1, 12)
    ]
    assert paths == [f"runs/photos-prototypical-seed{seed}" for seed in (0, 1, 12)]


def test_a_second_training_into_a_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    """At the start, with folder and process; nothing of the first one's changes."""
    run = tmp_path / "run"
    command = ("train", photos, *TINY, "--epochs", 1, "--output", run)
    with Run(run).alone():
        for more in ((), ("--overwrite",)):
            text = refused(*command, *more)
            assert f"'{run}' is being written to by process {os.getpid()} on " in text
        assert [path.name for path in run.iterdir()] == [".tfmeta.lock"]
    tfmeta(*command)
    before = contents(run)
    with Run(run).alone():
        assert "is being written to" in refused(*command, "--resume")
        # To read needs no lock.
        tfmeta("evaluate", run, "--episodes", 2)
    assert contents(run) == before


@pytest.mark.slow
def test_of_two_trainings_at_once_one_is_refused(photos: Path, tmp_path: Path) -> None:
    """Two processes into a new folder: the settings and the history are those of one."""
    program = "import sys; from tfmeta.cli import main; sys.argv[0] = 'tfmeta'; main()"
    run = tmp_path / "run"
    started = []
    for seed in ("1", "2"):
        arguments = ("train", str(photos), *TINY, "--epochs", "2", "--seed", seed, "-o", str(run))
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(process)
    said = [process.communicate()[0] for process in started]
    codes = [process.returncode for process in started]
    assert sorted(codes) == [0, 1], said
    (refused,) = (text for text, code in zip(said, codes, strict=True) if code)
    assert "is being written to by process" in refused or "holds a run" in refused, refused
    assert Run(run).settings().seed == 1 + codes.index(0)
    assert ".tfmeta.lock" not in contents(run)
    assert len(Run(run).history()) == 2


@pytest.mark.parametrize(
    ("moment", "what"),
    [
        ("on_train_batch_begin", "run"),
        ("on_train_end", "run"),
        *(
            pytest.param(moment, what, marks=pytest.mark.slow)
            for moment in ("on_train_batch_begin", "on_epoch_begin", "on_train_end")
            for what in ("run", "run/settings.json", "run/states")
            if what != "run" or moment == "on_epoch_begin"
        ),
    ],
)
def test_a_folder_that_is_removed_in_training_is_an_error(
    what: str, moment: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never `Saved` and no run folder, nor one without settings."""
    run = tmp_path / "run"

    def remove(self: training.SaveEpoch, number: int, logs: object = None) -> None:
        if int(self.model.optimizer.iterations) >= 3:
            path = tmp_path / what
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(training.SaveEpoch, moment, remove, raising=False)
        command = ("train", photos, *TINY, "--epochs", 3, "--save-every", 1, "--output", run)
        result = CliRunner().invoke(main, [str(argument) for argument in command])
    if moment == "on_train_end" and what == "run/states":
        assert "Saved in" in result.output  # all is there that can be asked for
        assert Run(run).learner() is not None
    else:
        assert "Saved in" not in result.output
        assert result.exit_code == 1
        assert f"'{tmp_path / what}" in result.output or f"'{run}' was removed" in result.output
        assert "removed" in result.output
        assert not (run / "settings.json").exists() or what == "run/states"
    assert not (run / ".tfmeta.lock").exists()


def test_a_finished_run_gets_its_model_again(
    prototypical: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(prototypical, run)
    (run / "model.keras").unlink()
    (run / "learning_curve.png").unlink()
    command = ("train", photos, *TINY, "--epochs", 2, "--output", run, "--resume")
    assert "Saved in" in tfmeta(*command).output
    assert contents(run).keys() == contents(prototypical).keys()
    pairs = zip(Run(run).learner().variables, Run(prototypical).learner().variables, strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace(b"0,", b"0;", 1), "is damaged: line 2 must have"),
        (lambda text: text[:-5], "is damaged: line 3 must have numbers, up to the end of the line"),
        (lambda text: text + b"2,\xff\r\n", "is damaged: line 4 must have UTF-8"),
        (lambda text: text.replace(b"val_loss", b"loss2"), "its columns must be epoch, accuracy,"),
        (lambda text: text.splitlines(keepends=True)[0], "must have a row for each epoch that was"),
        (lambda text: None, "must have a row for each epoch that was finished, 2. Received: 0"),
    ],
)
def test_a_damaged_history_is_said_at_the_start(
    damage: Any, message: str, prototypical: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(prototypical, run)
    text = damage((run / "history.csv").read_bytes())
    (run / "history.csv").unlink()
    if text is not None:
        (run / "history.csv").write_bytes(text)
    before = contents(run)
    said = refused("train", photos, *TINY, "--epochs", 3, "--output", run, "--resume")
    assert f"'{run / 'history.csv'}' " in said
    assert message in said
    assert contents(run) == before


def test_deep_and_large_settings_are_refused_in_words(prototypical: Path, tmp_path: Path) -> None:
    shutil.copytree(prototypical, tmp_path / "run")
    file = tmp_path / "run" / "settings.json"
    values = json.loads(file.read_text())
    for text, message in (
        ('{"data": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested at most 64 deep"),
        (json.dumps({**values, "filters": 10**9}), "`filters` must be an integer from 1 to 16384"),
        (json.dumps({**values, "ways": True}), "`ways` must be an integer from 1 to"),
        (json.dumps({**values, "data_options": {"download": True}}), "`data_options` must be"),
        (json.dumps({**values, "classes": {"train": "abc"}}), "`classes` must be an object"),
    ):
        file.write_text(text)
        said = refused("evaluate", tmp_path / "run")
        assert f"'{file}' is damaged or of another version (" in said
        assert message in said


def test_resume_from_a_strangers_state_touches_no_other_file(
    prototypical: Path, photos: Path, tmp_path: Path
) -> None:
    """As a callback that was turned into Keras's `BackupAndRestore`, which removes its folder."""
    run, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(prototypical, run)
    mine.mkdir()
    for name in ("latest.weights.h5", "training_metadata.json", "thesis.tex"):
        (mine / name).write_text("mine")
    file = max((run / "states").iterdir())
    facts, arrays = states.read(file)
    backup = {"function": ["keras.callbacks", "BackupAndRestore"]}
    paths = {
        "_weights_path": str(mine / "latest.weights.h5"),
        "_training_metadata_path": str(mine / "training_metadata.json"),
        "backup_dir": str(mine),
        "delete_checkpoint": True,
        "save_freq": "epoch",
    }
    for first in ({"__class__": backup, **paths}, paths, {"run": str(mine)}):
        facts["callbacks"][0]["changed"] = first
        states.write(file, facts, arrays)
        text = refused("train", photos, *TINY, "--epochs", 3, "--output", run, "--resume")
        name = next(iter(first))
        assert f"'{file}' gives the callback SaveEpoch `{name}`, which" in text
        assert {*contents(mine).values()} == {b"mine"}
        assert len(contents(mine)) == 3


@pytest.mark.parametrize("name", ["settings.json", "model.keras", "history.csv", "states"])
def test_links_that_leave_the_folder_are_refused(
    name: str, prototypical: Path, photos: Path, tmp_path: Path
) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(prototypical, run)
    (run / name).rename(outside)
    (run / name).symlink_to(outside)
    before = contents(tmp_path)
    for command in (
        ("evaluate", run),
        ("train", photos, *TINY, "--epochs", 3, "--output", run, "--resume"),
        ("train", photos, *TINY, "--epochs", 3, "--output", run, "--overwrite"),
    ):
        assert f"'{run / name}' must lie in '{run}'" in refused(*command)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Of the folder of images, and of the run: printed, escaped, and used."""
    folder = write_images(tmp_path / os.fsdecode(b"odd \xff"), CLASSES)
    run = tmp_path / os.fsdecode(b"run \xfe")
    # Once to train, and once to be refused; with the streams of a program and not of a test.
    program = """
import sys
from tfmeta.cli import main
for expected in (0, 1):
    try:
        main(sys.argv[1:], "tfmeta")
    except SystemExit as ended:
        assert ended.code == expected, ended
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "train", folder, *TINY, "--epochs", "1", "-o", run],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    assert "odd \\xff" in said
    assert "run \\udcfe. Next: tfmeta evaluate" in said
    assert "Error: '" in said
    assert "run \\udcfe' holds a run" in said
