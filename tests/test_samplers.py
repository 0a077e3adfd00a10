"""Samplers of a search: each goes on as if it had not been interrupted, and says what it needs."""

from __future__ import annotations

import importlib.util
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import refused, write_images
from tfmeta import tuning
from tfmeta.choices import SAMPLERS

optuna = pytest.importorskip("optuna", reason="needs Optuna: pip install 'tfmeta[tune]'")

SPACE = {"x": "-1.0:1.0", "y": "0.001:10.0:log", "n": "1:8", "kind": "far,near"}
TRIALS = 14


def needs(sampler: str) -> None:
    """Skip a test of a sampler that needs a package which is not there."""
    for package in {"gp": ["torch", "scipy"], "cmaes": ["cmaes"]}.get(sampler, []):
        pytest.importorskip(package, reason=f"the sampler {sampler!r} needs {package}")


def bowl(values: dict[str, Any], callbacks: list[Any] | None = None) -> float:
    """Largest at x = 0.3, y = 0.1, n = 3, near."""
    far = (values["x"] - 0.3) ** 2 + (values["y"] - 0.1) ** 2 + 0.1 * (values["n"] - 3) ** 2
    return -far - (values["kind"] == "far")


def search(path: Path, sampler: str, trials: int = TRIALS, objective: Any = bowl) -> Any:
    return tuning.search(
        objective, SPACE, path / "trials.db", trials, sampler=sampler, seed=7, verbose=False
    )


def drawn(study: Any) -> list[Any]:
    """Values and scores of the trials that were finished."""
    finished = [t for t in study.get_trials() if t.state.name in ("COMPLETE", "PRUNED")]
    return [(t.params, t.value) for t in finished]


@pytest.mark.parametrize(
    "sampler", [x if x == "cmaes" else pytest.param(x, marks=pytest.mark.slow) for x in SAMPLERS]
)
def test_an_interrupted_search_is_the_one_that_was_not(sampler: str, tmp_path: Path) -> None:
    needs(sampler)

    def stops(values: dict[str, Any], callbacks: list[Any]) -> float:
        count.append(1)
        if len(count) in (4, 12, 13):
            raise KeyboardInterrupt
        if len(count) == 6:
            raise ValueError("The loss must be finite")  # which ends a trial
        return bowl(values)

    def whole(values: dict[str, Any], callbacks: list[Any]) -> float:
        count.append(1)
        if len(count) == 5:
            raise ValueError("The loss must be finite")
        return bowl(values)

    count: list[int] = []
    expected = drawn(search(tmp_path / "whole", sampler, objective=whole))
    count.clear()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "parts", sampler, objective=stops)
    study = search(tmp_path / "parts", sampler, objective=stops)
    assert drawn(study) == expected
    assert len(expected) == TRIALS
    other = next(name for name in SAMPLERS if name != sampler)
    if importlib.util.find_spec("torch") or other != "gp":
        with pytest.raises(ValueError, match=f"`sampler` must be '{sampler}' as when the search"):
            search(tmp_path / "parts", other)


def test_cmaes_draws_what_optuna_draws(tmp_path: Path) -> None:
    """With one sampler from the first trial to the last, as Optuna means it."""
    needs("cmaes")
    ours = drawn(search(tmp_path, "cmaes", 16))
    study = optuna.create_study(
        sampler=optuna.samplers.CmaEsSampler(seed=7, warn_independent_sampling=False),
        direction="maximize",
    )
    of = optuna.distributions
    space = {
        "x": of.FloatDistribution(-1.0, 1.0),
        "y": of.FloatDistribution(0.001, 10.0, log=True),
        "n": of.IntDistribution(1, 8),
        "kind": of.CategoricalDistribution(["far", "near"]),
    }
    for _ in range(16):
        trial = study.ask(space)
        study.tell(trial, bowl(trial.params))
    assert ours == drawn(study)
    # No pickle is kept that somebody could put another in the place of.
    with sqlite3.connect(tmp_path / "trials.db") as connection:
        (rows,) = connection.execute("SELECT COUNT(*) FROM trial_system_attributes").fetchone()
    assert rows == 0


def test_a_strangers_pickle_is_not_opened(tmp_path: Path) -> None:
    needs("cmaes")
    search(tmp_path, "cmaes", 3)

    class Hostile:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "touched").touch, ())

    with sqlite3.connect(tmp_path / "trials.db") as connection:
        for trial in (1, 2, 3):
            connection.execute(
                "INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
                (trial, "cma:optimizer:0", f'"{pickle.dumps(Hostile()).hex()}"'),
            )
    assert len(search(tmp_path, "cmaes", 12).trials) == 12
    assert not (tmp_path / "touched").exists()


def test_trials_of_another_cmaes_are_said(tmp_path: Path) -> None:
    needs("cmaes")
    search(tmp_path, "cmaes", 4)
    with sqlite3.connect(tmp_path / "trials.db") as connection:
        connection.execute("UPDATE trial_params SET param_value = 0.5 WHERE param_name = 'x'")
    with pytest.raises(ValueError, match="Trial 0 must have the values that CMA-ES draws with"):
        search(tmp_path, "cmaes", 5)


@pytest.mark.parametrize(("sampler", "package"), [("gp", "torch"), ("cmaes", "cmaes")])
def test_what_a_sampler_needs_is_said_at_the_start(
    sampler: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, *more: Any) -> Any:
        return None if name == package else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    message = f"The sampler '{sampler}' needs {package}, which is not installed: pip install"
    with pytest.raises(ImportError, match=message):
        search(tmp_path, sampler)
    assert not list(tmp_path.iterdir())
    photos = write_images(tmp_path / "photos", 9)
    said = refused(
        *("tune", photos, "--queries", 2, "--sampler", sampler, "--search", "filters=2:4"),
        *("-o", tmp_path / "run"),
    )
    assert message in said
    assert not (tmp_path / "run" / "trials.db").exists()


def test_cmaes_needs_a_range(tmp_path: Path) -> None:
    needs("cmaes")
    with pytest.raises(ValueError, match="must have a range for the sampler 'cmaes', which draws"):
        tuning.search(bowl, {"kind": "far,near"}, tmp_path / "trials.db", sampler="cmaes")
