"""From the settings of a run to the commands that repeat it."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import click

from tfmeta.argument_text import as_text
from tfmeta.cli.learner_options import OWN_OPTIONS
from tfmeta.cli.settings import OF_DATA
from tfmeta.learner_arguments import arguments_of
from tfmeta.runs import Settings

# Options of `tfmeta train` that decide nothing of what is learnt, or are said apart.
NOT_SETTINGS = ("run_path", "resume", "overwrite", "save_every", "workers", "given")
# Files with names of classes, which the settings of a run hold themselves.
LISTS = ("splits", "train_classes", "validation_classes", "test_classes")


def train_command(settings: Settings, options: Sequence[click.Parameter], run: str) -> str:
    """Return the command by which a run can be trained again.

    Whatever has no fixed default is said, such as the number of filters and the inner learning
    rate, which was perhaps looked for; of the other options those that are not the default. What
    the learner has no argument for is left out.

    Args:
        settings: The run's.
        options: The parameters of `tfmeta train`.
        run: Its folder.
    """
    values = {**dataclasses.asdict(settings), **settings.data_options}
    values["also"] = ",".join(settings.also) or None
    for of in settings.also.values():
        values |= of
    known = arguments_of(settings.algorithm)
    words = ["tfmeta", "train", settings.data]
    for option in options:
        name = str(option.name)
        if not isinstance(option, click.Option) or name in (*NOT_SETTINGS, *LISTS):
            continue
        if name in OWN_OPTIONS and name not in known:
            continue
        value = values.get(OF_DATA.get(name, name))
        if value is None or value == option.default or value is False:
            continue
        words += _option(option, value)
    for name, value in settings.arguments.items():
        words += ["--set", f"{name}={as_text(value)}"]
    return command([*words, "--output", run])


def _option(option: click.Option, value: Any) -> list[str]:
    name = max(option.opts, key=len)
    if option.is_flag:
        return [name]
    if isinstance(value, list | tuple):
        return [name, *map(str, value)]
    return [name, repr(value) if isinstance(value, float) else str(value)]


def options(values: Mapping[str, object]) -> list[str]:
    """Return options by their names, without those that are `None`."""
    found = []
    for name, value in values.items():
        if value is not None:
            found += [f"--{name.replace('_', '-')}", str(value)]
    return found


def command(words: Sequence[object]) -> str:
    """Return words as a line for a shell."""
    return shlex.join(map(str, words))
