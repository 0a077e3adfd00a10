"""`tfmeta evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tfmeta.cli.group import main
from tfmeta.cli.loading import load_package
from tfmeta.cli.scoring import scoring_options
from tfmeta.cli.settings import have_tasks_at_once, with_data_there
from tfmeta.cli.suite import suite_of, write
from tfmeta.cli.types import FILE, FILE_TO_WRITE, FOLDER, DataSets
from tfmeta.runs import SPLITS, Run
from tfmeta.saying import say


@main.command()
@click.argument("run_path", metavar="RUN", type=FOLDER)
@scoring_options(ways="5 for learners of any number of classes, else as in training")
@click.option(
    "--suite",
    "data_sets",
    type=DataSets(),
    metavar="DATA,DATA,…",
    help="Score it on each of these data sets, known by name or folders of images, whose images "
    "get the size and the channels of the run's.",
)
@click.option(
    "--encoder",
    type=FILE,
    help="With --suite: an encoder that Keras saved, whose class means are scored beside it.",
)
@click.option("--json", "json_file", type=FILE_TO_WRITE, help="With --suite: where to write it.")
def evaluate(
    run_path: Path,
    split: str,
    episodes: int,
    data_dir: Path | None,
    references: bool,
    data_sets: list[str] | None,
    encoder: Path | None,
    json_file: Path | None,
    **episode: Any,
) -> None:
    """Score the model of RUN on episodes of classes that it was not trained on.

    Beside it stands what simple methods score on the same episodes: chance, the model before it
    adapts, and nearest centroid, nearest neighbour and logistic regression on its embedding and on
    the images themselves; and in words, where one of them does better by more than chance.

    With --suite there is a table of several data sets, beside nearest centroids, with mean ranks.
    """
    run = Run(run_path)
    if data_sets is None and (encoder or json_file):
        raise click.UsageError("--encoder and --json go with --suite.")
    if data_sets is not None and not references:
        raise click.UsageError("--no-references is not for --suite, whose ranks are beside them.")
    settings = run.settings()
    if data_sets is None:
        settings = with_data_there(settings, data_dir)
    load_package()
    from tfmeta import run_data, training
    from tfmeta.evaluation import evaluate as evaluate_learner

    have_tasks_at_once(settings.algorithm)
    learner = run.learner()
    if data_sets is not None:
        asked = {"split": split, "episodes": episodes, **episode}
        suite = suite_of(settings, learner, data_sets, data_dir, encoder=encoder, **asked)
        click.echo(str(suite))
        if json_file is not None:
            write(suite, json_file, {"run": str(run_path), **asked})
        return
    say("Reading the data …")
    part = run_data.load_data(settings)[SPLITS.index(split)]
    sampler = training.evaluation_sampler(settings, part, **episode)
    norm = getattr(learner, "batch_norm", "running statistics")
    click.echo(f"{part.description}, {part.num_classes} classes")
    click.echo(f"{settings.algorithm}, batch norm: {norm}")
    say(f"Scoring {episodes} episodes …")
    result = evaluate_learner(learner, sampler, episodes, references=references)
    click.echo(f"{sampler.ways}-way {sampler.shots}-shot, seed {sampler.seed}: {result}")
