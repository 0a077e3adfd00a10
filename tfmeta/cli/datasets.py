"""`tfmeta datasets`."""

from __future__ import annotations

import click

from tfmeta.choices import BENCHMARKS
from tfmeta.cli.group import main


@main.command()
def datasets() -> None:
    """List the data sets that are known by name."""
    for name, benchmark in BENCHMARKS.items():
        click.echo(f"{name:10}{benchmark}")
    click.echo("\nWhat needs a download is read through TensorFlow Datasets, from --data-dir.")
    click.echo("A folder of images, one sub-folder a class, can stand wherever a name can.")
