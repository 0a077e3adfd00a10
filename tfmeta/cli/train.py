"""`tfmeta train`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfmeta.choices import BATCH_NORM_MODES, DISTANCES, FILTERS, OMNIGLOT_PRESETS
from tfmeta.cli.group import main
from tfmeta.cli.learner_options import inner_steps_in_words, looks_for_rate
from tfmeta.cli.loading import load_package
from tfmeta.cli.settings import (
    class_lists,
    filters_of,
    have_tasks_at_once,
    loaded,
    run_outside_images,
    settings_from,
)
from tfmeta.cli.types import FOLDER, POSITIVE, Data, DataSets, Given, Name, Network, Rate
from tfmeta.learner_table import LEARNERS, by_family
from tfmeta.runs import INNER_RATE, Run, Settings, check_pretraining
from tfmeta.setting_values import choices_of
from tfmeta.workers import start_workers

if TYPE_CHECKING:
    from tfmeta.data import ClassDataset


def filters_by_network() -> str:
    """Say how many filters the first block of each network has by default."""
    return ", ".join(f"{filters_of(name)} for {name}" for name in FILTERS)


@main.command()
@click.argument("data", type=Data())
@click.option(
    "-a",
    "--algorithm",
    type=Name(list(LEARNERS)),
    metavar="LEARNER",
    default="prototypical",
    show_default=True,
    help="Any that `tfmeta learners` lists.",
)
@click.option(
    "--set",
    "given",
    type=Given("NAME=VALUE, as in temperature=10"),
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument of the learner, as `tfmeta learners LEARNER` lists them; once for each.",
)
@click.option(
    "-o",
    "--output",
    "run_path",
    type=FOLDER,
    metavar="RUN",
    help="Folder of the run.  [default: runs/DATA-ALGORITHM-seedSEED]",
)
@click.option("--resume", is_flag=True, help="Continue the run from where it was.")
@click.option("--overwrite", is_flag=True, help="Replace the run that the folder holds.")
# Keras takes no larger one.
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
# Episodes
@click.option(
    "--ways",
    type=POSITIVE,
    help=f"Classes of a task.  [default: {by_family('ways')}; or all there are]",
)
@click.option(
    "--shots", type=POSITIVE, default=1, show_default=True, help="Examples of a class to adapt to."
)
@click.option(
    "--queries",
    type=POSITIVE,
    default=5,
    show_default=True,
    help="Examples of a class to classify.",
)
# Data
@click.option(
    "--also",
    type=DataSets(),
    metavar="DATA,DATA,…",
    help="Train on these as well, known by name or folders of images, whose images get the size "
    "and the channels of those of DATA; of folders, where that is bright ink on dark, dark becomes "
    "bright. Each episode is of one data set, all of them as likely.",
)
@click.option("--data-dir", type=FOLDER, help="Folder of TensorFlow Datasets.")
@click.option(
    "--folder",
    type=FOLDER,
    help="Read a data set known by name from here: one sub-folder a class.",
)
@click.option(
    "--class-split",
    help="Which published division of DATA, known by name, where there are several: "
    "meta_dataset of cub.",
)
@click.option(
    "--examples-per-class",
    type=POSITIVE,
    metavar="EXAMPLES",
    help="Read so many of each class of DATA, known by name, the first ones.",
)
@click.option("--preset", type=Name(list(OMNIGLOT_PRESETS)), help="How Omniglot is prepared.")
@click.option(
    "--image-size",
    type=POSITIVE,
    metavar="PIXELS",
    help="Resize images to a square: of a folder, or of most data sets known by name.",
)
@click.option("--grayscale", is_flag=True, help="Read the images of a folder without colour.")
@click.option("--invert", is_flag=True, help="Make dark ink on paper bright; for folders.")
@click.option(
    "--dtype",
    type=Name(choices_of("dtype")),
    help="Of a folder's images: uint16 keeps 16 bits, float32 floats, too.  [default: uint8]",
)
@click.option("--alpha", is_flag=True, help="Keep transparency, as one channel more; for folders.")
@click.option(
    "--pages",
    type=Name(choices_of("pages")),
    help="Of a folder's files with several: all of them are images.  [default: first]",
)
@click.option("--skip-unreadable", is_flag=True, help="Leave out damaged files of a folder.")
@click.option(
    "--min-per-class",
    type=POSITIVE,
    default=1,
    show_default=True,
    metavar="IMAGES",
    help="Leave out classes of a folder that have fewer.",
)
@click.option(
    "--splits",
    type=FOLDER,
    help="Folder with train.txt, validation.txt and test.txt: the classes of each part, one a "
    "line.  [default: 60, 20 and 20 % of the classes, at random]",
)
@click.option("--train-classes", type=FOLDER, metavar="FILE", help="Such a list by itself;")
@click.option("--validation-classes", type=FOLDER, metavar="FILE", help="and another one;")
@click.option("--test-classes", type=FOLDER, metavar="FILE", help="and the third.")
# Training
@click.option(
    "--meta-batch-size",
    type=POSITIVE,
    help=f"Tasks of a step.  [default: {by_family('meta_batch_size')}]",
)
@click.option("--steps", type=POSITIVE, help=f"Steps of an epoch.  [default: {by_family('steps')}]")
@click.option("--epochs", type=POSITIVE, default=20, show_default=True)
@click.option("--learning-rate", type=Rate(), default=1e-3, show_default=True, help="Adam's.")
@click.option(
    "--learning-rate-halving",
    type=POSITIVE,
    metavar="STEPS",
    help="Halve the learning rate each time that many steps are done.",
)
@click.option(
    "--validation-episodes",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Episodes after each epoch; 0 for none.",
)
@click.option(
    "--save-every",
    type=POSITIVE,
    default=100,
    show_default=True,
    metavar="STEPS",
    help="Save a state to resume from each time that many steps are done.",
)
@click.option(
    "--workers",
    type=POSITIVE,
    default=1,
    show_default=True,
    help="Processes that train together on this machine, for trying it out.",
)
# Network and learner
@click.option(
    "--network",
    type=Network(),
    default="conv4",
    show_default=True,
    help=f"{', '.join(FILTERS)}; or a file .keras of an encoder that was trained elsewhere, or of "
    "a run's model.",
)
@click.option(
    "--pretrain-epochs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="First train the network that many epochs as a classifier of all training classes.",
)
@click.option(
    "--freeze/--no-freeze",
    default=None,
    help="Whether a network that was trained before stays as it is, and only what the learner has "
    "of its own is trained.  [default: of simple-shot]",
)
@click.option(
    "--batch-norm-momentum",
    type=click.FloatRange(0, 1, max_open=True),
    help="Of the network: how slowly running statistics follow.  [default: 0.9; of a file its own]",
)
@click.option(
    "--downsample",
    type=Name(["pool", "stride"]),
    default="pool",
    show_default=True,
    help="Of conv4: how a block halves the image.",
)
@click.option(
    "--filters",
    type=POSITIVE,
    help=f"Of the network's first block.  [default: {filters_by_network()}]",
)
@click.option(
    "--distance",
    type=Name(DISTANCES),
    help="Of prototypical, feat and soft-k-means; cosine has a learnt temperature.  "
    f"[default: {DISTANCES[0]}]",
)
@click.option(
    "--inner-learning-rate",
    type=Rate(),
    help="Of an inner loop.  [default: what suits the network before it is trained on episodes, "
    f"found on 32 of them; {INNER_RATE} in a search]",
)
@click.option(
    "--inner-steps",
    type=POSITIVE,
    help=f"Of an inner loop.  [default: {inner_steps_in_words()}]",
)
@click.option(
    "--evaluation-steps",
    type=POSITIVE,
    help="Of an inner loop: steps in evaluation.  [default: as --inner-steps]",
)
@click.option(
    "--batch-norm",
    type=Name(BATCH_NORM_MODES),
    help="Of an inner loop: whose statistics normalise the queries.  "
    f"[default: {BATCH_NORM_MODES[0]}; running for fine-tune]",
)
def train(
    run_path: Path | None,
    resume: bool,
    overwrite: bool,
    save_every: int,
    workers: int,
    **values: Any,
) -> None:
    """Train on DATA, a data set's name or a folder of images with one sub-folder a class.

    With --also there are several: each episode is of one of them, and validation and `tfmeta
    evaluate` take episodes of all; `tfmeta evaluate --suite` scores each by itself.

    With --pretrain-epochs the network is trained first, as an ordinary classifier of all classes
    for training, with flips of images in colour and crops; the learner begins with the weights that
    tell the classes of validation episodes apart best. A learner that has nothing to learn of
    episodes, as k-nearest-neighbors, then is that network with it.

    RUN gets the model after each epoch, the settings, the history and a learning curve; and states,
    from which the same command with --resume goes on as if it had never been interrupted. Ctrl-C
    and SIGTERM end training after the step, with everything saved; a second one ends it at once.

    Where TF_CONFIG or Slurm's srun says that there are several workers, they share the tasks of
    each step out; RUN must be a folder that all of them see. --workers starts some on this machine,
    which write what they have to say to RUN/worker_0.log and so on.
    """
    if resume and overwrite:
        raise click.UsageError("--resume continues a run and --overwrite replaces it: choose one.")
    lists = class_lists(values)
    settings = settings_from(**values)
    run = run_outside_images(run_path, settings)
    # The default for a learner that takes any number depends on the data.
    any_ways = values["ways"] is None and not settings.fixed_ways
    given_rate = values["inner_learning_rate"] or dict(values["given"]).get("inner_learning_rate")
    any_rate = looks_for_rate(settings, given_rate)
    if resume:
        run.check_begun()
        if any_rate:
            rate = run.settings().inner_learning_rate
            settings = dataclasses.replace(settings, inner_learning_rate=rate)
        if any_ways:
            settings = dataclasses.replace(settings, ways=run.settings().ways)
        settings = run.resumed(settings)
        run.history()  # which may be damaged, and is added to after an epoch only
    else:
        run.check_free(overwrite)
    if workers > 1 and "TF_CONFIG" not in os.environ:  # which those that are started have
        if not resume:
            check_pretraining(settings, workers)
        with run.alone():
            raise SystemExit(start_workers(workers, run.path, run.for_workers()))
    load_package()
    from tfmeta import training
    from tfmeta.distribution import strategy_of_environment, workers_of
    from tfmeta.run_data import settled

    have_tasks_at_once(settings.algorithm)
    strategy = strategy_of_environment()
    # Of several workers only the first one writes.
    first = workers_of(strategy)[0] == 0
    with run.alone() if first else contextlib.nullcontext():
        if not resume:
            run.check_free(overwrite)  # for another may have been there just now
        settings, parts = loaded(settings, any_ways, lists)
        if not settings.images:  # which a run that is resumed has
            settings = settled(settings, parts)
        if any_rate and not resume:
            if settings.pretrain_epochs:  # it is the pretrained network that the rate must suit
                settings = dataclasses.replace(settings, inner_learning_rate=None)
            else:
                settings = training.with_suggested_rate(settings, parts)
        _train(settings, run, parts, resume, overwrite, save_every, strategy)
    click.echo(f"Saved in {run.path}. Next: tfmeta evaluate {run.path}")


def _continues(settings: Settings, before: Settings) -> bool:
    """Return whether a run's settings are these, but for epochs and a rate that was found since."""
    if settings.inner_learning_rate is None:
        settings = dataclasses.replace(settings, inner_learning_rate=before.inner_learning_rate)
    return settings == dataclasses.replace(before, epochs=settings.epochs)


