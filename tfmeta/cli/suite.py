"""`tfmeta evaluate --suite`: the model of a run on several data sets."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfmeta.runs import SPLITS, Settings
from tfmeta.saying import say

if TYPE_CHECKING:
    from tfmeta.data import ClassDataset
    from tfmeta.suite import Suite


def suite_of(
    settings: Settings,
    learner: Any,
    data_sets: list[str],
    data_dir: Path | None,
    *,
    split: str,
    episodes: int,
    encoder: Path | None,
    **episode: Any,
) -> Suite:
    """Score the learner of a run on several data sets, in the shape of its own.

    Args:
        settings: The run's.
        learner: The run's.
        data_sets: Names and folders.
        data_dir: The folder of the data sets known by name.
        split: Which part of each data set; of a folder that the run was not trained on, all of it.
        episodes: How many of each.
        encoder: A file of a frozen encoder, whose class means are another method.
        **episode: Ways, shots, queries and seed, as in `training.evaluation_sampler`.
    """
    from tfmeta import training
    from tfmeta.algorithms import SimpleShot
    from tfmeta.data import resize
    from tfmeta.networks import image_shape, read
    from tfmeta.suite import evaluate_suite

    height, width = settings.images["size"]
    shape = (height, width, 1 if settings.images["grayscale"] else 3)
    learners = {settings.algorithm: learner}
    if encoder is not None:
        frozen = read(encoder)
        if image_shape(frozen, str(encoder)) != shape:
            raise ValueError(
                f"--encoder must take the images of the run, {shape}. Received: '{encoder}', which "
                f"takes {image_shape(frozen, str(encoder))}"
            )
        learners[f"nearest centroid on {encoder.name}"] = SimpleShot(frozen, centre=False)
    say("Reading the data …")
    samplers = {}
    for name in data_sets:
        of_run = _with_data_set(settings, name, data_dir)
        part = resize(_part(of_run, own=name == settings.data, split=split), shape)
        click.echo(f"{part.description}, {part.num_classes} classes")
        short = Path(name).name if os.path.isabs(name) else name
        samplers[short] = training.evaluation_sampler(of_run, part, **episode)
    say(f"Scoring {episodes} episodes of each …")
    return evaluate_suite(learners, samplers, episodes)


def write(suite: Suite, file: Path, facts: dict[str, Any]) -> None:
    """Write the figures of a suite as JSON."""
    from tfmeta.files import replacing

    with replacing(file) as scratch:
        scratch.write_text(json.dumps({**facts, "data_sets": suite.as_dict()}, indent=1) + "\n")


def _with_data_set(settings: Settings, data: str, data_dir: Path | None) -> Settings:
    """Return settings that load a data set; the run's own as they are in the run."""
    if data == settings.data and (data_dir is None or settings.is_folder):
        return settings
    if os.path.isabs(data):
        options = {**settings.images, "size": tuple(settings.images["size"])}
        return dataclasses.replace(settings, data=data, data_options=options, classes=None)
    options = dict(settings.data_options) if data == settings.data else {}
    of_run = None if settings.is_folder else settings.data_options.get("data_dir")
    options["data_dir"] = of_run if data_dir is None else str(data_dir.resolve())
    return dataclasses.replace(settings, data=data, data_options=options, classes=None)


def _part(settings: Settings, *, own: bool, split: str) -> ClassDataset:
    """Return a part of a data set; of a folder that was not trained on, all of it."""
    from tfmeta import training
    from tfmeta.data import ClassDataset

    if settings.is_folder and not own:
        return ClassDataset.from_directory(settings.data, **settings.data_options)
    return training.load_data(settings, tell=click.echo)[SPLITS.index(split)]
