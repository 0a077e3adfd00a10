"""The search finds what is best, ends what is not, and loses no finished trial."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tfmeta import training, tuning
from tfmeta.cli import main
from tfmeta.runs import Run

optuna = pytest.importorskip("optuna", reason="needs Optuna: pip install 'tfmeta[tune]'")

SPACE = {"x": "-1.0:1.0", "kind": "far,near"}
COMMAND = (
    *("--image-size", "12", "--downsample", "stride", "--queries", "2", "--steps", "2"),
    *("--validation-episodes", "4", "--ways", "2", "--epochs", "2"),
    *("--search", "filters=2,4", "--search", "learning-rate=0.001:0.1:log"),
)
TRIALS = 3


def parabola(values: dict[str, Any], callbacks: list[Any]) -> float:
    """Largest at x = 0.5, near."""
    return -((values["x"] - 0.5) ** 2) - (values["kind"] == "far")


def epochs(callback: Any, *accuracies: float, **others: float) -> float:
    """Tell a callback what Keras would over as many epochs."""
    callback.set_params({"epochs": len(accuracies)})
    for epoch, accuracy in enumerate(accuracies):
        callback.on_epoch_end(epoch, {"loss": 1.0, "val_accuracy": accuracy, **others})
    return accuracies[-1]


def search(objective: Callable[..., float], path: Path, trials: int = 25, **options: Any) -> Any:
    options = {"space": SPACE, "verbose": False, **options}
    return tuning.search(objective, path=path / "trials.db", trials=trials, **options)


def drawn(study: Any) -> list[tuple[Any, ...]]:
    """Values and scores of the finished trials."""
    finished = [t for t in study.get_trials() if t.state.name in ("COMPLETE", "PRUNED")]
    return [(*t.params.values(), t.value) for t in finished]


# --- Of any function ----------------------------------------------------------------------------


def test_finds_the_top_and_learns_on_the_way(tmp_path: Path) -> None:
    study = search(parabola, tmp_path, 17)
    scores = [trial.value for trial in study.trials]
    assert len(scores) == 17
    assert study.best_params["kind"] == "near"
    assert abs(study.best_params["x"] - 0.5) < 0.2
    assert study.best_value == max(scores)
    # It draws the first ten at random.
    assert np.median(scores[10:]) > np.median(scores[:10]) + 0.1


def test_values_are_what_the_space_says(tmp_path: Path) -> None:
    space = {"rate": "0.001:10:log", "steps": "1:3", "units": "8,16", "power": "1:1000000:log"}
    study = search(lambda values, _: values["rate"], tmp_path, 10, space=space, sampler="random")
    values = [t.params for t in study.trials]
    assert all(isinstance(v["steps"], int) and isinstance(v["rate"], float) for v in values)
    assert {v["steps"] for v in values} == {1, 2, 3}
    assert {v["units"] for v in values} == {8, 16}
    rates = [v["rate"] for v in values]
    assert 0.001 <= min(rates) < 0.1 < max(rates) <= 10
    assert len(set(rates)) == 10
    assert 10 < np.median([v["power"] for v in values]) < 1e5


def test_a_search_that_is_interrupted_is_the_search_that_was_not(tmp_path: Path) -> None:
    whole = search(parabola, tmp_path / "whole", 12)

    def stops(values: dict[str, Any], callbacks: list[Any]) -> float:
        epochs(callbacks[0], 0.5)
        if len(seen) == 10:
            raise KeyboardInterrupt
        seen.append(values)
        return parabola(values, callbacks)

    seen: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        search(stops, tmp_path, 12)
    with pytest.raises(KeyboardInterrupt):
        search(stops, tmp_path, 12)
    assert len(seen) == 10
    resumed = search(parabola, tmp_path, 12)
    assert drawn(resumed) == drawn(whole)
    states = [t.state.name for t in resumed.trials]
    assert states == ["COMPLETE"] * 10 + ["FAIL"] * 2 + ["COMPLETE"] * 2
    # Nothing is left to do, and more can be asked for.
    assert drawn(search(stops, tmp_path, 12)) == drawn(whole)
    assert drawn(search(parabola, tmp_path, 13))[:12] == drawn(whole)


def test_trials_that_are_worse_than_the_median_end_early(tmp_path: Path) -> None:
    lengths = []

    def objective(values: dict[str, Any], callbacks: list[Any]) -> float:
        trial = len(lengths)
        lengths.append(0)
        callbacks[0].set_params({"epochs": 3})
        for epoch in range(3):
            lengths[-1] += 1
            score = 0.1 if trial in (5, 7) else 0.5
            if trial == 7 and epoch < 2:
                score = 0.9
            callbacks[0].on_epoch_end(epoch, {"loss": 1.0, "val_accuracy": score})
        return score

    study = search(objective, tmp_path, 8)
    # The last epoch ends nothing: it is paid for.
    assert lengths == [3, 3, 3, 3, 3, 1, 3, 3]
    assert [t.state.name for t in study.trials].count("PRUNED") == 1
    assert study.trials[7].value == 0.1
    lengths.clear()
    search(objective, tmp_path / "none", 8, pruner="none")
    assert lengths == [3] * 8


def test_divergence_is_an_answer_and_other_errors_are_not(tmp_path: Path) -> None:
    def diverges(values: dict[str, Any], callbacks: list[Any]) -> float:
        if values["kind"] == "far":
            epochs(callbacks[0], 0.9, loss=np.nan)
        if values["x"] < 0:
            raise ValueError("The support loss must be finite; ...")
        return values["x"]

    study = search(diverges, tmp_path, 8, sampler="random")
    assert study.best_value == study.best_params["x"] > 0
    pruned = [t.params for t in study.trials if t.state.name == "PRUNED"]
    assert {(p["kind"], p["x"] < 0) for p in pruned} > {("far", False), ("near", True)}
    with pytest.raises(ValueError, match=r"for which training converges\. Received: 2 trials"):
        search(lambda v, callbacks: epochs(callbacks[0], 0.9, loss=np.inf), tmp_path / "all", 2)
    with pytest.raises(KeyError, match=r"`validation_data` and the metric 'accuracy'"):
        search(lambda v, callbacks: callbacks[0].on_epoch_end(0, {}), tmp_path / "no", 3)

    def wrong(values: dict[str, Any], callbacks: list[Any]) -> float:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        search(wrong, tmp_path / "wrong", 3)


def test_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(parabola, tmp_path, 2, verbose=True)
    captured = capsys.readouterr()
    assert "2/2" in captured.out
    assert "best" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, r"`space` must name at least one argument"),
        ({"x": "1.0:0.1"}, r"smaller one first"),
        ({"x": "2:2"}, r"smaller one first"),
        ({"x": "0:1:log"}, r"a logarithmic range must begin above 0"),
        ({"x": "-0.1:1:log"}, r"a logarithmic range must begin above 0"),
        ({"x": "0:nan"}, r"finite ends"),
        ({"x": "0:inf"}, r"finite ends"),
        ({"x": "0:1:linear"}, r"`x` must be a range or choices.*Received: x='0:1:linear'"),
        ({"x": "0:1:log:log"}, r"`x` must be a range or choices"),
        ({"x": "a:b"}, r"`x` must be a range or choices"),
        ({"x": "a"}, r"choices are two or more that differ"),
        ({"x": "a,a"}, r"choices are two or more that differ"),
        ({"x": "a,"}, r"choices are two or more that differ"),
        ({"x": ""}, r"choices are two or more that differ"),
    ],
)
def test_bad_spaces(space: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        search(parabola, tmp_path, space=space)
    assert not list(tmp_path.iterdir())


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`x` must be a range or choices.*Received: x=\(0, 1\)"):
        search(parabola, tmp_path, space={"x": (0, 1)})
    with pytest.raises(ValueError, match=r"`trials` must be at least 1. Received: trials=0"):
        search(parabola, tmp_path, 0)
    with pytest.raises(ValueError, match=r"tpe, gp, cmaes, random.*'rnadom'.*mean 'random'\?"):
        search(parabola, tmp_path, sampler="rnadom")
    with pytest.raises(ValueError, match=r"`pruner` must be one of median, none"):
        search(parabola, tmp_path, pruner="asha")
    assert not list(tmp_path.iterdir())
    search(parabola, tmp_path, 3, fixed={"epochs": 3})
    with pytest.raises(ValueError, match=r"`trials` must be at least 3, as many as"):
        search(parabola, tmp_path, 2, fixed={"epochs": 3})
    with pytest.raises(ValueError, match=r"`epochs` must be 3 as when the search in .* started"):
        search(parabola, tmp_path, 3, fixed={"epochs": 4})
    with pytest.raises(ValueError, match=r"`space` must be \{'x'.* as when the search"):
        search(parabola, tmp_path, 3, space={"x": "0:1"}, fixed={"epochs": 3})
    with pytest.raises(ValueError, match=r"`sampler` must be 'tpe' as when the search"):
        search(parabola, tmp_path, 3, sampler="random", fixed={"epochs": 3})


def test_a_damaged_file_is_named_and_left(tmp_path: Path) -> None:
    file = tmp_path / "trials.db"
    search(parabola, tmp_path, 3)
    whole = file.read_bytes()
    for data in (b"", b"no database", whole[:5000], whole[:20000] + b"\xff" * 30000):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"trials.db' is damaged or of another version \("):
            search(parabola, tmp_path, 3)
        assert file.read_bytes() == data
    file.unlink()
    sqlite3.connect(file).execute("CREATE TABLE mine (x)").connection.close()
    with pytest.raises(ValueError, match=r"trials.db' is damaged or of another version \("):
        search(parabola, tmp_path, 3)


def test_a_file_that_goes_away_is_an_error_of_the_machine(tmp_path: Path) -> None:
    def vanishing(values: dict[str, Any], callbacks: list[Any]) -> float:
        (tmp_path / "trials.db").unlink()
        return 1.0

    with pytest.raises(OSError, match=r"trials cannot be written or read \(.*unable to open"):
        search(vanishing, tmp_path, 3)
    assert not list(tmp_path.iterdir())


def test_odd_folders_and_other_settings_of_optuna(tmp_path: Path) -> None:
    before = optuna.logging.get_verbosity()
    odd = tmp_path / "50% {of} it?#&"
    assert len(search(parabola, odd, 2).trials) == 2
    assert [file.name for file in odd.iterdir()] == ["trials.db"]
    assert optuna.logging.get_verbosity() == before


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'tfmeta\[tune\]'"):
        search(parabola, tmp_path)


# --- The command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write ten classes of images, which share a pattern with their class."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for c in range(10):
        (folder / f"class{c}").mkdir(parents=True)
        pattern = rng.integers(0, 200, (12, 12, 3))
        for i in range(4):
            pixels = (pattern + rng.integers(0, 56, pattern.shape)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")
    return folder


def tune(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["tune", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def load(path: Path) -> Any:
    return tuning._load(path / "trials.db")


@dataclasses.dataclass
class Killed:
    """A search that was killed and went on in another process."""

    path: Path
    # The trials that were finished some time before it was killed, when it was, and in the end.
    seen: list[Any]
    held: list[Any]
    trials: list[Any]
    refused: str
    resumed: str


@pytest.fixture(scope="module")
def killed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    path = tmp_path_factory.mktemp("runs") / "run"
    command = (str(photos), *COMMAND, "--trials", str(TRIALS), "-o", str(path))
    program = "import sys; from tfmeta.cli import main; sys.argv[0] = 'tfmeta'; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "tune", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    seen: list[Any] = []
    until = time.monotonic() + 240
    while not seen and process.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
        if (path / "trials.db").exists():
            seen = drawn(load(path))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [file.name for file in path.iterdir() if file.suffix == ".db"] == ["trials.db"]
    held = drawn(load(path))
    assert not Run(path).model_file.exists()
    refused = tune(*command, code=1)
    resumed = tune(*command, "--resume")
    return Killed(path, seen, held, drawn(load(path)), refused, resumed)


@pytest.fixture(scope="module")
def whole(killed: Killed) -> Path:
    return killed.path


@pytest.mark.slow
def test_a_search_that_was_killed_loses_no_finished_trial(killed: Killed) -> None:
    assert 1 <= len(killed.seen) <= len(killed.held) < TRIALS
    assert killed.held[: len(killed.seen)] == killed.seen
    assert killed.trials[: len(killed.held)] == killed.held
    assert len(killed.trials) == TRIALS
    assert len(load(killed.path).get_trials()) <= TRIALS + 1  # and the one that was interrupted
    assert "holds a search; choose another --output, continue it with --resume" in killed.refused
    assert f"{TRIALS}/{TRIALS}" in killed.resumed
    assert f"Best of {TRIALS} trials: " in killed.resumed


def test_the_best_trial_becomes_a_run(killed: Killed) -> None:
    run, study = Run(killed.path), load(killed.path)
    settings = run.settings()
    assert settings.filters == study.best_params["filters"]
    assert settings.learning_rate == study.best_params["learning_rate"]
    assert len(run.history()) == settings.epochs == 2
    # Once more the same: what is saved has the accuracy that was found.
    assert float(run.history()[-1]["val_accuracy"]) == pytest.approx(study.best_value)
    result = CliRunner().invoke(
        main, ["evaluate", str(run.path), "--split", "validation", "--episodes", "4"]
    )
    assert f"2-way 1-shot, seed 0: {100 * study.best_value:.2f} %" in result.output, result.output


def test_a_finished_search_is_resumed_with_more_trials_or_replaced(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / "notes.txt").write_text("mine")
    before = drawn(load(whole))
    # Nothing to search and nothing to train: the model stays what it was.
    tune(photos, *COMMAND, "--trials", TRIALS, "-o", path, "--resume")
    assert drawn(load(path)) == before
    assert (path / "model.keras").read_bytes() == (whole / "model.keras").read_bytes()
    assert "`trials` must be at least" in tune(
        *(photos, *COMMAND, "--trials", 1, "-o", path, "--resume"), code=1
    )
    assert "`shots` must be 1 as when the search" in tune(
        *(photos, *COMMAND, "--shots", 2, "-o", path, "--resume"), code=1
    )

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "new_learner", interrupt)
        output = tune(photos, *COMMAND, "-o", path, "--overwrite", code=130)
    assert "with --resume in place of --overwrite goes on" in output
    assert {file.name for file in path.iterdir()} == {"trials.db", "notes.txt"}
    assert drawn(load(path)) == []
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "search", interrupt)
        output = tune(photos, *COMMAND, "-o", tmp_path / "new", code=130)
    assert "Stopped before the search began; the same command begins again." in output
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_written_to(photos: Path, whole: Path, tmp_path: Path) -> None:
    assert "has no search to resume" in tune(
        *(photos, *COMMAND, "-o", tmp_path / "none", "--resume"), code=1
    )
    (tmp_path / "thesis.tex").write_text("text")
    command = (photos, *COMMAND, "-o", tmp_path, "--overwrite")
    assert "is no run folder; nothing is changed" in tune(*command, code=1)
    assert "choose one" in tune(*command, "--resume", code=2)
    assert "--output must lie outside the folder of images" in tune(
        *(photos, *COMMAND, "-o", photos / "run"), code=2
    )
    # The older search stays where the new one cannot begin.
    before = (whole / "trials.db").read_bytes()
    command = (photos, *COMMAND[:-4], "--search", "filters=2,4", "-o", whole, "--overwrite")
    text = tune(*command, "--queries", 9, code=1)
    assert "must have at least `shots` + `queries` = 1 + 9" in text
    assert (whole / "trials.db").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`space` must name at least one argument"),
        (["--search", "filter=2,4"], "Received: 'filter'. Did you mean 'filters'?"),
        (["--search", "inner_steps=1:3"], "must name arguments of prototypical"),
        (["--search", "shots=1:3"], "none that decide what is measured"),
        (["--search", "filters"], "'filters' is not of the form NAME=VALUES"),
        (["--search", "filters=0:4"], "`filters` must be among integers of at least 1"),
        (["--search", "filters=0.5,2"], "`filters` must be among integers of at least 1"),
        (["--search", "filters=a,b"], "`filters` must be among integers of at least 1"),
        (["--search", "learning-rate=0.0:0.1"], "`learning_rate` must be among positive numbers"),
        (["--search", "learning-rate=0.1:0.01"], "the smaller one first"),
        (["--search", "distance=cosin,squared_euclidean"], "Did you mean 'cosine'?"),
        (["--search", "distance=1:2"], "`distance` must be among "),
        (["--search", "filters=2,4", "--filters", "8"], "--filters is searched: leave it out"),
        (["--search", "filters=2,4", "--search", "filters=2:4"], "filters is given twice"),
        (["--search", "filters=2,4", "--trials", "0"], "--trials"),
        (["--search", "filters=2,4", "--sampler", "tp"], "Did you mean 'tpe'?"),
        (
            ["--search", "filters=2,4", "--validation-episodes", "0"],
            "`validation_episodes` must be",
        ),
        (["--search", "ways=2:50"], "`ways` must be at most the number of classes"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, photos: Path, tmp_path: Path) -> None:
    run = ("--image-size", 12, "--queries", 2, "-o", tmp_path / "run")
    result = CliRunner().invoke(main, ["tune", str(photos), *map(str, run), *arguments])
    assert result.exit_code in (1, 2), result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_the_command_without_optuna(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'tfmeta[tune]'" in tune(photos, *COMMAND, "-o", tmp_path / "run", code=1)
    assert not (tmp_path / "run").exists()
