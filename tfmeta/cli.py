"""The command `tfmeta`: data sets, training, evaluation and adaptation from a shell."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
from pathlib import Path
from typing import Any

import click
import tensorflow as tf

from tfmeta import __version__, training, tuning
from tfmeta.algorithms.prototypical import DISTANCES
from tfmeta.classifier import Classifier
from tfmeta.data.benchmarks import BENCHMARKS, OMNIGLOT_PRESETS
from tfmeta.data.class_dataset import ClassDataset, did_you_mean
from tfmeta.data.images import SUFFIXES
from tfmeta.distribution import strategy_of_environment
from tfmeta.evaluation import evaluate as evaluate_learner
from tfmeta.formats import FORMATS
from tfmeta.functional import BATCH_NORM_MODES
from tfmeta.runs import DEFAULTS, SPLITS, Run, Settings
from tfmeta.states import newest
from tfmeta.workers import start_workers

POSITIVE = click.IntRange(min=1)
FOLDER = click.Path(path_type=Path)
# What comes of the arguments, the files and the machine, and not of a mistake in the program.
REPORTED = (ValueError, TypeError, OSError, MemoryError, ImportError, tf.errors.OpError)


class Commands(click.Group):
    """Shows errors that name an argument or a file as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except REPORTED as error:
            if ctx.params["traceback"]:
                raise
            raise click.ClickException(str(error) or type(error).__name__) from error


class Name(click.Choice[str]):
    """A choice that suggests the nearest one for a misspelt value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the value."""
        if value not in self.choices:
            known = ", ".join(self.choices)
            self.fail(f"{value!r} is none of {known}.{did_you_mean(value, self.choices)}")
        return str(value)


class Rate(click.ParamType[float]):
    """A learning rate; click's own range lets NaN through."""

    name = "float"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Check the value."""
        rate = click.FLOAT.convert(value, param, ctx)
        if not 0 < rate < math.inf:
            self.fail(f"{value!r} is not a positive, finite number.")
        return rate


class Data(click.ParamType[str]):
    """The name of a data set, or a folder of images."""

    name = "data"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the value; a folder comes back as an absolute path."""
        if not value:  # Path("") would be the current folder
            self.fail("it must not be empty.")
        if value not in BENCHMARKS and not Path(value).is_dir():
            if Path(value).exists():
                self.fail(f"{value!r} is a file, not a folder of images.")
            known = ", ".join(BENCHMARKS)
            self.fail(
                f"{value!r} is neither a folder nor one of the data sets {known}."
                f"{did_you_mean(value, BENCHMARKS)}"
            )
        return str(value) if value in BENCHMARKS else str(Path(value).resolve())


def by_algorithm(option: str) -> str:
    """Say an option's default for each algorithm, from the one table that holds them."""
    values = [(value[option], name) for name, value in DEFAULTS.items()]
    return "; ".join(f"{value} for {name}" for value, name in values)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--traceback", is_flag=True, help="Show where in the code an error arose.")
def main(traceback: bool) -> None:
    """Learn to classify from a few examples.

    Train on classes with many examples, then adapt to new classes with a few examples of each:

    \b
      tfmeta train glyphs --output runs/glyphs
      tfmeta evaluate runs/glyphs
      tfmeta adapt runs/glyphs --support few_images/ --output adapted
      tfmeta predict adapted other_images/

    
    And to look for better arguments than those that are given:
      tfmeta tune glyphs --search learning_rate=0.0003:0.03:log --epochs 3
    """


@main.command()
def datasets() -> None:
    """List the data sets that are known by name."""
    for name, benchmark in BENCHMARKS.items():
        click.echo(f"{name:10}{benchmark}")
    click.echo("\nWhat needs a download is read through TensorFlow Datasets, from --data-dir.")
    click.echo("A folder of images, one sub-folder a class, can stand wherever a name can.")


