"""Labelled examples from TensorFlow Datasets and from folders of images."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfmeta.data.downloads import announce, refuse_half_finished
from tfmeta.data.images import (
    FORMATS,
    SUFFIXES,
    check_image_options,
    different_sizes,
    in_words,
    prepare,
    read_images,
    warn_unreadable,
)
from tfmeta.data.network import any_reachable, hosts_of
from tfmeta.data.pages import Page, each_page
from tfmeta.types import Array


class Labelled(NamedTuple):
    """The first arguments of `ClassDataset`."""

    examples: Array | list[str]
    labels: Array | list[str]
    class_names: list[str] | None
    groups: list[str] | None


def read_directory(
    path: str | os.PathLike[str],
    size: int | tuple[int, int] | None,
    *,
    grayscale: bool,
    invert: bool,
    resample: str,
    dtype: str | None,
    alpha: bool | None,
    pages: str | None,
    skip_unreadable: bool,
) -> Labelled:
    """Reads a folder of images, a sub-folder a class. See `ClassDataset.from_directory`."""
    check_image_options(size, resample, dtype, alpha, pages)
    found, labels, unreadable = list_files(path, skip_unreadable)
    warn_unreadable(unreadable, stacklevel=4, what="folder(s)")
    files: Sequence[str | Page] = found
    if pages == "all":
        files, labels = each_page(found, labels, FORMATS)
    pixels, kept = read_images(
        files,
        of=f" of {in_words(path)}",
        size=size,
        grayscale=grayscale,
        invert=invert,
        resample=resample,
        dtype=dtype,
        alpha=alpha,
        pages=pages,
        skip_unreadable=skip_unreadable,
    )
    labels = [labels[i] for i in kept]
    return Labelled(pixels, labels, *classes_and_groups(path, labels))


def list_files(
    path: str | os.PathLike[str],
    skip_unreadable: bool = False,
    *,
    suffixes: tuple[str, ...] = SUFFIXES,
    what: str = "images",
) -> tuple[list[str], list[str], list[str]]:
    """Returns the files below a folder, the class of each, and what cannot be looked into.

    Args:
        path: The folder.
        skip_unreadable: Whether to leave out folders that cannot be read and links that lead
            nowhere, which are returned last, instead of raising an error.
        suffixes: How the names of files end, in small letters.
        what: What the files are, for messages.

    Returns:
        Files in sorted order, their classes, and what was left out.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"`path` must be an existing folder. Received: path={str(path)!r}")
    if not root.is_dir():
        raise NotADirectoryError(f"`path` must be a folder. Received: path={str(path)!r}, a file")
    files: list[str] = []
    labels: list[str] = []
    unreadable: list[str] = []
    seen = set()

    def refuse(name: str, reason: str) -> None:
        if not skip_unreadable:
            raise ValueError(
                f"Not a readable folder of {what}: {name!r} ({reason}). Leave out such folders "
                "with skip_unreadable=True (--skip-unreadable)."
            )
        unreadable.append(name)

    def failed(error: OSError) -> None:
        if error.filename is None or os.fspath(error.filename) == os.fspath(root):
            raise error
        refuse(os.fspath(error.filename), error.strerror or str(error))

    for folder, subfolders, names in os.walk(root, onerror=failed, followlinks=True):
        # Links can lead round in a circle, or to a class that is there by itself.
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        found = sorted(name for name in names if _is_one(name, suffixes))
        for name in sorted(set(names) - set(found)):
            # It may have led to a folder that is a class.
            if not name.startswith(".") and not os.path.exists(os.path.join(folder, name)):
                refuse(os.path.join(folder, name), "a link that leads nowhere")
        if relative.parts and found:
            files += [os.path.join(folder, name) for name in found]
            labels += [_class_name(folder, relative)] * len(found)
    if not files:
        raise ValueError(
            f"`path` must hold one sub-folder of {what} for each class; no {what} "
            f"({', '.join(suffixes)}) were found in sub-folders. Received: path={str(path)!r}"
        )
    return files, labels, unreadable


def _class_name(folder: str, relative: Path) -> str:
    """Return the name of a folder's class, which goes into texts of all kinds."""
    name = relative.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            "The folder of a class must have a name in UTF-8, for it is the name of the class. "
            f"Received: {folder!r}"
        ) from None
    return name


def classes_and_groups(
    path: str | os.PathLike[str], labels: list[str], what: str = "images"
) -> tuple[list[str], list[str] | None]:
    """Returns the names of the classes, which are paths, and what they lie in, if in anything."""
    classes = sorted(set(labels))
    if len(classes) == 1:
        raise ValueError(
            f"`path` must hold at least two classes, each a sub-folder of {what}. "
            f"Received: path={str(path)!r} with the one class {classes[0]!r}"
        )
    groups = [name.rpartition("/")[0] for name in classes]
    return classes, groups if any(groups) else None


