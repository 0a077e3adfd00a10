"""From the options of a command to the settings of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfmeta.choices import FILTERS, OMNIGLOT_PRESETS
from tfmeta.class_lists import ClassLists, files_of
from tfmeta.cli.learner_options import learner_values
from tfmeta.cli.loading import load_package
from tfmeta.digests import sha256
from tfmeta.learner_table import LEARNERS
from tfmeta.named_data import ALIASES, NAMED, resizable
from tfmeta.runs import INNER_RATE, SPLITS, Run, Settings
from tfmeta.saying import say

if TYPE_CHECKING:
    from tfmeta.data import ClassDataset


# Options that the arguments of `tfmeta.data.load` and `from_directory` call otherwise.
OF_DATA = {"image_size": "size", "class_split": "split"}


def run_outside_images(path: Path | None, settings: Settings) -> Run:
    """Return the run's folder, which may not become a class of a folder of images."""
    names = [settings.data, *settings.also]
    of = f"{'+'.join(Path(name).name for name in names)}-{settings.algorithm}-seed{settings.seed}"
    run = Run(path or Path("runs", of))
    for folder in filter(os.path.isabs, names):
        if run.path.resolve().is_relative_to(folder):
            raise click.UsageError(
                "--output must lie outside the folder of images, or the run's own pictures become "
                f"a class. Received: --output '{run.path}' in '{folder}'"
            )
    return run


def with_data_there(settings: Settings, data_dir: Path | None) -> Settings:
    """Return the settings of a run to evaluate, whose data are read and never written.

    The folders of data sets are a part of the settings, which may be a stranger's.

    Args:
        settings: As they are in the run's folder.
        data_dir: The folder of the data sets, if the command names one; it may be written to.
    """
    of = {settings.data: settings.data_options, **settings.also}
    if data_dir is not None and all(map(os.path.isabs, of)):
        raise click.UsageError(f"--data-dir is for data sets, not for {settings.data!r}.")
    for name in of:
        if os.path.isabs(name):
            continue
        if data_dir is not None:
            of[name] = {**of[name], "data_dir": str(data_dir.resolve())}
        else:
            _check_there(name, of[name])
    return dataclasses.replace(
        settings,
        data_options=of[settings.data],
        also={name: of[name] for name in settings.also},
    )


def _check_there(name: str, options: dict[str, Any]) -> None:
    """Raise a `FileNotFoundError` if the folder that a run names has no such data."""
    folder = options.get("data_dir")
    source = NAMED[ALIASES.get(name, name)].source
    pattern = "glyphs-*.npz" if source is None else f"{source}*/*/dataset_info.json"
    if "folder" not in options and folder is not None and not any(Path(folder).glob(pattern)):
        raise FileNotFoundError(
            f"The run was trained on data in '{folder}', where there are none: say --data-dir, the "
            "folder that they are in or shall be downloaded to"
        )


def class_lists(values: dict[str, Any]) -> ClassLists | None:
    """Take the lists of classes out of the options of a command, and return them, if it has any.

    Args:
        values: The options by name; those of the lists are left out then.

    Raises:
        click.UsageError: If the data are no folder of images, or a list is missing.
    """
    folder: Path | None = values.pop("splits")
    files = {part: values.pop(f"{part}_classes") for part in SPLITS}
    given = {part: file for part, file in files.items() if file is not None}
    if folder is None and not given:
        return None
    options = ", ".join(f"--{part}-classes" for part in SPLITS)
    if not os.path.isabs(values["data"]):
        raise click.UsageError(
            f"--splits, {options} are for a folder of images, not for {values['data']!r}, whose "
            "classes have parts of their own."
        )
    if folder is not None and given:
        raise click.UsageError(f"--splits has all of {options}: choose one.")
    if folder is None and len(given) < len(files):
        raise click.UsageError(f"{options} go together: say all of them.")
    return ClassLists(files_of(folder) if folder is not None else given)


