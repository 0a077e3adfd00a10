"""Data sets by name, from TensorFlow Datasets or a folder, in the parts of a published split."""

from __future__ import annotations

import collections
import copy
import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmeta.checks import check_count, check_size, did_you_mean
from tfmeta.data.caching import Source, cached, folder_source, tfds_source
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.class_splits import (
    PARTS,
    ClassLists,
    check_split,
    class_lists,
    published_names,
    some,
)
from tfmeta.data.places import default_cache
from tfmeta.data.recordings import of_sixteen_bits, recordings
from tfmeta.named_data import NAMED, Named
from tfmeta.types import Array

Parts = tuple[ClassDataset, ClassDataset, ClassDataset]
Change = Callable[[Array], Array]
Path_ = str | os.PathLike[str] | None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is read of a data set, and how: see `load_named` for the fields."""

    name: str
    data_dir: Path_ = None
    folder: Path_ = None
    split: str | None = None
    size: int | tuple[int, int] | None = None
    examples_per_class: int | None = None
    cache_dir: Path_ = None

    @property
    def named(self) -> Named:
        """What is known of the data set."""
        return NAMED[self.name]


OPTIONS = tuple(field.name for field in dataclasses.fields(Wanted))[2:]


def load_named(name: str, data_dir: Path_ = None, **options: Any) -> Parts:
    """Reads a data set that is images, texts or sounds of classes in a published split.

    The examples are decoded once and cached; the next call maps the file into memory. Texts are
    read anew.

    Args:
        name: See `tfmeta.named_data.NAMED`.
        data_dir: As in `tfmeta.data.load`.
        **options:
            folder: A folder to read instead, with one sub-folder a class, by the same split. Of
                `clinc150` that of `data_full.json`; of `spoken_digit` the files are
                sounds, as for `audio_from_directory`.
            split: The division into classes, where there are several: `"closer_look"` or
                `"meta_dataset"` of `cub`.
            size: Side of the images, or `(height, width)`.
            examples_per_class: So many examples of a class at most, the first ones.
            cache_dir: Where decoded examples are kept; by default the folder in the environment
                variable `TFMETA_CACHE`, or `~/.cache/tfmeta`.

    Returns:
        The classes for training, validation and testing. A part may have none: it is a
        `ClassDataset` of no classes, and an error where episodes are drawn from it.

    Raises:
        FileNotFoundError: The data are not there and cannot be downloaded.
        TypeError: Unknown option.
        ValueError: An option of another value, or classes of the split are missing.
    """
    wanted = wanted_of(name, data_dir, options)
    lists = class_lists(name, str(wanted.split))
    images = read(wanted, lists)
    side = "x".join(map(str, images.example_shape[:2])) if wanted.named.image_size else ""
    return divided(images, lists, f"{name}[{', '.join(filter(None, (wanted.split, side)))}]")


def wanted_of(name: str, data_dir: Path_, options: Mapping[str, Any]) -> Wanted:
    """Return what is asked for, with the defaults of the data set.

    Args:
        name: The data set.
        data_dir: As in `load_named`.
        options: Those of `load_named`.

    Raises:
        FileNotFoundError: If there is no such folder.
        TypeError: If an option is unknown, or of another type.
        ValueError: If one has another value.
    """
    for option in options:
        if option not in OPTIONS:
            raise TypeError(
                f"{name} has the options {', '.join(OPTIONS)}. "
                f"Received: {option}={options[option]!r}.{did_you_mean(option, OPTIONS)}"
            )
    wanted = Wanted(name, data_dir, **options)
    named = wanted.named
    split = check_split(name, wanted.split, named.splits)
    size, most = wanted.size, wanted.examples_per_class
    if named.image_size is None:
        if size is not None:
            raise ValueError(f"`size` must be None: {name} are no images. Received: size={size!r}")
    else:
        size = named.image_size if size is None else size
        check_size(size)
    most = named.examples_per_class if most is None else check_count("examples_per_class", most)
    if wanted.folder is None and named.source is None:
        raise ValueError(
            f"`folder` must be given for {name!r}, of the command --folder: a folder of your own "
            "with one sub-folder of images for each class. Received: folder=None"
        )
    if wanted.folder is not None and not Path(wanted.folder).is_dir():
        raise FileNotFoundError(
            f"`folder` must be an existing folder. Received: folder={os.fspath(wanted.folder)!r}"
        )
    return dataclasses.replace(wanted, split=split, size=size, examples_per_class=most)


def read(wanted: Wanted, lists: ClassLists, change: Change | None = None) -> ClassDataset:
    """Return the examples of all classes of a split, called as the split calls them.

    Args:
        wanted: What is read, checked.
        lists: The classes of each part.
        change: Is done to each example of TensorFlow Datasets.
    """
    if wanted.name == "clinc150":
        texts = _utterances(wanted)
        return _renamed(texts, lists, _where(wanted))
    if wanted.folder is None:
        made = _of_tfds(wanted, sum(map(len, lists.values())), change)
    elif wanted.name == "spoken_digit":
        made = recordings(wanted.folder, lambda labels: _kept(labels, lists, wanted))
    else:
        made = folder_source(
            wanted.folder,
            {"size": wanted.size, "grayscale": wanted.name in _GRAY},
            lambda labels: _kept(labels, lists, wanted),
        )
    made.facts["options"] |= {"split": wanted.split, "most": wanted.examples_per_class}
    key = json.dumps([made.facts["source"], made.facts["options"]], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    place = Path(wanted.cache_dir or default_cache()) / "data" / f"{wanted.name}-{digest}"
    # What has changed since is made anew, for nobody else writes there.
    return _renamed(cached(made, place, overwrite=True, verbose=True), lists, _where(wanted))


_GRAY = ("quickdraw", "omniglot_emnist")
_OF_IMAGENET = ("mini_imagenet", "tiered_imagenet")


def divided(images: ClassDataset, lists: ClassLists, description: str) -> Parts:
    """Return the parts of a split, those without classes as data sets of no classes."""
    parts = [images.select(lists[part]) if lists[part] else _empty(images) for part in PARTS]
    for dataset, part in zip(parts, PARTS, strict=True):
        none = "" if dataset.num_classes else ": it has no classes for that"
        dataset.description = f"{description} {part}{none}"
    train, validation, test = parts
    return train, validation, test


def _empty(images: ClassDataset) -> ClassDataset:
    """A data set of no classes, whose examples have a shape all the same."""
    empty = copy.copy(images)
    empty.class_names, empty.groups = (), None
    empty.class_indices, empty.class_offsets = np.zeros(0, np.int64), np.zeros(1, np.int64)
    empty.quarter_turns = np.zeros(0, np.uint8)
    return empty


def _where(wanted: Wanted) -> str:
    if wanted.folder is None:
        return repr(wanted.name)
    return f"`folder` of {wanted.name!r}, '{os.fspath(wanted.folder)}',"


def _renamed(images: ClassDataset, lists: ClassLists, where: str) -> ClassDataset:
    """The classes of a split, called as the split calls them."""
    names = published_names(images.class_names, lists, where)
    chosen = images.select(names)
    chosen.class_names = tuple(names.values())
    return chosen


def _kept(labels: Sequence[str], lists: ClassLists, wanted: Wanted) -> list[int]:
    """The positions of the first examples of each class of the split."""
    names = published_names(sorted(set(labels)), lists, _where(wanted))
    others = sorted(set(labels).difference(names))
    # Most of ImageNet's classes are in neither of its parts known by name.
    if others and wanted.name not in _OF_IMAGENET:
        message = f"Left out of {_where(wanted)} what the split does not know: {some(others)}"
        warnings.warn(message, stacklevel=2)
    return list(_first(labels, names, wanted.examples_per_class))


def _first(labels: Sequence[str], names: dict[str, str], most: int | None) -> Iterator[int]:
    counts: collections.Counter[str] = collections.Counter()
    for i, label in enumerate(labels):
        if label in names and (most is None or counts[label] < most):
            counts[label] += 1
            yield i


def _of_tfds(wanted: Wanted, classes: int, change: Change | None) -> Source:
    named = wanted.named
    options = {"data_dir": wanted.data_dir, "label_key": named.label_key, "size": wanted.size}
    if wanted.name == "spoken_digit":
        options["image_key"], change = "audio", of_sixteen_bits
    made = tfds_source(str(named.source), named.parts, options)
    most = wanted.examples_per_class

    def examples(
        start: int, lost: collections.Counter[str]
    ) -> Iterator[tuple[int, Array | None, Any]]:
        # With a bound, positions are those among the examples that are kept.
        counts: collections.Counter[Any] = collections.Counter()
        position = 0 if most else start
        for _, example, label in made.examples(position, lost):
            if most:
                if counts[label[0]] >= most:
                    continue
                counts[label[0]] += 1
            if position >= start:
                changed = example if example is None or change is None else change(example)
                yield position, changed, label
            position += 1
            if most and position == most * classes:
                return

    number = min(made.number, most * classes) if most else made.number
    return made._replace(examples=examples, number=number)


def _utterances(wanted: Wanted) -> ClassDataset:
    """The texts of CLINC150 without those of no intent."""
    if wanted.folder is None:
        named = wanted.named
        texts = ClassDataset.from_tfds(
            str(named.source),
            named.parts,
            wanted.data_dir,
            "text",
            named.label_key,
        )
    else:
        file = Path(wanted.folder) / "data_full.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"`folder` must hold the file data_full.json of clinc150. Received: folder="
                f"{os.fspath(wanted.folder)!r}"
            )
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            pairs = [(text, of) for part in ("train", "val", "test") for text, of in data[part]]
            texts = ClassDataset([text for text, _ in pairs], [intent for _, intent in pairs])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{file} must be the file of clinc150, pairs of text and intent in 'train', 'val' "
                f"and 'test'. Received: {type(error).__name__}: {error}"
            ) from error
    if wanted.examples_per_class is None:
        return texts
    labels = np.repeat(np.arange(texts.num_classes), np.diff(texts.class_offsets))
    kept = [
        *_first(
            [texts.class_names[c] for c in labels],
            dict.fromkeys(texts.class_names, ""),
            wanted.examples_per_class,
        )
    ]
    return ClassDataset(
        [str(texts.examples[i]) for i in texts.class_indices[kept]], labels[kept], texts.class_names
    )
