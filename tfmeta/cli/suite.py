"""`tfmeta evaluate --suite`: the model of a run on several data sets."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfmeta.cli.settings import with_data_there
from tfmeta.named_data import ALIASES, NAMED
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
    from tfmeta.run_data import names_of
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
        learners[f"nearest centroid on {encoder.name}"] = SimpleShot(
            frozen, centre=False, normalize=False
        )
    say("Reading the data …")
    samplers = {}
    called = names_of(data_sets)
    own = (settings.data, *settings.also)
    for name in data_sets:
        of_run = _with_data_set(settings, name, data_dir)
        part = resize(_part(of_run, own=name in own, split=split), shape)
        click.echo(f"{part.description}, {part.num_classes} classes")
        _warn_if_trained_on(settings, name, part, data_dir)
        samplers[called[name]] = training.evaluation_sampler(of_run, part, **episode)
    say(f"Scoring {episodes} episodes of each …")
    return evaluate_suite(learners, samplers, episodes)


def write(suite: Suite, file: Path, facts: dict[str, Any]) -> None:
    """Write the figures of a suite as JSON."""
    from tfmeta.files import replacing

    with replacing(file) as scratch:
        scratch.write_text(json.dumps({**facts, "data_sets": suite.as_dict()}, indent=1) + "\n")


def _with_data_set(settings: Settings, data: str, data_dir: Path | None) -> Settings:
    """Return settings that load a data set; the run's own as they are in the run."""
    from tfmeta.run_data import source

    options = {"data_dir": settings.data_options.get("data_dir")}
    if data not in (settings.data, *settings.also):
        # Letters are drawn, and need no folder.
        there = {} if os.path.isabs(data) or data == "glyphs" or settings.is_folder else options
        settings = dataclasses.replace(settings, classes=None, also={data: there})
    of = source(settings, data)
    # The run may be a stranger's: what it names is read and never written.
    return of if of.is_folder else with_data_there(of, data_dir)


def _warn_if_trained_on(
    settings: Settings, data: str, part: ClassDataset, data_dir: Path | None
) -> None:
    """Say which classes of another data set, of the same images, the run was trained on."""
    from tfmeta.data.class_splits import some
    from tfmeta.run_data import load_data

    other = NAMED.get(ALIASES.get(data, data))
    for own in (settings.data, *settings.also):
        of_run = NAMED.get(ALIASES.get(own, own))
        if data == own or of_run is None or other is None or of_run.source is None:
            continue
        if of_run.source == other.source:
            seen = load_data(_with_data_set(settings, own, data_dir))[0]
            if same := sorted({*seen.class_names}.intersection(part.class_names)):
                say(
                    f"Warning: the run was trained on {len(same)} of the {part.num_classes} "
                    f"classes of {data}, which has the same images as {own}: {some(same)}"
                )


def _part(settings: Settings, *, own: bool, split: str) -> ClassDataset:
    """Return a part of a data set; of a folder that was not trained on, all of it."""
    from tfmeta.data import ClassDataset
    from tfmeta.run_data import load_data

    if settings.is_folder and not own:
        return ClassDataset.from_directory(settings.data, **settings.data_options)
    return load_data(settings, tell=click.echo)[SPLITS.index(split)]
