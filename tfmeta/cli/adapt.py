"""`tfmeta adapt` and `tfmeta predict`."""

from __future__ import annotations

from pathlib import Path

import click

from tfmeta.classifier import Classifier
from tfmeta.cli.group import main
from tfmeta.cli.types import FOLDER, Name
from tfmeta.data.images import SUFFIXES
from tfmeta.formats import FORMATS
from tfmeta.runs import Run


@main.command()
@click.argument("run_path", metavar="RUN", type=FOLDER)
@click.option(
    "--support",
    type=FOLDER,
    required=True,
    help="Folder with a few images of each class, one sub-folder a class.",
)
@click.option("-o", "--output", type=FOLDER, required=True, help="Folder of the adapted model.")
@click.option(
    "--invert/--no-invert",
    default=None,
    help="Make dark ink on paper bright.  [default: as in training]",
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out damaged files of the folder.")
@click.option("--overwrite", is_flag=True, help="Replace the adapted model that is there.")
@click.option(
    "--format",
    "kind",
    type=Name(list(FORMATS)),
    default="keras",
    show_default=True,
    help="Of the model in the folder. A saved_model takes images of any size, without tfmeta.",
)
def adapt(
    run_path: Path,
    support: Path,
    output: Path,
    invert: bool | None,
    skip_unreadable: bool,
    overwrite: bool,
    kind: str,
) -> None:
    """Adapt the model of RUN to new classes, and write a model that classifies images."""
    run = Run(run_path)
    settings = run.settings()
    Classifier.check_free(output, overwrite)
    images = {**settings.images, **({} if invert is None else {"invert": invert})}
    classifier = Classifier.adapt(
        run.learner(),
        support,
        images,
        ways=settings.ways if settings.fixed_ways else None,
        transductive=settings.transductive,
        skip_unreadable=skip_unreadable,
        format=kind,
    )
    classifier.save(output)
    click.echo(f"Adapted to {', '.join(classifier.class_names)}. Saved in {output}.")
    warn_if_transductive(classifier)


@main.command()
@click.argument("adapted", type=FOLDER)
@click.argument("images", type=FOLDER, nargs=-1, required=True, metavar="IMAGE_OR_FOLDER...")
def predict(adapted: Path, images: tuple[Path, ...]) -> None:
    """Classify images with a model that `tfmeta adapt` wrote.

    Prints file, class and probability, separated by tabs.
    """
    classifier = Classifier.load(adapted)
    files = [file for path in images for file in (image_files(path) if path.is_dir() else [path])]
    for file, (name, probability) in zip(files, classifier.classify(files), strict=True):
        click.echo(f"{file}\t{name}\t{probability:.3f}")
    warn_if_transductive(classifier)


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and below, in order; hidden ones are left alone."""
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise FileNotFoundError(f"'{folder}' holds no images ({', '.join(SUFFIXES)})")
    return files


def warn_if_transductive(classifier: Classifier) -> None:
    """Say on standard error that predictions depend on each other, where they do."""
    if classifier.transductive:
        click.echo(
            "Note: batch norm is transductive, so a prediction depends on the images classified "
            "together with it. To avoid this, train with --batch-norm support.",
            err=True,
        )