def _train(
    settings: Settings,
    run: Run,
    parts: tuple[ClassDataset, ...],
    resume: bool,
    overwrite: bool,
    save_every: int,
    strategy: Any,
) -> None:
    """Train, and say what is there if a signal ends it."""
    from tfmeta import training
    from tfmeta.states import newest

    try:
        with training.together(strategy, settings, run, parts) as own:
            training.train(
                settings, own, parts, resume=resume, save_every=save_every, strategy=strategy
            )
    except KeyboardInterrupt as stop:
        status = 128 + getattr(stop, "signal", signal.SIGINT)
        before = run.settings() if run.settings_file.is_file() else None
        if before is None or not _continues(settings, before):
            click.echo("\nStopped before anything was saved; the same command begins again.")
            raise SystemExit(status) from None
        done = f"the model after {len(run.history())} of {settings.epochs} epochs"
        held = done if run.model_file.exists() else "no model yet: no epoch was finished"
        state = newest(run.states)
        step = f"the state after step {state.step}" if state else "no state: no step was finished"
        if state is None and (state := newest(run.pretraining)):
            step = f"the state after step {state.step} of pretraining"
        click.echo(f"\nStopped; {run.path} holds {step}, and {held}.")
        instead = " in place of --overwrite" if overwrite else ""
        click.echo(f"The same command with --resume{instead} goes on from there.")
        raise SystemExit(status) from None
