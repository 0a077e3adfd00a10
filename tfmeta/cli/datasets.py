"""`tfmeta datasets`."""

from __future__ import annotations

import click

from tfmeta.choices import BENCHMARKS
from tfmeta.cli.group import main
from tfmeta.named_data import ALIASES, FROM_FOLDERS, NAMED, in_bytes


@main.command()
def datasets() -> None:
    """List the data sets that are known by name."""
    for name, words in BENCHMARKS.items():
        click.echo(f"{name:16}{words}")
        if name in ALIASES:
            continue
        named = NAMED[name]
        train, validation, test = named.classes
        size = f"download {in_bytes(named.download)}" if named.download else "no download"
        if name in FROM_FOLDERS:
            size = "from --folder"
        tested = "tested on the real data" if named.tested else "tested with mock data only"
        click.echo(
            f"{'':16}classes {train} + {validation} + {test}; licence: {named.licence}; "
            f"{size}; {tested}"
        )
    click.echo("\nClasses are those for training, validation and test, where nothing else is said.")
    click.echo("Licences are in short words; the homes of the data decide.")
    click.echo(
        "What needs a download is read through TensorFlow Datasets, from --data-dir, or from"
    )
    click.echo("--folder, a folder of your own with one sub-folder of images for each class.")
    click.echo("A folder of images, one sub-folder a class, can stand wherever a name can.")
