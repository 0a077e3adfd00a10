"""The options of commands that score runs on episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tfmeta.cli.types import FOLDER, POSITIVE, Name
from tfmeta.runs import SPLITS


def scoring_options(ways: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of what it is scored on.

    Args:
        ways: What the number of ways is where it is not said.
    """
    options = (
        click.option("--ways", type=POSITIVE, help=f"[default: {ways}]"),
        click.option("--shots", type=POSITIVE, help="[default: as in training]"),
        click.option("--queries", type=POSITIVE, help="[default: as in training]"),
        click.option("--episodes", type=POSITIVE, default=600, show_default=True),
        click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True),
        click.option("--split", type=Name(SPLITS), default="test", show_default=True),
        click.option(
            "--data-dir", type=FOLDER, help="Folder of data sets.  [default: as in training]"
        ),
        click.option(
            "--references/--no-references",
            default=True,
            show_default=True,
            help="Whether to score simple methods on the same episodes.",
        ),
    )

    def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return with_options
