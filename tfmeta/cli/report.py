"""`tfmeta report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfmeta.cli.group import main
from tfmeta.cli.loading import load_package
from tfmeta.cli.scoring import scoring_options
from tfmeta.cli.types import FOLDER
from tfmeta.history import as_keras_has_it
from tfmeta.runs import SPLITS

if TYPE_CHECKING:
    from tfmeta.data import ClassDataset, EpisodeSampler
    from tfmeta.runs import Run, Settings


@main.command()
@click.argument("run_paths", metavar="RUN...", type=FOLDER, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
    help="The file to write; an older report is replaced.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file also if it is no report.")
@scoring_options(ways="as in training where a run takes no other number, else 5")
def report(
    run_paths: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    split: str,
    episodes: int,
    data_dir: Path | None,
    references: bool,
    **shape: Any,
) -> None:
    """Write one HTML file of one run, or of several side by side, on the same episodes.

    It needs no network and no JavaScript, and has settings, learning curves, episodes with the
    predictions, accuracy by class and confusions, the hardest classes, calibration, paired
    comparisons, and the commands to repeat it. Runs must have the same classes to be scored on,
    and take episodes of the same shape.


      tfmeta report runs/maml runs/prototypical --output report.html
    """
    load_package()
    from tfmeta import reporting
    from tfmeta.cli import repeat
    from tfmeta.cli.settings import have_tasks_at_once
    from tfmeta.cli.train import train

    reporting.check_free(output, overwrite)
    runs = named(run_paths)
    settings = {name: run.settings() for name, run in runs.items()}
    for of in settings.values():
        have_tasks_at_once(of.algorithm)
    sampler = sampler_of_all(settings, split, data_dir, shape)
    scoring = repeat.options(
        {
            **{name: getattr(sampler, name) for name in ("ways", "shots", "queries")},
            **{"episodes": episodes, "seed": sampler.seed, "split": split, "data_dir": data_dir},
        }
    )
    without = [] if references else ["--no-references"]
    reported = {
        name: reporting.Reported(
            run.learner(),
            settings_shown(settings[name]),
            as_keras_has_it(run.history()),
            [
                repeat.train_command(settings[name], train.params, str(run.path)),
                repeat.command(["tfmeta", "evaluate", run.path, *scoring, *without]),
            ],
        )
        for name, run in runs.items()
    }
    found = reporting.report(
        reported,
        sampler,
        output,
        episodes,
        references=references,
        facts={"split": split},
        commands=[
            repeat.command(["tfmeta", "report", *run_paths, *scoring, *without, "--output", output])
        ],
        overwrite=overwrite,
    )
    for name, evaluation in found.evaluations.items():
        click.echo(f"{name}: {str(evaluation).splitlines()[0]}")
    click.echo(f"Written to {output}.")


def named(paths: tuple[Path, ...]) -> dict[str, Run]:
    """Return the runs by the shortest names that tell them apart.

    Raises:
        click.UsageError: If one is given twice.
    """
    from tfmeta.runs import Run

    where = [path.resolve() for path in paths]
    for path, place in zip(paths, where, strict=True):
        if where.count(place) > 1:
            raise click.UsageError(f"RUN '{path}' is given twice.")
    short = [path.name for path in where]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    return {name: Run(path) for name, path in zip(names, paths, strict=True)}


def sampler_of_all(
    settings: dict[str, Settings], split: str, data_dir: Path | None, shape: dict[str, Any]
) -> EpisodeSampler:
    """Return the sampler of the episodes that all runs are scored on.

    Raises:
        ValueError: If runs have other data or episodes of another shape; both are named.
    """
    from tfmeta import run_data, training
    from tfmeta.cli.settings import with_data_there

    fixed = {of.ways for of in settings.values() if of.fixed_ways}
    if shape["ways"] is None and len(fixed) == 1:
        # The others take any number.
        shape = {**shape, "ways": fixed.pop()}
    parts: dict[str, ClassDataset] = {}
    samplers: dict[str, EpisodeSampler] = {}
    for name, of in settings.items():
        there = with_data_there(of, data_dir)
        # What was read once need not be read again.
        same = [other for other in parts if _same_source(settings[other], of)]
        parts[name] = parts[same[0]] if same else run_data.load_data(there)[SPLITS.index(split)]
        samplers[name] = training.evaluation_sampler(there, parts[name], **shape)
    first, *others = settings
    for name in others:
        check_same_data(first, parts[first], name, parts[name], split)
        check_same_shape(first, samplers[first], name, samplers[name])
    return samplers[first]


def _same_source(one: Settings, other: Settings) -> bool:
    folder = (one.seed == other.seed or one.classes is not None) and one.classes == other.classes
    return (
        one.data == other.data
        and one.data_options == other.data_options
        and one.also == other.also
        and (folder or (one.classes is None and not one.is_folder))
    )


def check_same_data(
    first: str, one: ClassDataset, name: str, other: ClassDataset, split: str
) -> None:
    """Raise a `ValueError` in words unless two runs are scored on the same examples."""
    import numpy as np

    if one is other:
        return
    known = [
        ("example shape", one.example_shape, other.example_shape),
        ("number of classes", one.num_classes, other.num_classes),
        ("number of examples", len(one), len(other)),
        ("names of classes", one.class_names, other.class_names),
    ]
    for what, here, there in known:
        if here != there:
            received = f"{here} and {there}"
            if what.startswith("names"):
                only = sorted({*other.class_names} - {*one.class_names})
                received = f"{only[0]!r} of '{name}' alone" if only else "the same in another order"
            raise ValueError(
                f"Runs of one report must have the same {split} data. Received: '{first}' with "
                f"{one.description} and '{name}' with {other.description}, which differ in their "
                f"{what}: {received}"
            )
    spread = np.linspace(0, len(one) - 1, min(len(one), 256)).astype(int)
    alike = all(
        np.array_equal(one.examples[one.class_indices[i]], other.examples[other.class_indices[i]])
        for i in spread
    )
    if not (alike and np.array_equal(one.class_offsets, other.class_offsets)):
        raise ValueError(
            f"Runs of one report must have the same {split} data. Received: '{first}' with "
            f"{one.description} and '{name}' with {other.description}, whose examples differ"
        )


def check_same_shape(first: str, one: EpisodeSampler, name: str, other: EpisodeSampler) -> None:
    """Raise a `ValueError` in words unless two runs are scored on episodes of one shape."""
    for what in ("ways", "shots", "queries", "random_rotation"):
        here, there = getattr(one, what), getattr(other, what)
        if here != there:
            hint = f"; --{what} sets it for all" if what in ("shots", "queries") else ""
            raise ValueError(
                f"Runs of one report must be scored on the same episodes. Received: {what}={here} "
                f"for '{first}' and {what}={there} for '{name}'{hint}"
            )


def settings_shown(settings: Settings) -> dict[str, object]:
    """Return settings by name; of the classes only how many there are."""
    import dataclasses

    shown: dict[str, object] = dataclasses.asdict(settings)
    classes = shown.pop("classes", None)
    if isinstance(classes, dict):
        shown["classes"] = {part: len(names) for part, names in classes.items()}
    return {name.replace("_", " "): value for name, value in shown.items()}