def loaded(
    settings: Settings, any_ways: bool, lists: ClassLists | None = None
) -> tuple[Settings, tuple[ClassDataset, ...]]:
    """Load the data and say what they are; have no more ways than classes, where none were said."""
    from tfmeta.run_data import check_ways, classes_of_sources, load_data

    say("Reading the data …")
    parts = load_data(settings, lists, click.echo)
    for name, part in zip(SPLITS, parts, strict=True):
        before = settings.classes and settings.classes[name]
        if lists is not None and before and before != [*part.class_names]:
            raise ValueError(
                f"The {name} classes must be the {len(before)} that there were when this was "
                f"started. Received: a list of {part.num_classes} others"
            )
    if not all(part.num_classes for part in parts[:2]):
        raise click.UsageError(
            f"{settings.data!r} has no classes to train on: it is to test on what was trained on "
            "others. `tfmeta datasets` lists the classes of each."
        )
    if any_ways:
        ways = min(settings.ways, *classes_of_sources(settings, parts[0]).values())
        settings = dataclasses.replace(settings, ways=ways)
    check_ways(settings, parts[0], settings.ways)
    if settings.fixed_ways and settings.validation_episodes:
        check_ways(settings, parts[1], settings.ways)
    for split, part in zip(SPLITS, parts, strict=True):
        size = f"{part.num_classes:6} classes {len(part):7} examples"
        click.echo(f"{split:11}{size}  {part.description}")
    return settings, parts


def have_tasks_at_once(algorithm: str) -> None:
    """Leave the cores to chunks of tasks, where there are such, in place of single operations."""
    import tensorflow as tf

    if LEARNERS[algorithm].inner_loop:
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
    folder: Path | None,
    image_size: int | None,
    grayscale: bool,
    invert: bool,
    skip_unreadable: bool,
    dtype: str | None = None,
    alpha: bool | None = None,
    pages: str | None = None,
    class_split: str | None = None,
    examples_per_class: int | None = None,
    network: str,
    filters: int | None,
    freeze: bool | None,
    given: tuple[tuple[str, str], ...],
    also: list[str] | None = None,
    **values: Any,
) -> Settings:
    """Make settings of the options, with the algorithm's defaults where nothing was said."""
    of_name: dict[str, Any] = {
        "data_dir": data_dir and str(data_dir.resolve()),
        "folder": folder and str(folder.resolve()),
        "preset": preset,
        "class_split": class_split,
        "examples_per_class": examples_per_class,
    }
    of_folder = {
        "image_size": image_size,
        "grayscale": grayscale,
        "invert": invert,
        "skip_unreadable": skip_unreadable,
        "dtype": dtype,
        "alpha": alpha,
        "pages": pages,
    }
    is_folder = os.path.isabs(data)
    reading = {"skip_unreadable": skip_unreadable, "pages": pages}
    further = _further(data, also or [], of_name["data_dir"], reading)
    # What the further ones have need not be for the first one.
    if is_folder and not all(map(os.path.isabs, further)):
        of_name["data_dir"] = None
    if not is_folder and any(map(os.path.isabs, further)):
        of_folder |= dict.fromkeys(reading)
    if not is_folder and resizable(data):
        of_name["image_size"] = of_folder.pop("image_size")
    chosen, other = (of_folder, of_name) if is_folder else (of_name, of_folder)
    for option in [option for option, value in other.items() if value]:
        kind = "a data set known by name" if is_folder else "a folder of images"
        raise click.UsageError(f"--{option.replace('_', '-')} is for {kind}, not for {data!r}.")
    if preset and data != "omniglot":
        raise click.UsageError(f"--preset is for omniglot, not for {data!r}.")
    _check_divided(data, class_split, examples_per_class)
    if also and preset and OMNIGLOT_PRESETS[preset]["rotations"] == "episode":
        raise click.UsageError(
            f"--preset {preset} turns the images of each episode at random, which is for omniglot "
            "alone and not for --also; vinyals has turned characters as classes of their own."
        )
    if values["downsample"] != "pool" and network != "conv4":
        raise click.UsageError(f"--downsample is for conv4, not for {network!r}.")
    of_file = os.path.isabs(network)
    if of_file and filters:
        raise click.UsageError(f"--filters is for a network made here, not for '{network}'.")
    if values["min_per_class"] > 1 and not any(map(os.path.isabs, [data, *further])):
        raise click.UsageError(f"--min-per-class is for a folder of images, not for {data!r}.")
    values |= {
        "network": network,
        "filters": None if of_file else filters or filters_of(network),
        "network_sha256": sha256(Path(network)) if of_file else None,
    }
    data_options = {OF_DATA.get(name, name): value for name, value in chosen.items() if value}
    if of_file and is_folder:
        load_package()
        from tfmeta import networks

        have_tasks_at_once(values["algorithm"])  # before TensorFlow does anything
        height, width, channels = networks.image_shape(networks.read(network), network)
        if height == width:
            data_options.setdefault("size", height)
        if channels == 1:
            data_options["grayscale"] = True
    algorithm = values["algorithm"]
    values |= learner_values(algorithm, values, given)
    defaults = {**LEARNERS[algorithm].defaults, "inner_learning_rate": INNER_RATE}
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    settings = Settings(data=data, data_options=data_options, also=further, **values)
    return dataclasses.replace(settings, freeze=frozen(settings, freeze))


