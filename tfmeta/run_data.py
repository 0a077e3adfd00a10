"""The data of a run, by its settings."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tfmeta.class_lists import ClassLists
from tfmeta.data import ClassDataset, join, load
from tfmeta.data.class_sizes import left_out, small_classes
from tfmeta.data.same_shape import resize_parts
from tfmeta.runs import SPLITS, Settings

# How much of a folder of images each part gets.
FRACTIONS = (0.6, 0.2, 0.2)
SMALLEST_FOLDER = 9
"""Of fewer classes, validation or test get a single one."""


def load_data(
    settings: Settings,
    lists: ClassLists | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[ClassDataset, ...]:
    """Return the training, validation and test classes.

    Where the run has several sources, they are joined, each a group, with the images of all in the
    shape of the first one's.

    Args:
        settings: The settings of the run.
        lists: The classes of each part of a folder, where somebody has written them down; without,
            they are those of the settings, or shared out at random.
        tell: Is told which classes of a folder are left out.

    Raises:
        ValueError: If the lists name a class twice, or one that the folder has not, or no class of
            a part has `min_per_class` images; or one of several sources has no images of uint8, or
            too few classes.
    """
    if not settings.also:
        return _load(settings, lists, tell)
    parts = _load(source(settings, settings.data), lists, tell)
    shape = parts[0].example_shape
    images = preparation(settings, shape)
    sources = {settings.data: parts}
    for name in settings.also:
        try:
            sources[name] = _load(source(settings, name, images), None, tell)
        except ValueError as error:
            raise ValueError(f"In {name!r}: {error}") from error
    for name, of in sources.items():
        if not all(part.num_classes for part in of):
            raise ValueError(
                "Each data set must have classes to train on, to validate with and to test on. "
                f"Received: {name!r}, which lacks some; `tfmeta datasets` lists them"
            )
        try:
            sources[name] = resize_parts(of, shape)
        except ValueError as error:
            raise ValueError(f"Several data sets are brought to one shape: {error}") from error
    called = names_of(sources)
    by_part = zip(*sources.values(), strict=True)
    return tuple(join(dict(zip(called.values(), each, strict=True))) for each in by_part)


def names_of(sources: Iterable[str]) -> dict[str, str]:
    """Return what each source is called: its name, or of folders the last part of the path.

    Folders of one name are told apart by their paths.
    """
    short = {name: Path(name).name if os.path.isabs(name) else name for name in sources}
    count = Counter(short.values())
    return {name: each if count[each] == 1 else name for name, each in short.items()}


def source(settings: Settings, name: str, images: Mapping[str, Any] | None = None) -> Settings:
    """Return settings that load one of the sources of a run by itself.

    Args:
        settings: The run's.
        name: Its `data`, or one of `also`.
        images: How images of folders in `also` are read; those of the settings by default.
    """
    classes = settings.classes
    if settings.also and classes is not None:
        called = names_of([settings.data, *settings.also])[name] + "/"
        classes = {
            split: [each.removeprefix(called) for each in of if each.startswith(called)]
            for split, of in classes.items()
        }
    if name == settings.data:
        options = settings.data_options
    else:
        options = dict(settings.also[name])
        if os.path.isabs(name):
            images = settings.images if images is None else images
            options |= {**images, "size": tuple(images["size"])}
    return dataclasses.replace(
        settings,
        data=name,
        data_options=options,
        also={},
        classes=classes if os.path.isabs(name) else None,
    )


def _load(
    settings: Settings, lists: ClassLists | None, tell: Callable[[str], None]
) -> tuple[ClassDataset, ...]:
    """Return the parts of one source."""
    if not settings.is_folder:
        named = load(settings.data, **settings.data_options)
        if not named[0].example_shape:
            raise ValueError(
                f"`data` must be images: the command makes networks for no others. Received: "
                f"{settings.data!r}, which are texts; tfmeta.data.load reads them"
            )
        return named
    images = ClassDataset.from_directory(settings.data, **settings.data_options)
    if lists is not None:
        chosen = lists.checked(images.class_names)
        if others := sorted({*images.class_names}.difference(*chosen.values())):
            tell(f"Left out {_classes(others)} in no list: {', '.join(others)}")
        enough = {*large_enough(images, settings.min_per_class, tell)}
        kept = {part: [name for name in chosen[part] if name in enough] for part in SPLITS}
        parts = tuple(_selected(images, kept[part], part, settings) for part in SPLITS)
    elif settings.classes is None:
        enough_of = large_enough(images, settings.min_per_class, tell)
        images = _selected(images, enough_of, "training", settings)
        parts = images.split(*FRACTIONS, seed=settings.seed)
    else:
        parts = tuple(images.select(settings.classes[split]) for split in SPLITS)
    for split, part in zip(SPLITS, parts, strict=True):
        part.description += f" ({split})"
    return parts


def large_enough(images: ClassDataset, least: int, tell: Callable[[str], None]) -> list[str]:
    """Return the names of the classes with so many examples, and tell which ones have fewer."""
    small = small_classes(images.class_names, images.class_offsets, least)
    if small:
        tell(left_out(small, least, "images"))
    without = {name for name, _ in small}
    return [name for name in images.class_names if name not in without]


def _classes(names: list[str]) -> str:
    return f"{len(names)} class{'es' * (len(names) > 1)}"


def _selected(
    images: ClassDataset, names: list[str], part: str, settings: Settings
) -> ClassDataset:
    if not names:
        raise ValueError(
            f"`min_per_class` must leave a class for {part}. "
            f"Received: min_per_class={settings.min_per_class} for {images.description}"
        )
    return images.select(names)


def classes_of_sources(settings: Settings, part: ClassDataset) -> dict[str, int]:
    """Return how many classes each source of a run has in a part, by what the source is called.

    Args:
        settings: The run's.
        part: One of its parts.
    """
    if not settings.also:
        return {part.description: part.num_classes}
    return dict(Counter(part.groups or ()))


def check_ways(settings: Settings, part: ClassDataset, ways: int) -> None:
    """Raise unless episodes can be of each source of a run.

    Args:
        settings: The run's.
        part: One of its parts.
        ways: Classes of an episode.

    Raises:
        ValueError: If a source has fewer classes: no episode would be of it.
    """
    count = classes_of_sources(settings, part)
    small = min(count, key=count.__getitem__)
    if settings.also and count[small] < ways:
        raise ValueError(
            f"`ways` must be at most {count[small]}, for episodes are of each data set, and "
            f"{small!r} has no more classes in {part.description}. Received: ways={ways}"
        )


def preparation(settings: Settings, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return how other images are made like those of a run, of its first source.

    Args:
        settings: The run's.
        shape: Of its images.
    """
    height, width, channels = shape
    images = {
        "size": [height, width],
        "grayscale": channels < 3,
        # The drawings known by name are bright ink, and what is photographed or drawn is dark.
        "invert": settings.data_options.get("invert", channels == 1 and not settings.is_folder),
    }
    return images | {k: v for k, v in settings.data_options.items() if k in ("dtype", "alpha")}


def settled(settings: Settings, parts: tuple[ClassDataset, ...]) -> Settings:
    """Return the settings with what only the data can tell: `images`, and `classes` of folders."""
    classes = {name: [*part.class_names] for name, part in zip(SPLITS, parts, strict=True)}
    folders = settings.is_folder or any(map(os.path.isabs, settings.also))
    return dataclasses.replace(
        settings,
        images=preparation(settings, parts[0].example_shape),
        classes=classes if folders else None,
    )
