"""`tfmeta learners`."""

from __future__ import annotations

import textwrap

import click

from tfmeta.cli.group import main
from tfmeta.cli.learner_options import OWN_OPTIONS
from tfmeta.cli.loading import load_package
from tfmeta.cli.types import Name
from tfmeta.learner_table import LEARNERS

_WIDTH = 100


@main.command()
@click.argument("algorithm", required=False, type=Name(list(LEARNERS)))
def learners(algorithm: str | None) -> None:
    """List the learners that `tfmeta train --algorithm` trains, or the arguments of one.

    Arguments are those of the Python class, with its defaults: --set NAME=VALUE gives one.
    """
    load_package()
    from tfmeta.learner_arguments import summary

    if algorithm is not None:
        _describe(algorithm)
        return
    for fixed, heading in (
        (False, "Of any number of classes:"),
        (True, "Of as many classes as it was trained with:"),
    ):
        click.echo(heading)
        for name in (name for name, of in LEARNERS.items() if of.fixed_ways == fixed):
            words = summary(name).removeprefix("Return ")
            click.echo(_entry(f"  {name}", words[0].upper() + words[1:], 26))
        click.echo()
    click.echo("tfmeta learners NAME tells of one, and the arguments that --set takes.")


def _describe(algorithm: str) -> None:
    from tfmeta.argument_text import as_text, in_words
    from tfmeta.learner_arguments import arguments_of, description

    click.echo(f"{algorithm}: tfmeta.{LEARNERS[algorithm].python}\n")
    click.echo(description(algorithm))
    click.echo("\nArguments, each with its default, for --set NAME=VALUE:\n")
    for name, argument in arguments_of(algorithm).items():
        words = argument.words.rstrip(".")
        click.echo(_entry(f"  {name}={as_text(argument.default)}", words, 34))
        also = f"; or --{name.replace('_', '-')}" if name in OWN_OPTIONS else ""
        click.echo(" " * 34 + f"[{in_words(argument.kind)}{also}]")


def _entry(name: str, words: str, indent: int) -> str:
    """Return words in lines of a column beside a name, or below one that is long."""
    lines = textwrap.wrap(words, _WIDTH - indent) or [""]
    if len(name) >= indent:
        lines.insert(0, "")
    first, *rest = lines
    return "\n".join([f"{name:{indent}}{first}".rstrip(), *(" " * indent + line for line in rest)])