def _check_divided(data: str, class_split: str | None, examples_per_class: int | None) -> None:
    """Raise a `click.UsageError` where a data set by name has no such split, or is read whole."""
    if os.path.isabs(data):
        return  # which has been refused
    splits = NAMED[ALIASES.get(data, data)].splits
    if class_split and class_split not in splits:
        known = f"has {', '.join(splits)}" if splits else "has none by name"
        raise click.UsageError(
            f"--class-split must be a split of the data set. Received: {class_split!r} for "
            f"{data!r}, which {known}."
        )
    if examples_per_class and not splits:
        raise click.UsageError(f"--examples-per-class is not for {data!r}, which is read whole.")


def _further(
    data: str, also: list[str], data_dir: str | None, reading: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the further data sets of --also, and how each is read.

    Args:
        data: The first data set.
        also: The further ones.
        data_dir: The folder of those known by name.
        reading: How folders are read.

    Raises:
        click.UsageError: If one has the images of another, or needs a folder of its own.
    """
    folders = [Path(name) for name in [data, *also] if os.path.isabs(name)]
    for name in also:
        if name == data:
            raise click.UsageError(f"--also is for further data sets. Received: {name!r} again.")
        if any(
            Path(name).is_relative_to(f) or f.is_relative_to(name)
            for f in folders
            if f != Path(name)
        ):
            raise click.UsageError(
                f"--also must be folders that lie in no other, for their images would be in both. "
                f"Received: {name!r}"
            )
    images: dict[str, str] = {}
    for name in [name for name in [data, *also] if not os.path.isabs(name)]:
        source = NAMED[ALIASES.get(name, name)].source
        if source is None:
            if name in also and name != "glyphs":
                raise click.UsageError(
                    f"--also reads {name!r} from no folder of its own: say the folder itself, or "
                    "have it first, with --folder."
                )
        elif source in images:
            raise click.UsageError(
                f"--also must be data sets of other images. Received: {name!r}, whose images are "
                f"those of {images[source]!r}: classes to train on would be classes to test on."
            )
        else:
            images[source] = name
    of_name = {"data_dir": data_dir} if data_dir else {}
    of_folder = {option: value for option, value in reading.items() if value}
    return {name: of_folder if os.path.isabs(name) else of_name for name in also}


def frozen(settings: Settings, asked: bool | None) -> bool:
    """Return whether the network stays as it is: of SimpleShot, where it was trained before.

    Raises:
        click.UsageError: If it is asked for of a network that was not trained.
    """
    if asked and not settings.trained_before:
        raise click.UsageError(
            "--freeze is for a network that was trained before: --pretrain-epochs trains it, and "
            "--network takes the file of one."
        )
    if asked is None and settings.algorithm == "simple-shot" and settings.trained_before:
        say("The network stays as it was trained; with --no-freeze it is trained further.")
        return True
    return bool(asked)