@main.command()
@click.argument("data", type=Data())
@click.option(
    "-a", "--algorithm", type=Name(list(DEFAULTS)), default="prototypical", show_default=True
)
@click.option(
    "-o",
    "--output",
    "run_path",
    type=FOLDER,
    metavar="RUN",
    help="Folder of the run.  [default: runs/DATA-ALGORITHM]",
)
@click.option("--resume", is_flag=True, help="Continue the run from where it was.")
@click.option("--overwrite", is_flag=True, help="Replace the run that the folder holds.")
# Keras takes no larger one.
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
# Episodes
@click.option(
    "--ways",
    type=POSITIVE,
    help=f"Classes of a task.  [default: {by_algorithm('ways')}, or all there are]",
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
@click.option("--data-dir", type=FOLDER, help="Folder of TensorFlow Datasets.")
@click.option("--preset", type=Name(list(OMNIGLOT_PRESETS)), help="How Omniglot is prepared.")
@click.option(
    "--image-size",
    type=POSITIVE,
    metavar="PIXELS",
    help="Resize the images of a folder to a square.",
)
@click.option("--grayscale", is_flag=True, help="Read the images of a folder without colour.")
@click.option("--invert", is_flag=True, help="Make dark ink on paper bright; for folders.")
@click.option("--skip-unreadable", is_flag=True, help="Leave out damaged files of a folder.")
# Training
@click.option(
    "--meta-batch-size",
    type=POSITIVE,
    help=f"Tasks of a step.  [default: {by_algorithm('meta_batch_size')}]",
)
@click.option(
    "--steps", type=POSITIVE, help=f"Steps of an epoch.  [default: {by_algorithm('steps')}]"
)
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
@click.option("--network", type=Name(["conv4"]), default="conv4", show_default=True)
@click.option("--downsample", type=Name(["pool", "stride"]), default="pool", show_default=True)
@click.option("--filters", type=POSITIVE, default=64, show_default=True)
@click.option(
    "--distance",
    type=Name(DISTANCES),
    default=DISTANCES[0],
    show_default=True,
    help="Of prototypical; cosine has a learnt temperature.",
)
@click.option("--inner-learning-rate", type=Rate(), default=0.4, show_default=True, help="Of MAML.")
@click.option("--inner-steps", type=POSITIVE, default=1, show_default=True, help="Of MAML.")
@click.option(
    "--evaluation-steps",
    type=POSITIVE,
    help="Of MAML: inner steps in evaluation.  [default: as --inner-steps]",
)
@click.option(
    "--batch-norm",
    type=Name(BATCH_NORM_MODES),
    default=BATCH_NORM_MODES[0],
    show_default=True,
    help="Of MAML: whose statistics normalise the queries.",
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

    RUN gets the model after each epoch, the settings, the history and a learning curve; and states,
    from which the same command with --resume goes on as if it had never been interrupted. Ctrl-C
    and SIGTERM end training after the step, with everything saved; a second one ends it at once.

    Where TF_CONFIG or Slurm's srun says that there are several workers, they share the tasks of
    each step out; RUN must be a folder that all of them see. --workers starts some on this machine,
    which write what they have to say to RUN/worker_0.log and so on.
    """
    if resume and overwrite:
        raise click.UsageError("--resume continues a run and --overwrite replaces it: choose one.")
    settings = settings_from(**values)
    run = run_outside_images(run_path, settings)
    # The default for a learner that takes any number depends on the data.
    any_ways = values["ways"] is None and not settings.fixed_ways
    if resume:
        if any_ways:
            settings = dataclasses.replace(settings, ways=run.settings().ways)
        settings = run.resumed(settings)
    else:
        run.check_free(overwrite)
    if workers > 1 and "TF_CONFIG" not in os.environ:  # which those that are started have
        raise SystemExit(start_workers(workers, run.path))
    have_tasks_at_once(settings)
    strategy = strategy_of_environment()
    settings, parts = loaded(settings, any_ways)
    if not settings.images:  # which a run that is resumed has
        settings = training.settled(settings, parts)
    try:
        with training.together(strategy, settings, run, parts) as own:
            training.train(
                settings, own, parts, resume=resume, save_every=save_every, strategy=strategy
            )
    except KeyboardInterrupt as stop:
        done = f"the model after {len(run.history())} of {settings.epochs} epochs"
        held = done if run.model_file.exists() else "no model yet: no epoch was finished"
        state = newest(run.states)
        step = f"the state after step {state.step}" if state else "no state: no step was finished"
        click.echo(f"\nStopped; {run.path} holds {step}, and {held}.")
        instead = " in place of --overwrite" if overwrite else ""
        click.echo(f"The same command with --resume{instead} goes on from there.")
        raise SystemExit(128 + getattr(stop, "signal", signal.SIGINT)) from None
    click.echo(f"Saved in {run.path}. Next: tfmeta evaluate {run.path}")


def run_outside_images(path: Path | None, settings: Settings) -> Run:
    """Return the run's folder, which may not become a class of the folder of images."""
    run = Run(path or Path("runs", f"{Path(settings.data).name}-{settings.algorithm}"))
    if settings.is_folder and run.path.resolve().is_relative_to(settings.data):
        raise click.UsageError(
            "--output must lie outside the folder of images, or the run's own pictures become a "
            f"class. Received: --output '{run.path}' in '{settings.data}'"
        )
    return run


def loaded(settings: Settings, any_ways: bool) -> tuple[Settings, tuple[ClassDataset, ...]]:
    """Load the data and say what they are; have no more ways than classes, where none were said."""
    parts = training.load_data(settings)
    if any_ways:
        ways = min(settings.ways, parts[0].num_classes)
        settings = dataclasses.replace(settings, ways=ways)
    for split, part in zip(SPLITS, parts, strict=True):
        size = f"{part.num_classes:6} classes {len(part):7} examples"
        click.echo(f"{split:11}{size}  {part.description}")
    return settings, parts


def have_tasks_at_once(settings: Settings) -> None:
    """Leave the cores to chunks of tasks, where there are such, in place of single operations."""
    if settings.algorithm != "prototypical":
        # Where TensorFlow has begun already it stays with what it has.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(1)


def settings_from(
    *,
    data: str,
    data_dir: Path | None,
    preset: str | None,
    image_size: int | None,
    grayscale: bool,
    invert: bool,
    skip_unreadable: bool,
    network: str,
    **values: Any,
) -> Settings:
    """Make settings of the options, with the algorithm's defaults where nothing was said."""
    of_name = {"data_dir": data_dir and str(data_dir.resolve()), "preset": preset}
    of_folder = {
        "image_size": image_size,
        "grayscale": grayscale,
        "invert": invert,
        "skip_unreadable": skip_unreadable,
    }
    is_folder = os.path.isabs(data)
    chosen, other = (of_folder, of_name) if is_folder else (of_name, of_folder)
    for option in [option for option, value in other.items() if value]:
        kind = "a data set known by name" if is_folder else "a folder of images"
        raise click.UsageError(f"--{option.replace('_', '-')} is for {kind}, not for {data!r}.")
    if preset and data != "omniglot":
        raise click.UsageError(f"--preset is for omniglot, not for {data!r}.")
    data_options = {option: value for option, value in chosen.items() if value}
    if "image_size" in data_options:
        data_options["size"] = data_options.pop("image_size")
    defaults = DEFAULTS[values["algorithm"]]
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    return Settings(data=data, data_options=data_options, **values)


class Searched(click.ParamType[tuple[str, str]]):
    """An argument to search, and its values."""

    name = "name=values"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Split at the sign of equality; the name may be written as the option is."""
        name, sign, text = str(value).partition("=")
        if not sign:
            self.fail(f"{value!r} is not of the form NAME=VALUES, as in filters=16,32,64.")
        return name.strip().lstrip("-").replace("-", "_"), text


# Everything that `train` takes can be set, but for what is searched.
@main.command(params=[o for o in train.params if o.name not in ("resume", "save_every", "workers")])
@click.option(
    "--search",
    "searched",
    type=Searched(),
    multiple=True,
    metavar="NAME=VALUES",
    help="An option to search, and LOW:HIGH, LOW:HIGH:log or A,B,C; once for each.",
)
@click.option("--trials", type=POSITIVE, default=25, show_default=True)
@click.option(
    "--sampler",
    type=Name(tuning.SAMPLERS),
    default=tuning.SAMPLERS[0],
    show_default=True,
    help="Whether to learn from the trials before.",
)
@click.option(
    "--pruner",
    type=Name(tuning.PRUNERS),
    default=tuning.PRUNERS[0],
    show_default=True,
    help="Whether to end trials early that are worse than the median of the others.",
)
@click.option("--resume", is_flag=True, help="Go on with a search, or add trials to it.")
@click.pass_context
def tune(
    context: click.Context,
    /,
    run_path: Path | None,
    resume: bool,
    overwrite: bool,
    searched: tuple[tuple[str, str], ...],
    trials: int,
    sampler: str,
    pruner: str,
    **values: Any,
) -> None:
    """Search for the options that are best on validation episodes of DATA, and train with them.

    Each trial trains for --epochs; the best is trained once more into RUN, as `train` would, which
    also keeps the trials.

    
      tfmeta tune glyphs -a fomaml --epochs 3 --search inner-learning-rate=0.01:1.0:log \\
        --search inner-steps=1:5 --search filters=16,32,64
    """
    if resume and overwrite:
        raise click.UsageError("--resume goes on and --overwrite begins anew: choose one.")
    space = dict(searched)
    for name in space:
        option = f"--{name.replace('_', '-')}"
        if [other for other, _ in searched].count(name) > 1:
            raise click.UsageError(f"--search {name} is given twice.")
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} is searched: leave it out, or --search {name}.")
    settings = settings_from(**values)
    run = run_outside_images(run_path, settings)
    tuning.check_space(space, settings.algorithm)
    any_ways = values["ways"] is None and not settings.fixed_ways
    if resume:
        before = tuning.started(run)
        names = ("images", "classes", "ways") if any_ways else ("images", "classes")
        kept = {name: before[name] for name in names if name in before}
        settings = dataclasses.replace(settings, **kept)
    else:
        tuning.check_free(run, overwrite)
    have_tasks_at_once(settings)
    settings, parts = loaded(settings, any_ways)
    if not resume:
        settings = training.settled(settings, parts)
    try:
        study = tuning.tune(
            settings,
            run,
            parts,
            space,
            trials,
            sampler=sampler,
            pruner=pruner,
            overwrite=overwrite,
        )
    except KeyboardInterrupt:
        instead = " in place of --overwrite" if overwrite else ""
        click.echo(f"\nStopped; {run.path} holds the trials that were finished.")
        click.echo(f"The same command with --resume{instead} goes on from there.")
        raise SystemExit(130) from None
    best = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in study.best_params.items()
    )
    click.echo(f"Best of {trials} trials: {100 * study.best_value:.2f} % on validation, {best}")
    click.echo(f"Saved in {run.path}. Next: tfmeta evaluate {run.path}")


@main.command()
@click.argument("run_path", metavar="RUN", type=FOLDER)
@click.option("--ways", type=POSITIVE, help="[default: 5 for prototypical, else as in training]")
@click.option("--shots", type=POSITIVE, help="[default: as in training]")
@click.option("--queries", type=POSITIVE, help="[default: as in training]")
@click.option("--episodes", type=POSITIVE, default=600, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
@click.option("--split", type=Name(SPLITS), default="test", show_default=True)
def evaluate(run_path: Path, split: str, episodes: int, **episode: Any) -> None:
    """Score the model of RUN on episodes of classes that it was not trained on."""
    run = Run(run_path)
    settings = run.settings()
    have_tasks_at_once(settings)
    learner = run.learner()
    part = training.load_data(settings)[SPLITS.index(split)]
    sampler = training.evaluation_sampler(settings, part, **episode)
    norm = settings.batch_norm if settings.fixed_ways else "running statistics"
    click.echo(f"{part.description}, {part.num_classes} classes")
    click.echo(f"{settings.algorithm}, batch norm: {norm}")
    result = evaluate_learner(learner, sampler, episodes)
    click.echo(f"{sampler.ways}-way {sampler.shots}-shot, seed {sampler.seed}: {result}")


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
