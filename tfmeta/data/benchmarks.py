"""Named benchmarks, split into classes for training, validation and testing as published."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Any

from tfmeta.checks import check_count, did_you_mean
from tfmeta.choices import BENCHMARKS as BENCHMARKS
from tfmeta.choices import OMNIGLOT_PRESETS
from tfmeta.data import splits
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.class_splits import PARTS, class_lists
from tfmeta.data.glyphs import glyphs as read_glyphs
from tfmeta.data.named import Parts, divided, load_named, read, wanted_of
from tfmeta.named_data import ALIASES

_CHARACTERS = 1623
_OMNIGLOT_CHOICES: dict[str, tuple[Any, ...]] = {
    "split": ("vinyals", "vinyals_final", "random", "background"),
    "rotations": ("classes", "episode", None),
    "ink": ("one", "zero"),
    "resize": ("lanczos", "area", "bilinear"),
}


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> tuple[ClassDataset, ClassDataset, ClassDataset]:
    """Loads a data set by name, in the parts of a published split.

    Before anything is downloaded, its licence and size are printed.

    Args:
        name: One of `tfmeta.data.BENCHMARKS`, such as `"omniglot"` or `"cub"`; what each holds is
            listed by `tfmeta datasets`.
        data_dir: The folder of TensorFlow Datasets, to which missing data are downloaded; its own
            default when `None`. For `"glyphs"`, which are drawn, the folder to keep them in.
        folder: A folder to read instead, with one sub-folder for each class, which the same split
            divides by the names of the classes. Case, blanks, hyphens, underscores and what is in
            brackets do not count, nor does a number in front (`001.`).
        **options: How `"omniglot"` is prepared; see `tfmeta.data.benchmarks.omniglot`. Of all
            others but `"glyphs"` those of `tfmeta.data.named.load_named`: `split`, `size`,
            `examples_per_class`, `cache_dir`.

    Returns:
        The classes for training, for validation and for testing. Of data sets that are only to be
        tested on, such as `"eurosat"`, the first two have no classes, and an `EpisodeSampler` of
        them is an error.

    Raises:
        FileExistsError: A preparation was interrupted, and its folder is in the way.
        FileNotFoundError: The data are not in `data_dir` and cannot be downloaded.
        TypeError: Unknown option.
        ValueError: Unknown name, an option of another value, or a folder that lacks classes of the
            split, which are named.

    Example:

    ```python
    train, validation, test = tfmeta.data.load("omniglot", preset="maml")
    train, validation, test = tfmeta.data.load("cub", split="meta_dataset", size=84)
    ```
    """
    if name not in _LOADERS:
        raise ValueError(
            f"`name` must be one of {', '.join(map(repr, BENCHMARKS))}. "
            f"Received: name={name!r}.{did_you_mean(name, BENCHMARKS)}"
        )
    if folder is not None:
        options["folder"] = folder
    return _LOADERS[name](data_dir, **options)


def omniglot(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    preset: str = "vinyals",
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Parts:
    """Handwritten characters of 50 alphabets, 1,623 classes of 20 drawings.

    Published results rest on different preparations, so the one used is written into
    `description`.

    Args:
        data_dir: As in `load`.
        preset: `"vinyals"`, `"vinyals_final"` (as for the published scores of Prototypical
            Networks), `"maml"` or `"lake"`: the values of `split` and `rotations`, unless they
            are given.
        folder: A folder to read instead, with `ALPHABET/characterNN` in it, at any depth.
        **options:
            split: Which characters are for training, validation and testing. `"vinyals"`: 1,028,
                172 and 423 by alphabet (Vinyals et al. 2016). `"vinyals_final"`: the same, but
                the 172 are among the then 1,200 for training too, so that scores on them say
                nothing any more: for a last training, after all choices are made. `"random"`:
                1,100, 100 and 423 at random, as many as in Finn et al. 2017, in an order of this
                package's own that never changes. `"background"`: 792, 172 and 659, the first two
                being the background and the last the evaluation set of Lake et al. 2015.
            rotations: `"classes"`: a character turned by 90, 180 or 270 degrees is a class of its
                own. `"episode"`: each class of each episode is turned at random; the sampler does
                that, with `random_rotation=True`. `None`: as drawn.
            ink: `"one"`: ink is 255 on paper of 0. `"zero"`: the reverse, as the files are.
            resize: `"lanczos"`, `"area"` or `"bilinear"`.
            size: Side of the images, 28 by default.

    Returns:
        As `load`; uint8 `[n, size, size, 1]`, the alphabets as groups. Classes are called as in
        TensorFlow Datasets, `Greek_0`, or `Greek_0/rot090`.

    Reference:
        Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program
        induction (Science 2015). For the splits, see `tfmeta.data.splits`.
    """
    chosen = _omniglot_options(preset, options)
    size = chosen["size"]
    characters = _characters(data_dir, folder, chosen)
    names, alphabets = characters.class_names, characters.groups or ()
    if chosen["split"].startswith("vinyals"):
        numbers = [int(name.rpartition("_")[2]) for name in names]
        fates = [splits.vinyals(*character) for character in zip(alphabets, numbers, strict=True)]
    elif chosen["split"] == "background":
        fates = [splits.background(alphabet, c) for c, alphabet in enumerate(alphabets)]
    else:
        fates = splits.random_characters(names)
    stated = ", ".join(f"{key}={chosen[key] or 'none'}" for key in _OMNIGLOT_CHOICES)
    parts = _parts(
        characters,
        fates,
        f"omniglot[{stated}, {size}x{size}]",
        train_on_validation=chosen["split"] == "vinyals_final",
    )
    if chosen["rotations"] == "classes":
        train, validation, test = (part.with_rotations() for part in parts)
        return train, validation, test
    return parts


def omniglot_emnist(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Parts:
    """Characters across scripts: trained on Omniglot without Latin, tested on EMNIST.

    Args:
        data_dir: As in `load`.
        folder: A folder to read instead, with `omniglot` in it as for `omniglot`, and `emnist`, one
            sub-folder a class: `0` to `61` are the digits, A to Z and a to z.
        **options: `size`, `examples_per_class` (of EMNIST) and `cache_dir`, as of
            `tfmeta.data.named.load_named`.

    Returns:
        As `load`; 1,597, 31 and 31 classes, bright ink on black.

    Reference:
        Chen, Liu, Kira, Wang, Huang: A closer look at few-shot classification (ICLR 2019).
    """
    if folder is not None:
        options["folder"] = os.path.join(folder, "emnist")
    wanted = wanted_of("omniglot_emnist", data_dir, options)
    lists = class_lists("emnist", "closer_look")
    # TensorFlow Datasets has them lying on their sides, as the files do.
    emnist = read(wanted, lists, lambda image: image.transpose(1, 0, 2))
    description = f"omniglot_emnist[closer_look, {wanted.size}x{wanted.size}]"
    _, validation, test = divided(emnist, lists, description)
    chosen = _omniglot_options("lake", {"size": wanted.size})
    of_omniglot = None if folder is None else os.path.join(folder, "omniglot")
    characters = _characters(data_dir, of_omniglot, chosen)
    groups = characters.groups or ()
    train = characters.select([c for c, alphabet in enumerate(groups) if alphabet != "Latin"])
    train.description = f"{description} train"
    return train, validation, test


def cifar_fs(data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Parts:
    """CIFAR-FS: the classes of CIFAR-100 at random, 64, 16 and 20 of 600 images.

    Args:
        data_dir: As in `load`.
        **options: `folder`, `size`, `examples_per_class` and `cache_dir`, as of
            `tfmeta.data.named.load_named`; what is read with one of them is cached.

    Returns:
        As `load`; uint8 `[n, 32, 32, 3]`, the superclasses as groups (not with an
        option).

    Reference:
        Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form
        solvers (ICLR 2019).
    """
    if options:
        return load_named("cifar_fs", data_dir, **options)
    images = _cifar100(data_dir)
    return _parts(images, [splits.cifar_fs(name) for name in images.class_names], "cifar_fs")


def fc100(data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Parts:
    """FC100: the classes of CIFAR-100 by superclass, 60, 20 and 20 of 600 images.

    Args:
        data_dir: As in `load`.
        **options: `folder`, `size`, `examples_per_class` and `cache_dir`, as of
            `tfmeta.data.named.load_named`; what is read with one of them is cached.

    Returns:
        As `load`; uint8 `[n, 32, 32, 3]`, the superclasses as groups (not with an
        option).

    Reference:
        Oreshkin, Rodríguez, Lacoste: TADAM: Task dependent adaptive metric for improved few-shot
        learning (NeurIPS 2018).
    """
    if options:
        return load_named("fc100", data_dir, **options)
    images = _cifar100(data_dir)
    return _parts(images, [splits.fc100(group) for group in images.groups or ()], "fc100")


def glyphs(data_dir: str | os.PathLike[str] | None = None, **options: Any) -> Parts:
    """Letters of the fonts that matplotlib ships, about 1,100 classes of 20 drawings.

    64, 16 and 20 % of the letters, at random, are for training, validation and testing. Nothing is
    downloaded; see `tfmeta.data.glyphs.glyphs`.

    Args:
        data_dir: Where to keep the drawings.
        **options: None are known.

    Returns:
        As `load`; uint8 `[n, 28, 28, 1]`, the scripts as groups.
    """
    for option, value in options.items():
        raise TypeError(f"glyphs are drawn, and have no options. Received: {option}={value!r}")
    letters = read_glyphs(data_dir)
    train, validation, test = letters.split(0.64, 0.16, 0.2)
    return _named((train, validation, test), letters.description)


_OF_THEIR_OWN: dict[str, Callable[..., Parts]] = {
    "omniglot": omniglot,
    "cifar_fs": cifar_fs,
    "fc100": fc100,
    "glyphs": glyphs,
    "omniglot_emnist": omniglot_emnist,
}
_LOADERS: dict[str, Callable[..., Parts]] = {
    name: _OF_THEIR_OWN.get(name) or functools.partial(load_named, ALIASES.get(name, name))
    for name in BENCHMARKS
}


def _characters(
    data_dir: str | os.PathLike[str] | None,
    folder: str | os.PathLike[str] | None,
    chosen: dict[str, Any],
) -> ClassDataset:
    """All characters of Omniglot, called as in TensorFlow Datasets and in its order."""
    made: dict[str, Any] = {
        "size": chosen["size"],
        "grayscale": True,
        "invert": chosen["ink"] == "one",
        "resample": chosen["resize"],
    }
    if folder is None:
        return ClassDataset.from_tfds(
            "omniglot", "train+test", data_dir, group_key="alphabet", **made
        )
    images = ClassDataset.from_directory(folder, **made)
    found = [re.fullmatch(r"(?:.*/)?([^/]+)/character(\d+)", name) for name in images.class_names]
    characters = [(one[1], int(one[2]) - 1) for one in found if one]
    if len(characters) != len(found) or len(set(characters)) != _CHARACTERS:
        raise ValueError(
            f"`folder` of 'omniglot' must have its {_CHARACTERS} characters, each in a folder "
            f"ALPHABET/characterNN. Received: '{os.fspath(folder)}' with {len(set(characters))} "
            f"such, of {len(found)} folders of images"
        )
    keys = [(alphabet in splits.EVALUATION, alphabet, c) for alphabet, c in characters]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    images = images.select(order)
    images.class_names = tuple(f"{characters[c][0]}_{characters[c][1]}" for c in order)
    images.groups = tuple(characters[c][0] for c in order)
    return images


def _omniglot_options(preset: str, options: dict[str, Any]) -> dict[str, Any]:
    if preset not in OMNIGLOT_PRESETS:
        raise ValueError(
            f"`preset` must be one of {', '.join(map(repr, OMNIGLOT_PRESETS))}. "
            f"Received: preset={preset!r}.{did_you_mean(preset, OMNIGLOT_PRESETS)}"
        )
    known = [*_OMNIGLOT_CHOICES, "size"]
    for option in options:
        if option not in known:
            raise TypeError(
                f"omniglot has the options preset, folder, {', '.join(known)}. "
                f"Received: {option}={options[option]!r}.{did_you_mean(option, known)}"
            )
    chosen = {"ink": "one", "resize": "lanczos", "size": 28, **OMNIGLOT_PRESETS[preset], **options}
    for option, choices in _OMNIGLOT_CHOICES.items():
        if chosen[option] not in choices:
            raise ValueError(
                f"`{option}` must be one of {', '.join(map(repr, choices))}. "
                f"Received: {option}={chosen[option]!r}"
            )
    check_count("size", chosen["size"])
    return chosen


def _cifar100(data_dir: str | os.PathLike[str] | None) -> ClassDataset:
    return ClassDataset.from_tfds("cifar100", "train+test", data_dir, group_key="coarse_label")


def _parts(
    images: ClassDataset, fates: list[str], description: str, train_on_validation: bool = False
) -> Parts:
    """The classes whose fate is to train, to validate and to test."""
    chosen = {part: {part} for part in PARTS}
    if train_on_validation:
        chosen["train"].add("validation")
    train, validation, test = (
        images.select([c for c, fate in enumerate(fates) if fate in chosen[part]]) for part in PARTS
    )
    return _named((train, validation, test), description)


def _named(parts: Parts, description: str) -> Parts:
    for dataset, part in zip(parts, PARTS, strict=True):
        dataset.description = f"{description} {part}"
    return parts
