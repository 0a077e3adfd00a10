"""What can be searched of each learner: its options, and the arguments of its constructor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import ANY_WAYS, refused, write_images
from tests.test_cli import tfmeta as command
from tests.test_cli_learners import SETTINGS
from tfmeta.learner_arguments import arguments_of
from tfmeta.learner_table import LEARNERS
from tfmeta.runs import Run, Settings
from tfmeta.search_space import check_space, searchable, values_of, with_values
from tfmeta.training import arguments_for

FIELDS = [field.name for field in dataclasses.fields(Settings)]


@pytest.fixture
def settings() -> Settings:
    return Settings(**json.loads(SETTINGS))


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_names_are_options_or_arguments(algorithm: str) -> None:
    options, own = searchable(algorithm)
    assert set(options) <= set(FIELDS)
    assert set(own) <= set(arguments_of(algorithm))
    assert not {*options} & {*own}
    assert ("ways" in options) <= (not LEARNERS[algorithm].fixed_ways)
    assert ("learning_rate" in options) == (
        algorithm not in ("reptile", "tim", "k-nearest-neighbors", "fine-tune")
    )


def test_values_become_settings_and_arguments(settings: Settings) -> None:
    of = dataclasses.replace(settings, algorithm="r2d2", arguments={"scale": 2.0})
    found = with_values(of, {"ridge": 0.25, "learn_ridge": "false", "filters": 8})
    assert (found.filters, found.arguments) == (
        8,
        {"scale": 2.0, "ridge": 0.25, "learn_ridge": False},
    )
    of = dataclasses.replace(settings, algorithm="maml")
    found = with_values(of, {"learned_rates": "none", "inner_steps": 3})
    assert (found.inner_steps, found.arguments) == (3, {"learned_rates": None})
    # The rate of TIM's own steps, where there is no other.
    of = dataclasses.replace(settings, algorithm="tim")
    found = with_values(of, {"learning_rate": 0.5})
    assert (found.learning_rate, arguments_for(found)) == (0.001, {"learning_rate": 0.5})


@pytest.mark.parametrize(
    ("algorithm", "space", "message"),
    [
        ("r2d2", {"rigde": "1:2"}, "Received: 'rigde'. Did you mean 'ridge'?"),
        ("r2d2", {"ridge": "a,b"}, "`ridge` must be among a number. Received"),
        ("r2d2", {"learn_ridge": "0:1"}, "`learn_ridge` must be among true or false"),
        ("soft-k-means", {"steps": "0.5:2"}, "`steps` must be among a whole number"),
        ("maml", {"learned_rates": "step,tenser"}, "among none or one of scalar, step, tensor"),
        ("k-nearest-neighbors", {"learning_rate": "0.1:1.0"}, "must name arguments of k-nearest"),
        ("maml", {"ways": "2:5"}, "must name arguments of maml"),
    ],
)
def test_what_cannot_be_searched_is_said(
    algorithm: str, space: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match="`") as error:
        check_space(space, algorithm)
    assert message in str(error.value)


def test_ranges_and_choices() -> None:
    assert values_of("k", "1:5") == ("linear", [1, 5])
    assert values_of("k", "1:5.0") == ("linear", [1.0, 5.0])
    assert values_of("k", "a, b") == ("choices", ["a", "b"])


@pytest.mark.slow
def test_arguments_are_searched_and_trained_with(tmp_path: Path) -> None:
    photos, run = write_images(tmp_path / "photos", 10), tmp_path / "run"
    arguments: tuple[Any, ...] = (
        *("tune", photos, *ANY_WAYS, "-a", "r2d2", "--set", "scale=2", "--epochs", 1),
        *("--search", "ridge=0.1:10.0:log", "--search", "learn_ridge=true,false", "-o", run),
    )
    command(*arguments, "--trials", 2)
    command(*arguments, "--trials", 3, "--resume")
    found = Run(run).settings().arguments
    assert set(found) == {"ridge", "learn_ridge", "scale"}
    learner: Any = Run(run).learner()
    assert (learner.ridge, learner.learn_ridge) == (found["ridge"], found["learn_ridge"])
    assert "--set ridge is searched" in refused(*arguments, "--set", "ridge=1", "--overwrite")
    assert "`arguments` must be" in refused(
        *arguments[:-2], "--resume", "-o", run, "--set", "task_chunk=1"
    )
