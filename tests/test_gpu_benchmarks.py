"""What `benchmarks/gpu.py` and `benchmarks/reproduce.py` would do, without doing it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfmeta

FOLDER = Path(__file__).parents[1] / "benchmarks"
FIGURES = ["tfmeta:strided:K1:second", "tfmeta:pooled:K5:first", "tfmeta:strided:K5:second:no-xla"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, script: Any) -> Any:
    def main(name: str, *arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        script(name).main()

    return main


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_figure_has_a_name_and_a_process(script: Any) -> None:
    gpu = script("gpu")
    names = gpu.chosen([], small=False)
    assert len(set(names)) == len(names)
    assert all(gpu.parsed(name) for name in names)
    assert {gpu.worker_of(name) for name in names} | {"reference"} == set(gpu.WORKERS)
    assert not any(":K5:" in name for name in gpu.chosen([], small=True))


def test_figures_are_asked_for_by_name_by_pattern_and_in_a_file(
    script: Any, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "tfmeta:pooled:K3:second:84:chunk4:mixed_float16"
    (tmp_path / "some.txt").write_text(f"{other}\njax-vmap:*:K5:second\n")
    run("gpu", "--list", f"@{tmp_path / 'some.txt'}", "jax-vmap:pooled:*:second", other)
    assert capsys.readouterr().out.split() == [
        other,
        "jax-vmap:strided:K5:second",
        "jax-vmap:pooled:K5:second",
        "jax-vmap:pooled:K1:second",
    ]
    problem = script("gpu").problem_of(script("gpu").parsed(other))
    assert (problem.size, problem.channels, problem.steps) == (84, 3, 3)


@pytest.mark.parametrize(
    "name",
    [
        "tfmeta:strided:K0:second",
        "torch-vmap:strided:K1:second:no-xla",
        "evaluate:strided:K1:second:mixed_float16",
        "tfmeta:strided:K1:second:queries15",
        "gradients:Nobody",
        "nothing:*",
    ],
)
def test_what_is_no_figure_is_refused(
    name: str, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("gpu", "--list", name)
    assert repr(name) in capsys.readouterr().err


def test_what_is_in_the_output_is_left_out(script: Any, tmp_path: Path) -> None:
    gpu, lines = script("gpu"), script("lines")
    file = tmp_path / "new" / "gpu.jsonl"
    assert gpu.missing(FIGURES, lines.read(file), small=False) == FIGURES
    lines.add(file, {"machine": {}})
    lines.add(file, {"figure": FIGURES[1], "failed": "out of memory"})
    lines.add(file, {"figure": FIGURES[2], "small": True})
    with file.open("a") as end:
        end.write('{"figure": "tfmeta:str')  # a process was killed as it wrote
    assert gpu.missing(FIGURES, lines.read(file), small=False) == [FIGURES[0], FIGURES[2]]
    assert gpu.missing(FIGURES, lines.read(file), small=True) == FIGURES[:2]
    lines.add(file, {"figure": FIGURES[0]})
    assert gpu.missing(FIGURES, lines.read(file), small=False) == [FIGURES[2]]


def test_a_process_that_ends_costs_one_figure(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, lines = script("gpu"), script("lines")
    file, asked = tmp_path / "gpu.jsonl", []

    def start(kind: str, names: list[str], small: bool, file: Path, folder: str) -> str:
        asked.append(names)
        if FIGURES[1] in names:
            lines.add(file, {"figure": FIGURES[0]})
            return "exit status -11"
        for name in names:
            lines.add(file, {"figure": name})
        return ""

    monkeypatch.setattr(gpu, "start", start)
    gpu.measure("tfmeta", FIGURES, False, file)
    assert asked == [FIGURES, FIGURES[2:]]
    assert [row["figure"] for row in rows_of(file)] == FIGURES
    assert [row.get("failed") for row in rows_of(file)] == [None, "exit status -11", None]


def test_a_framework_that_is_absent_is_no_failure(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = script("gpu")
    monkeypatch.setattr(gpu, "start", lambda *_: "absent")
    gpu.measure("jax-vmap", ["jax-vmap:strided:K1:second"], False, tmp_path / "gpu.jsonl")
    assert not (tmp_path / "gpu.jsonl").exists()


def test_a_run_that_is_done_only_prints(
    script: Any,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "gpu.jsonl"
    times = {"ms_per_task": 2.0, "ms_per_task_least": 1.5, "ms_per_task_most": 3.0}
    more = {"first_two_steps_seconds": 9.0, "memory_mb": None, "device": "CPU", "small": True}
    for what, factor in (("tfmeta", 1), ("jax-vmap", 2)):
        row = {"figure": f"{what}:strided:K1:second", **times, **more}
        script("lines").add(file, {**row, "ms_per_task": 2.0 * factor})
    monkeypatch.setattr(script("gpu"), "start", lambda *_: pytest.fail("nothing is left to do"))
    run("gpu", "--try-on-cpu", "--output", file, "*:strided:K1:second", "--list")
    names = [n for n in capsys.readouterr().out.split() if n.startswith(("tfmeta", "jax"))]
    run("gpu", "--try-on-cpu", "--output", file, *names)
    printed = capsys.readouterr().out
    assert "| strided:K1:second | 2.000 | – | 4.000 | – | 2.00 |" in printed
    assert "2.000 (1.500–3.000)" in printed


def test_gradients_of_every_learner_are_compared(script: Any) -> None:
    learners = script("every_learner").LEARNERS
    # The votes of neighbours have no gradient, and of the other two nobody takes one.
    public = set(tfmeta.algorithms.__all__) - {"KNearestNeighbors", "TIM", "FineTune"}
    assert {name.partition("-")[0] for name in learners} == public
    assert all(isinstance(make(tfmeta), tfmeta.MetaLearner) for make in learners.values())


@pytest.mark.parametrize("size", [28, 84])
@pytest.mark.parametrize(("network", "downsample"), [("strided", "stride"), ("pooled", "pool")])
def test_rivals_have_as_many_features(
    script: Any, size: int, network: str, downsample: str
) -> None:
    problem = script("rivals").Problem("maml", network, size=size, channels=3)
    conv4 = tfmeta.models.conv4((size, size, 3), downsample=downsample)
    assert conv4.output_shape == (None, problem.features)


def test_published_settings(script: Any) -> None:
    reproduce = script("reproduce")
    names = reproduce.chosen([])
    assert len(names) == 24
    for name in names:
        settings, score = reproduce.published(name)
        assert settings.steps % reproduce.STEPS_OF_EPOCH == 0
        assert float(score.split()[0]) > 85
    settings, score = reproduce.published("maml:20w5s")
    assert (settings.ways, settings.shots, settings.tasks, score) == (20, 5, 16, "98.9 ± 0.2")
    assert settings.arguments["inner_steps"] == 5


@pytest.mark.parametrize("method", ["fomaml", "maml++", "reptile", "prototypical", "maml-conv4"])
def test_published_learners_can_be_made(script: Any, method: str) -> None:
    reproduce = script("reproduce")
    (name,) = reproduce.chosen([f"{method}:5w1s"])
    settings, _ = reproduce.published(name)
    learner = reproduce.compiled(settings, (28, 28, 1))
    assert isinstance(learner, tfmeta.MetaLearner)
    assert learner.compiled
    for argument in settings.test_arguments:
        assert hasattr(learner, argument)


def test_rows_are_resumed_and_printed(
    script: Any,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = []

    def row(name: str, data_dir: str, minutes: float, episodes: int) -> dict[str, Any]:
        trained.append((name, data_dir, minutes, episodes))
        logs = {"accuracy": 0.991, "loss": 0.1}
        score = {"accuracy": 98.76, "ci95": 0.21, "steps": 1200, "seconds": 61.4}
        return {"row": name, **score, "training": logs}

    monkeypatch.setattr(script("reproduce"), "row", row)
    file = tmp_path / "rows.jsonl"
    run("reproduce", "omniglot", "data", "maml:5w*", "--minutes", 0.5, "--output", file)
    run("reproduce", "omniglot", "data", "maml:*1s", "--output", file, "--episodes", 10)
    assert trained == [
        ("maml:5w1s", "data", 0.5, 1000),
        ("maml:5w5s", "data", 0.5, 1000),
        ("maml:20w1s", "data", 60, 10),
    ]
    assert [row["row"] for row in rows_of(file)] == [name for name, *_ in trained]
    expected = "| maml:20w1s | 98.76 ± 0.21 | 95.8 ± 0.3 | 1,200 of 60,000 | 61 | 99.1 |"
    assert expected in capsys.readouterr().out
    for wrong in (["maml:6w1s"], ["maml:5w1s", "--minutes", "0"]):
        with pytest.raises(SystemExit):
            run("reproduce", "omniglot", "data", *wrong)


def test_rows_of_cifar_have_settings(script: Any) -> None:
    rows = script("cifar_rows")
    assert len(rows.names()) == 22
    known = {float(rows.published(b, n)[1]) for b in rows.BENCHMARKS for n in rows.names()[:4]}
    assert known == {55.5, 72.0, 58.9, 71.5, 35.3, 48.6, 38.1, 50.4}
    assert rows.published("cifar_fs", "r2d2:5w5s")[1] == "79.4"
    assert rows.published("fc100", "r2d2:5w5s")[1] == "–"
    for name in rows.names():
        row, _ = rows.published("fc100", name)
        assert isinstance(getattr(tfmeta, row.learner), type)
        assert row.pretrained == name.startswith("pretrained")
        assert row.pretrained or row.tasks


# An image of 32×32 is halved four times: 2×2 places are left.
OUTPUTS = {
    "maml:5w5s": 5,
    "r2d2:5w1s": 4 * 512,
    "pretrained-centroid:5w1s": 4 * 64,
    "pretrained-maml:5w1s": 5,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_learners_of_cifar_can_be_made(script: Any, name: str) -> None:
    rows = script("cifar_rows")
    row, _ = rows.published("cifar_fs", name)
    network = rows.with_outputs(tfmeta.models.conv4((32, 32, 3), filters=row.filters), row)
    assert rows.learner_of(row, network).compiled
    assert network.output_shape == (None, OUTPUTS[name])


def test_the_budget_ends_a_training_and_goes_on(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = script("cifar_rows")
    now = [100.0]
    monkeypatch.setattr(rows.time, "perf_counter", lambda: now[0])
    model = keras.Sequential()
    model.compile(keras.optimizers.SGD(1.0))
    budget = rows.Budget(seconds=20.0, learning_rate=0.4)
    budget.set_model(model)

    def step(seconds: float) -> float:
        now[0] += seconds
        budget.on_train_batch_begin(0)
        return float(model.optimizer.learning_rate)

    model.stop_training = False
    assert step(0.0) == pytest.approx(0.4)
    assert step(10.0) == pytest.approx(0.2)
    # Another process goes on, whose clock says something else, with what a state has.
    now[0] = 5000.0
    resumed = rows.Budget(seconds=20.0, learning_rate=0.4)
    resumed.set_model(model)
    resumed.used, budget = budget.used, resumed
    assert step(5.0) == pytest.approx(0.2 * (1 - 0.5**0.5))
    assert not model.stop_training
    assert step(6.0) == pytest.approx(0.0)
    assert model.stop_training


def test_rows_of_cifar_are_tried_resumed_and_printed(
    script: Any,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = []

    def row(benchmark: str, name: str, *how: Any) -> dict[str, Any]:
        trained.append((benchmark, name, *how[:3]))
        return {"row": name, "accuracy": 65.43, "ci95": 0.45, "steps": 1200, "seconds": 3000.2}

    monkeypatch.setattr(script("cifar_rows"), "row", row)
    file = tmp_path / "rows.jsonl"
    run("reproduce", "cifar_fs", "data", "r2d2:*", "--output", file, "--try")
    assert [how[-2:] for how in trained] == [(10 / 60, 20)] * 2
    assert not file.exists()
    trained.clear()
    run("reproduce", "cifar_fs", "data", "r2d2:5w1s", "--output", file)
    run("reproduce", "cifar_fs", "data", "r2d2:*", "--output", file, "--minutes", 5)
    assert trained == [
        ("cifar_fs", "r2d2:5w1s", "data", 50, 2000),
        ("cifar_fs", "r2d2:5w5s", "data", 5, 2000),
    ]
    assert "| r2d2:5w1s | 65.43 ± 0.45 | 65.3 | 1,200 | 3000 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("reproduce", "fc100", "data", "reptile:5w1s")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prototypical:5w1s", "pretrained-ridge:5w1s"])
def test_a_row_of_cifar_from_its_begin_to_its_score(
    script: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = script("cifar_rows")
    images = np.random.default_rng(0).integers(0, 256, (25 * 20, 32, 32, 3), np.uint8)
    data = tfmeta.data.ClassDataset(images, np.arange(500) // 20)
    monkeypatch.setattr(rows, "parts", lambda *_: (data, data, data))
    monkeypatch.setattr(rows, "WATCHED", {"ways": 2, "shots": 1, "queries": 2})
    monkeypatch.setattr(rows, "WATCHED_EPISODES", 3)
    arguments = ("fc100", name, "", 0.02, 3, tmp_path)
    first = rows.row(*arguments)
    assert first["steps"] > 0
    assert 0 <= first["accuracy"] <= 100
    json.dumps(first)
    # It is done: what is in the states is scored again.
    again = rows.row(*arguments)
    assert (again["steps"], again["accuracy"]) == (first["steps"], first["accuracy"])
