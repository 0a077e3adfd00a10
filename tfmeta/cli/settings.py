"""From the options of a command to the settings of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfmeta.choices import FILTERS
from tfmeta.runs import DEFAULTS, INNER_RATE, SPLITS, Run, Settings
from tfmeta.saying import say

if TYPE_CHECKING:
    from tfmeta.data import ClassDataset


def run_outside_images(path: Path | None, settings: Settings) -> Run:
    """Return the run's folder, which may not become a class of the folder of images."""
    of = f"{Path(settings.data).name}-{settings.algorithm}-seed{settings.seed}"
    run = Run(path or Path("runs", of))
    if settings.is_folder and run.path.resolve().is_relative_to(settings.data):
        raise click.UsageError(
            "--output must lie outside the folder of images, or the run's own pictures become a "
            f"class. Received: --output '{run.path}' in '{settings.data}'"
        )
    return run


def with_data_there(settings: Settings, data_dir: Path | None) -> Settings:
    """Return the settings of a run to evaluate, whose data are read and never written.

    The folder of a data set is a part of the settings, which may be a stranger's.

    Args:
        settings: As they are in the run's folder.
        data_dir: The folder of the data sets, if the command names one; it may be written to.
    """
    if settings.is_folder:
        if data_dir is not None:
            raise click.UsageError(f"--data-dir is for data sets, not for {settings.data!r}.")
        return settings
    if data_dir is not None:
        options = {**settings.data_options, "data_dir": str(data_dir.resolve())}
        return dataclasses.replace(settings, data_options=options)
    named = settings.data_options.get("data_dir")
    # Those of CIFAR-100 have names of their own here.
    found = "omniglot*" if settings.data == "omniglot" else "cifar100*"
    pattern = "glyphs-*.npz" if settings.data == "glyphs" else f"{found}/*/dataset_info.json"
    if named is not None and not any(Path(named).glob(pattern)):
        raise FileNotFoundError(
            f"The run was trained on data in '{named}', where there are none: say --data-dir, the "
            "folder that they are in or shall be downloaded to"
        )
    return settings


def loaded(settings: Settings, any_ways: bool) -> tuple[Settings, tuple[ClassDataset, ...]]:
    """Load the data and say what they are; have no more ways than classes, where none were said."""
    from tfmeta import training

    say("Reading the data …")
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
    import tensorflow as tf

    if settings.algorithm != "prototypical":
        # Where TensorFlow has begun already it stays with what it has.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_intra_op_parallelism_threads(1)


def filters_of(network: str) -> int:
    """Return how many filters the first block of a network has by default."""
    return FILTERS[network]


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
    filters: int | None,
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
    if values["downsample"] != "pool" and network != "conv4":
        raise click.UsageError(f"--downsample is for conv4, not for {network!r}.")
    values |= {"network": network, "filters": filters or filters_of(network)}
    data_options = {option: value for option, value in chosen.items() if value}
    if "image_size" in data_options:
        data_options["size"] = data_options.pop("image_size")
    defaults = {**DEFAULTS[values["algorithm"]], "inner_learning_rate": INNER_RATE}
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    return Settings(data=data, data_options=data_options, **values)
