"""`tfmeta tune`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from tfmeta.choices import PRUNERS, SAMPLERS
from tfmeta.cli.group import main
from tfmeta.cli.loading import load_package
from tfmeta.cli.settings import (
    class_lists,
    have_tasks_at_once,
    loaded,
    run_outside_images,
    settings_from,
)
from tfmeta.cli.train import train
from tfmeta.cli.types import POSITIVE, Given, Name

# Of what `train` takes; all else can be set, but for what is searched.
_LEFT_OUT = ("resume", "save_every", "workers", "pretrain_epochs")


@main.command(params=[o for o in train.params if o.name not in _LEFT_OUT])
@click.option(
    "--search",
    "searched",
    type=Given("NAME=VALUES, as in filters=16,32,64"),
    multiple=True,
    metavar="NAME=VALUES",
    help="An option to search, and LOW:HIGH, LOW:HIGH:log or A,B,C; once for each.",
)
@click.option("--trials", type=POSITIVE, default=25, show_default=True)
@click.option(
    "--sampler",
    type=Name(SAMPLERS),
    default=SAMPLERS[0],
    show_default=True,
    help="Whether to learn from the trials before.",
)
@click.option(
    "--pruner",
    type=Name(PRUNERS),
    default=PRUNERS[0],
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
    lists = class_lists(values)
    settings = settings_from(**values)
    run = run_outside_images(run_path, settings)
    load_package()
    from tfmeta import tuning
    from tfmeta.run_data import settled
    from tfmeta.search_space import check_space

    check_space(space, settings.algorithm)
    for name in space:
        if name in settings.arguments:
            raise click.UsageError(f"--set {name} is searched: leave it out.")
    if "filters" in space and settings.filters is None:
        raise click.UsageError("--search filters is for a network made here, not for a file.")
    if "downsample" in space and settings.network != "conv4":
        raise click.UsageError(f"--search downsample is for conv4, not for {settings.network!r}.")
    any_ways = values["ways"] is None and not settings.fixed_ways
    with run.alone():
        if resume:
            before = tuning.started(run)
            names = ("images", "classes", "ways") if any_ways else ("images", "classes")
            kept = {name: before[name] for name in names if name in before}
            settings = dataclasses.replace(settings, **kept)
        else:
            tuning.check_free(run, overwrite)
        have_tasks_at_once(settings.algorithm)
        settings, parts = loaded(settings, any_ways, lists)
        if not resume:
            settings = settled(settings, parts)
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
            if not tuning.trials_file(run).exists():
                click.echo("\nStopped before the search began; the same command begins again.")
                raise SystemExit(130) from None
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
