"""From the options of a command to the arguments of a learner, which its constructor decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from tfmeta.cli.loading import load_package
from tfmeta.learner_table import LEARNERS
from tfmeta.setting_values import EXPECTED, wrong_with

# What these options are for learners that have them, where nothing is said; others have what their
# constructors say.
_SAME_AS_EVER = {"maml": 1, "fomaml": 1, "maml++": 1}
# Options that are arguments of learners, and what they are where a learner has no such argument:
# saying so changes nothing, and is allowed.
OWN_OPTIONS: dict[str, Any] = {
    "inner_learning_rate": None,
    "inner_steps": 1,
    "evaluation_steps": None,
    "batch_norm": "transductive",
    "distance": "squared_euclidean",
}
# Of the optimizer, where a learner has a rate of its own in its place.
_ADAMS = {"learning_rate": 1e-3, "learning_rate_halving": None}


def inner_steps_in_words() -> str:
    """Say the default of `--inner-steps`."""
    return f"1 for {', '.join(_SAME_AS_EVER)}, else the learner's own"


def learner_values(
    algorithm: str, options: Mapping[str, Any], given: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return the fields of the settings that are arguments of a learner, and `arguments`.

    Args:
        algorithm: The name of the learner.
        options: The options of the command by name.
        given: What `--set` was given: names of arguments, and texts.

    Raises:
        click.UsageError: If the learner does not take an option, or an argument is given twice.
        ValueError: If it has no such argument, or the text is no value of its type.
    """
    load_package()
    from tfmeta.learner_arguments import arguments_of, read

    known = arguments_of(algorithm)
    names = [name for name, _ in given]
    for name in names:
        option = f"--{name.replace('_', '-')}"
        if names.count(name) > 1:
            raise click.UsageError(f"--set {name} is given twice.")
        if name in OWN_OPTIONS and options[name] is not None:
            raise click.UsageError(f"{option} and --set {name}: choose one.")
        if name in options and name not in known:
            raise click.UsageError(f"{name} is no argument of {algorithm}, but an option: {option}")
    values = read(algorithm, dict(given))
    found = {}
    for name, unused in OWN_OPTIONS.items():
        if name in known:
            own = known[name].default
            if name == "inner_steps":
                own = _SAME_AS_EVER.get(algorithm, own)
            elif name == "inner_learning_rate":
                own = None  # what suits the network is looked for
            asked = values.pop(name, options[name])
            found[name] = own if asked is None else asked
        elif options[name] in (None, unused):
            found[name] = unused
        else:
            raise click.UsageError(
                f"--{name.replace('_', '-')} is not for {algorithm}, which has no such argument; "
                f"`tfmeta learners {algorithm}` lists those that it has."
            )
    if algorithm == "reptile":
        for name, unused in _ADAMS.items():
            if options[name] != unused:
                raise click.UsageError(
                    f"--{name.replace('_', '-')} is not for reptile, whose outer rate is its own: "
                    "--set outer_learning_rate=1.0 and --set annealing_steps=STEPS."
                )
    if (
        wrong := wrong_with({k: v for k, v in found.items() if v is not None}, EXPECTED)
    ) is not None:
        raise ValueError(wrong)
    if values.get("inner_optimizer") and options["inner_learning_rate"] is not None:
        raise click.UsageError(
            "--inner-learning-rate and --set inner_optimizer, which has a rate of its own: choose "
            "one."
        )
    return {**found, "arguments": values}


def looks_for_rate(settings: Any, asked: float | None) -> bool:
    """Return whether the inner learning rate is what suits the network, for none was asked for.

    Args:
        settings: The settings of the run.
        asked: The rate that the command was given.
    """
    from tfmeta.learner_arguments import arguments_of

    takes = LEARNERS[settings.algorithm].inner_loop and (
        "inner_learning_rate" in arguments_of(settings.algorithm)
    )
    return asked is None and takes and settings.arguments.get("inner_optimizer") is None
