"""`tfmeta adapt` and `tfmeta predict`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tfmeta.choices import FORMATS, SUFFIXES
from tfmeta.cli.answers import WRITERS
from tfmeta.cli.group import main
from tfmeta.cli.loading import load_package
from tfmeta.cli.settings import with_data_there
from tfmeta.cli.types import FOLDER, POSITIVE, SHARE, Name
from tfmeta.runs import Run
from tfmeta.saying import say

if TYPE_CHECKING:
    from tfmeta.classifier import Classifier


@main.command()
@click.argument("source", metavar="RUN_OR_MODEL", type=FOLDER)
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
@click.option(
    "--false-acceptance",
    type=SHARE,
    help="Answer 'unknown' so often that of images of other classes only this share gets the name "
    "of a class; found with the validation classes of RUN.",
)
@click.option(
    "--false-rejection",
    type=SHARE,
    help="Answer 'unknown', but to this share of images of the classes themselves only.",
)
@click.option("--data-dir", type=FOLDER, help="Folder of data sets.  [default: as in training]")
def adapt(
    source: Path,
    support: Path,
    output: Path,
    invert: bool | None,
    skip_unreadable: bool,
    overwrite: bool,
    kind: str,
    data_dir: Path | None,
    false_acceptance: float | None,
    false_rejection: float | None,
) -> None:
    """Adapt to new classes, and write a model that classifies images.

    The model of the folder RUN is adapted; or an encoder that Keras saved, as MODEL.keras, to which
    SimpleShot is put. An encoder takes images of one size with numbers between 0 and 1, and so has
    the preprocessing of its own as its first layers.
    """
    asked = false_acceptance is not None or false_rejection is not None
    if false_acceptance is not None and false_rejection is not None:
        raise click.UsageError("--false-acceptance and --false-rejection: choose one.")
    load_package()
    from tfmeta import run_data, training
    from tfmeta.classifier import Classifier, read_encoder

    Classifier.check_free(output, overwrite)
    settings = None if source.is_file() else Run(source).settings()
    if settings is None:
        if asked:
            raise click.UsageError(
                "--false-acceptance and --false-rejection need the validation classes of a run. "
                f"Received: '{source}', a file"
            )
        if invert is not None:
            raise click.UsageError("--invert is for a run; an encoder has preprocessing of its own")
        learner, images = read_encoder(source), None
    else:
        learner = Run(source).learner()
        images = {**settings.images, **({} if invert is None else {"invert": invert})}
    say("Adapting …")
    classifier = Classifier.adapt(
        learner,
        support,
        images,
        ways=settings.ways if settings and settings.fixed_ways else None,
        skip_unreadable=skip_unreadable,
        format=kind,
    )
    if settings and asked:
        names = classifier.class_names
        shots = min(len(images_directly_in(support / name)) for name in names)
        say("Finding when to answer 'unknown' …")
        validation = run_data.load_data(with_data_there(settings, data_dir))[1]
        threshold = training.threshold_for(
            settings,
            learner,
            validation,
            len(names),
            shots,
            false_acceptance=false_acceptance,
            false_rejection=false_rejection,
        )
        classifier = dataclasses.replace(classifier, unknown=threshold)
        click.echo(
            f"On validation episodes of {len(names)} classes with {shots} image(s) each, "
            f"{100 * (threshold.false_acceptance or 0):.1f} % of the images of other classes get "
            f"the name of a class, and {100 * (threshold.false_rejection or 0):.1f} % of their own "
            "'unknown'."
        )
    classifier.save(output)
    click.echo(f"Adapted to {', '.join(classifier.class_names)}. Saved in {output}.")
    warn_if_transductive(classifier)


@main.command()
@click.argument("adapted", type=FOLDER)
@click.argument("images", type=FOLDER, nargs=-1, required=True, metavar="IMAGE_OR_FOLDER...")
@click.option(
    "--format",
    "kind",
    type=Name(list(WRITERS)),
    default="text",
    show_default=True,
    help="Of what is printed: lines with tabs, an array of objects, or lines with commas.",
)
@click.option(
    "--top",
    type=POSITIVE,
    metavar="K",
    help="Name the K likeliest classes of each image, too, with their probabilities.",
)
def predict(adapted: Path, images: tuple[Path, ...], kind: str, top: int | None) -> None:
    """Classify images with a model that `tfmeta adapt` wrote.

    Prints file, class and probability; where it was adapted to say so, the class is 'unknown', and
    the probability that of the likeliest class. With --top the likeliest classes follow, whether
    the answer is one of them or 'unknown'.
    """
    load_package()
    from tfmeta.classifier import Classifier

    classifier = Classifier.load(adapted)
    files = [file for path in images for file in (image_files(path) if path.is_dir() else [path])]
    say(f"Classifying {len(files)} image(s) …")
    answers = classifier.rank(files, top)
    for line in WRITERS[kind](files, answers, top is not None):
        click.echo(line)
    warn_if_transductive(classifier)


def images_directly_in(folder: Path) -> list[Path]:
    """Return the images in a folder that are not hidden."""
    return [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]


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
            "Note: a prediction depends on the images classified together with it. Where batch "
            "norm is why, as with MAML, train with --batch-norm support to avoid this.",
            err=True,
        )