def read_tfds(
    name: str, split: str, data_dir: str | os.PathLike[str] | None, **options: Any
) -> Labelled:
    """Reads a data set of TensorFlow Datasets. See `ClassDataset.from_tfds`."""
    records = open_tfds(name, split, data_dir, **options)
    batches = list(records.batches(0))
    shapes = sorted({batch[0].shape[1:] for batch in batches})
    if len(shapes) > 1:
        raise different_sizes(*(f"an image of shape {shape}" for shape in shapes[:2]))
    images, labels, *groups = map(np.concatenate, zip(*batches, strict=True))
    examples: Array | list[str] = images
    if images.dtype == object:
        examples = [text.decode() for text in images]
    if labels.dtype == object:
        labels = np.array([label.decode() for label in labels])
    return Labelled(examples, labels, *records.names(labels, *groups))


class Records(NamedTuple):
    """What is read of TensorFlow Datasets.

    Attributes:
        name: With configuration and version.
        folder: Where its files are.
        number: How many examples there are.
        batches: Gives, from an example on, columns of images, labels and, where asked for, groups.
        names: Gives the names of the classes of all labels and groups, and those of the groups.
    """

    name: str
    folder: str
    number: int
    batches: Callable[[int], Iterator[list[Array]]]
    names: Callable[..., tuple[list[str], list[str] | None]]


def open_tfds(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    image_key: str,
    label_key: str,
    group_key: str | None,
    download: bool,
    **image_options: Any,
) -> Records:
    """Opens a data set of TensorFlow Datasets. See `ClassDataset.from_tfds`."""
    # Slow to import, and of no use to most programs.
    import tensorflow as tf

    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{name!r} is read through TensorFlow Datasets: pip install tensorflow-datasets. "
            f"Received: {error}"
        ) from error
    if not hasattr(tfds, "builder"):
        # It prints the reason of its failure, and lets itself be imported all the same.
        raise ImportError(
            "tensorflow_datasets could not be imported whole; its own message is above. With "
            "TensorFlow 2.18 and 2.19, whose protobuf is older, `pip install "
            "'tensorflow-metadata<1.18'` helps."
        )
    check_image_options(image_options["size"], image_options["resample"])
    builder = tfds.builder(name, data_dir=data_dir)
    if download:
        _download(builder)
    features = builder.info.features
    named = (("image_key", image_key), ("label_key", label_key), ("group_key", group_key))
    for argument, key in named:
        if key is not None and key not in features:
            raise ValueError(
                f"`{argument}` must be one of the features {sorted(features)} of {name!r}. "
                f"Received: {argument}={key!r}"
            )
    feature = features[image_key]
    is_image = isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
    keys = [key for key in (image_key, label_key, group_key) if key is not None]

    def chosen(record: dict[str, Any]) -> dict[str, Any]:
        columns = {key: record[key] for key in keys}
        if is_image:
            make = functools.partial(prepare, **image_options)
            columns[image_key] = tf.numpy_function(make, [record[image_key]], tf.uint8)
        return columns

    records = builder.as_dataset(
        split=split,
        # One file after the other; the decoded images are read once, so they need no cache.
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    number = int(records.cardinality())
    if number == 0:
        raise ValueError(f"`split` must hold examples. Received: split={split!r} of {name!r}")

    def batches(start: int) -> Iterator[list[Array]]:
        # Images whose size is not known beforehand cannot be stacked before they are resized.
        read = records.skip(start).batch(1 if None in feature.shape else 128)
        for batch in read.map(chosen, num_parallel_calls=tf.data.AUTOTUNE).as_numpy_iterator():
            yield [batch[key] for key in keys]

    def names(labels: Array, groups: Array | None = None) -> tuple[list[str], list[str] | None]:
        classes, first = np.unique(labels, return_index=True)
        of = None if groups is None else _spell(features[group_key], groups[first])
        return _spell(features[label_key], classes), of

    return Records(builder.info.full_name, os.fspath(builder.data_dir), number, batches, names)


def _is_one(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not name.startswith(".")


def _spell(feature: Any, values: Array) -> list[str]:
    """The names of class numbers, or texts as they are."""
    if hasattr(feature, "int2str"):
        return [feature.int2str(int(value)) for value in values]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _download(builder: Any) -> None:
    """Downloads and prepares a data set that `data_dir` does not hold yet."""
    if builder.is_prepared():
        return
    refuse_half_finished(builder)
    # Each of dozens of retries would be logged, in front of the error that says what to do. What is
    # downloaded and to where is printed by TensorFlow Datasets itself.
    retries = logging.getLogger("urllib3.connectionpool")
    level = retries.level
    retries.setLevel(logging.ERROR)
    try:
        # Without a network each of many files would be asked for dozens of times, for minutes.
        if not any_reachable(hosts := hosts_of(builder.url_infos or ())):
            raise ConnectionError(f"there is no network, or no way to {', '.join(hosts)}")
        announce(builder)
        builder.download_and_prepare()
    # A download fails in many ways: no network, a proxy, a moved file, a missing package, ...
    except Exception as error:
        raise FileNotFoundError(
            f"TensorFlow Datasets holds no prepared {builder.name!r} in {builder.data_dir!r} and "
            f"could not download it ({type(error).__name__}: {error}). Pass as `data_dir`, of the "
            "command --data-dir, a folder that holds it already, prepared on a machine with a "
            'network, or use tfmeta.data.load("glyphs"), which needs no download.'
        ) from error
    finally:
        retries.setLevel(level)
