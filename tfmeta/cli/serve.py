"""`tfmeta serve`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tfmeta.cli.group import main
from tfmeta.cli.loading import load_package
from tfmeta.cli.types import FOLDER, POSITIVE, SHARE
from tfmeta.serving.limits import Limits

# Each size of task costs as many once, while somebody waits.
_EPISODES = 100


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an option for each of the limits."""
    for field in reversed(dataclasses.fields(Limits)):
        option = click.option(
            f"--{field.name.replace('_', '-')}",
            type=POSITIVE,
            default=field.default,
            show_default=True,
            help=field.metadata["help"],
        )
        command = option(command)
    return command


@main.command()
@click.argument("source", metavar="RUN_OR_MODEL", type=FOLDER)
@click.option(
    "--port",
    type=click.IntRange(0, 2**16 - 1),
    default=8000,
    show_default=True,
    help="0 for one that is free.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address or name of this machine to answer at.",
)
@click.option(
    "--invert/--no-invert",
    default=None,
    help="Make dark ink on paper bright.  [default: as in training]",
)
@click.option(
    "--false-acceptance",
    type=SHARE,
    help="Answer 'unknown' so often that of images of other classes only this share gets the name "
    "of a class; found with the validation classes of RUN, for each size of task when it is first "
    "shown.",
)
@click.option(
    "--false-rejection",
    type=SHARE,
    help="Answer 'unknown', but to this share of images of the classes themselves only.",
)
@click.option("--data-dir", type=FOLDER, help="Folder of data sets.  [default: as in training]")
@limit_options
def serve(
    source: Path,
    port: int,
    host: str,
    invert: bool | None,
    false_acceptance: float | None,
    false_rejection: float | None,
    data_dir: Path | None,
    **limits: int,
) -> None:
    """Show classes to the model of RUN in a web browser, and ask it.

    Drop a few images into classes of your own, or draw them; drop others, and see which class each
    is of. RUN is a folder that `tfmeta train` wrote, or an encoder that Keras saved, MODEL.keras.
    Nothing that is sent is kept but in memory, and there for a while only. Ctrl-C ends it.
    """
    if false_acceptance is not None and false_rejection is not None:
        raise click.UsageError("--false-acceptance and --false-rejection: choose one.")
    asked = false_acceptance is not None or false_rejection is not None
    if asked and source.is_file():
        raise click.UsageError(
            "--false-acceptance and --false-rejection need the validation classes of a run. "
            f"Received: '{source}', a file"
        )
    load_package()
    try:
        from tfmeta.serving import server
        from tfmeta.serving.app import make_app
    except ImportError as error:
        raise ImportError(
            f"`tfmeta serve` needs Flask and waitress: pip install 'tfmeta[serve]' ({error})"
        ) from error
    from tfmeta.serving.tasks import Tasks

    bounds = Limits(**limits)
    # Before all that takes a while.
    with server.bound(host, port) as at:
        service, title = service_of(source, invert, data_dir, false_acceptance, false_rejection)
        tasks = Tasks(bounds.max_tasks, bounds.max_kept_megabytes * 10**6, 60 * bounds.minutes)
        app = make_app(service, tasks, bounds, title=title, host=host)
        stopping = server.stopping_on_signals()
        address, taken = at.getsockname()[:2]
        warn_if_reachable(host, address)
        at.listen()  # so that whoever reads the address can connect
        click.echo(f"http://{f'[{address}]' if ':' in address else address}:{taken}")
        server.serve(app, at, bounds, stopping, tasks.forget_old)
    click.echo("Ended.")


def service_of(
    source: Path,
    invert: bool | None,
    data_dir: Path | None,
    false_acceptance: float | None,
    false_rejection: float | None,
) -> tuple[Any, str]:
    """Return what adapts and predicts, and what the page calls it."""
    from tfmeta import run_data, training
    from tfmeta.classifier import images_for, read_encoder
    from tfmeta.cli.settings import with_data_there
    from tfmeta.runs import Run
    from tfmeta.serving.service import Service

    given = {} if invert is None else {"invert": invert}
    if source.is_file():
        learner = read_encoder(source)
        return Service(learner, {**images_for(learner), **given}), source.name
    run = Run(source)
    if (source / "classifier.json").is_file() and not run.settings_file.is_file():
        raise ValueError(
            f"'{source}' is an adapted model, whose classes are known: name the RUN that it was "
            "adapted from, or ask it with `tfmeta predict`"
        )
    settings, fit = run.settings(), None
    learner = run.learner()
    if false_acceptance is not None or false_rejection is not None:
        validation = run_data.load_data(with_data_there(settings, data_dir))[1]

        def fit(ways: int, shots: int) -> Any:
            click.echo(f"Finding when to answer 'unknown': {ways} classes, {shots} image(s) each.")
            return training.threshold_for(
                settings,
                learner,
                validation,
                ways,
                shots,
                false_acceptance=false_acceptance,
                false_rejection=false_rejection,
                episodes=_EPISODES,
                verbose=False,
            )

    title = f"{settings.algorithm}, {source.resolve().name}"
    return Service(learner, {**settings.images, **given}, fit), title


def warn_if_reachable(host: str, address: str) -> None:
    """Say on standard error where others can reach it, too."""
    import ipaddress

    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        click.echo(
            f"Warning: --host {host} lets every machine that can reach this one use the model, at "
            "its expense, and read what goes over the network. There is no password and no "
            "encryption; put it behind what has both, or leave --host away and use a tunnel.",
            err=True,
        )
