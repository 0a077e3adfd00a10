"""Data sets that are decoded once, into a file that is mapped into memory from then on."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfmeta.data import cache_files
from tfmeta.data.cache_files import FORMAT, HEADER, Appended, CacheFiles, DamagedError
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.fingerprint import fingerprint
from tfmeta.data.images import (
    CHUNK,
    FORMATS,
    check_image_options,
    different_sizes,
    each_image,
    in_words,
    named,
    warn_lost,
    warn_unreadable,
    without_defaults,
)
from tfmeta.data.pages import Page, each_page
from tfmeta.data.readers import classes_and_groups, list_files, open_tfds
from tfmeta.types import Array

_NOTED = 256 << 20  # bytes after which it is noted how far the cache has come


def cache(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    overwrite: bool = False,
    verbose: bool = True,
    **options: Any,
) -> ClassDataset:
    """Decodes a data set once into a folder, and returns it as a memory map from there.

    The next call finds the folder and returns at once. A call that was interrupted, however it was,
    is continued by the next one, and ends with the same bytes. Of several processes that ask for
    the same folder at once, one makes it and the others wait. A finished cache needs no lock, and
    may be on a disk that cannot be written.

    Whether the source has changed is told by names, sizes and what is in the files, or where they
    have more than 64 MB together by their times instead. What is in the cache is compared with what
    was written in the same way. A cache that was interrupted and then damaged is made anew, with a
    warning.

    Args:
        source: A folder of images as for `ClassDataset.from_directory`; with `split`, the name of a
            data set of TensorFlow Datasets as for `ClassDataset.from_tfds`.
        path: The folder of the cache: `examples.npy` and `labels.npy`, the class of each, as arrays
            of NumPy, and `cache.json` with the names of classes and groups. Other files in it are
            left alone.
        split: What to read of TensorFlow Datasets.
        overwrite: Whether to make a cache anew that is damaged, or was made of another source or
            otherwise.
        verbose: Whether to show a progress bar.
        **options: Those of `from_directory` or `from_tfds`.

    Returns:
        A `ClassDataset` of the same examples, in the same order, as from `from_directory` or
        `from_tfds`; `examples` is an `np.memmap`.

    Raises:
        FileNotFoundError: `source` is not there, and not cached.
        FileExistsError: `path` is something else than a cache.
        TypeError: An option is unknown, or the examples are texts.
        OSError: The disk is full or fails; the next call goes on.
        ValueError: The cache is damaged, of another source, of other options or of another
            version; the source changes while it is read; or what `from_directory` and `from_tfds`
            raise.

    Example:

    ```python
    photos = tfmeta.data.cache("photos", "cached/photos", size=84)
    cifar = tfmeta.data.cache("cifar100", "cached/cifar100", split="train+test")
    ```
    """
    made = folder_source(source, options) if split is None else tfds_source(source, split, options)
    return cached(made, path, overwrite=overwrite, verbose=verbose)


def cached(
    made: Source, path: str | os.PathLike[str], *, overwrite: bool, verbose: bool
) -> ClassDataset:
    """Return what is cached at a path, once it is there: see `cache`.

    Args:
        made: What makes the examples.
        path: The folder of the cache.
        overwrite: Whether to make one anew that is damaged, or of something else.
        verbose: Whether to show a progress bar.
    """
    files = CacheFiles(Path(path))
    files.refuse_others()
    loaded, reason = None, None
    if files.about.exists():
        try:
            loaded = _load(files, made.facts)
        except (ValueError, OSError) as error:
            reason = error  # or another process makes it anew, which is clear when it is done
    if loaded is not None and not files.leftovers():
        return loaded
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked())
        except OSError as error:
            if loaded is not None:
                return loaded
            raise reason or error from None
        files.tidy()
        if files.about.exists():
            try:
                return _load(files, made.facts)
            except ValueError:
                if not overwrite:
                    raise
        state = _interrupted(files, made, overwrite)
        if state is None:
            if "files" not in made.facts:
                made.check()  # before anything is removed
            files.clear()
        skipped, lost = _fill(files, made, state, verbose)
        made.told(skipped, lost)
        return _load(files, made.facts)


class Source(NamedTuple):
    """What makes the examples of a cache, one after another and from any one on."""

    facts: dict[str, Any]  # what the bytes depend on
    description: str
    number: int
    # Raises if there is nothing to be read, or if it is not as the facts say.
    check: Callable[[], None]
    # From a position on: positions, and examples with their labels; `None` for one left out. Counts
    # what is lost of those that it has given.
    examples: Callable[[int, Counter[str]], Iterator[tuple[int, Array | None, Any]]]
    names: Callable[[list[Any]], tuple[list[str], list[str] | None, Array]]
    # Says which were left out, and what was lost.
    told: Callable[[list[int], Counter[str]], None]


def folder_source(
    source: str | os.PathLike[str],
    options: dict[str, Any],
    keep: Callable[[list[str]], list[int]] | None = None,
) -> Source:
    """Return what makes the examples of a folder.

    Args:
        source: The folder.
        options: Those of `ClassDataset.from_directory`.
        keep: Chooses by position, of the classes of all files, those that are read; all without.
    """
    bound = inspect.signature(ClassDataset.from_directory).bind(source, **options)
    bound.apply_defaults()
    chosen = {name: value for name, value in bound.arguments.items() if name != "path"}
    names_of = ("size", "resample", "dtype", "alpha", "pages")
    check_image_options(**{name: chosen[name] for name in names_of})
    options = json.loads(json.dumps(without_defaults(chosen)))
    facts = {"source": os.path.abspath(source), "options": options}
    files: Sequence[str | Page] = []
    labels: list[str] = []
    unreadable: list[str] = []

    def kept() -> tuple[list[str], list[str], list[str]]:
        files, labels, unreadable = list_files(source, chosen["skip_unreadable"])
        if keep is not None:
            places = keep(labels)
            files, labels = [files[i] for i in places], [labels[i] for i in places]
        return files, labels, unreadable

    if Path(source).exists():
        found, labels, unreadable = kept()
        facts["files"] = fingerprint(found, source)
        files = found
        if chosen["pages"] == "all":
            files, labels = each_page(found, labels, FORMATS)

    def check() -> None:
        found, _, _ = kept()
        _check_unchanged(source, facts, fingerprint(found, source))

    def examples(start: int, lost: Counter[str]) -> Iterator[tuple[int, Array | None, Any]]:
        for i, image in each_image(files, start=start, lost=lost, **chosen):
            yield i, image, labels[i]

    def names(spelled: list[Any]) -> tuple[list[str], list[str] | None, Array]:
        classes, groups = classes_and_groups(source, spelled)
        numbers = {name: c for c, name in enumerate(classes)}
        return classes, groups, np.array([numbers[name] for name in spelled], np.int64)

    def told(positions: list[int], lost: Counter[str]) -> None:
        warn_unreadable(unreadable, stacklevel=5, what="folder(s)")
        warn_unreadable([named(files[i]) for i in positions], stacklevel=5)
        kept = len(files) - len(positions)
        warn_lost(lost, kept, stacklevel=5, of=f" of {in_words(source)}")

    description = f"images of {in_words(source)}"
    return Source(facts, description, len(files), check, examples, names, told)


def tfds_source(source: str | os.PathLike[str], split: str, options: dict[str, Any]) -> Source:
    """Return what makes the examples of a data set of TensorFlow Datasets: see `cache`."""
    bound = inspect.signature(ClassDataset.from_tfds).bind(source, split, **options)
    bound.apply_defaults()
    records = open_tfds(**bound.arguments)
    elsewhere = ("name", "data_dir", "download")
    chosen = {name: value for name, value in bound.arguments.items() if name not in elsewhere}

    def found() -> str:
        # Nothing is found where the data are in a storage of the network.
        walk = os.walk(records.folder)
        files = sorted(os.path.join(folder, name) for folder, _, names in walk for name in names)
        return f"{records.number} {fingerprint(files, records.folder)}"

    facts = {
        "source": records.name,
        "options": json.loads(json.dumps(chosen)),
        "files": found(),
    }

    def check() -> None:
        _check_unchanged(source, facts, found())

    def examples(start: int, lost: Counter[str]) -> Iterator[tuple[int, Array | None, Any]]:
        for images, *columns in records.batches(start):
            if images.dtype == object:
                raise TypeError(
                    "`image_key` must name images or numbers. Received: "
                    f"image_key={chosen['image_key']!r}, which are texts"
                )
            for image, *label in zip(images, *columns, strict=True):
                yield start, image, [x.decode() if isinstance(x, bytes) else int(x) for x in label]
                start += 1

    def names(spelled: list[Any]) -> tuple[list[str], list[str] | None, Array]:
        labels, *groups = (np.array(column) for column in zip(*spelled, strict=True))
        return *records.names(labels, *groups), np.unique(labels, return_inverse=True)[1]

    description = f"{source} {split}"
    return Source(
        facts, description, records.number, check, examples, names, lambda positions, lost: None
    )


def _check_unchanged(source: str | os.PathLike[str], facts: dict[str, Any], found: str) -> None:
    if facts.get("files", found) != found:
        raise ValueError(
            "`source` must stay as it is while it is cached. "
            f"Received: source={os.fspath(source)!r}, whose files have changed meanwhile"
        )


def _check_facts(files: CacheFiles, before: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raise unless the cache is of this source and these options."""
    for name in (*facts["options"], *before["options"]):
        value = facts["options"].get(name)
        if before["options"].get(name) != value:
            raise ValueError(
                f"`{name}` must be {before['options'].get(name)!r} as when the cache "
                f"'{files.folder}' was made. Received: {name}={value!r}; overwrite=True makes it "
                "anew"
            )
    # A folder may have been moved; one that is gone is known by its name.
    same = "files" if "files" in facts and "files" in before else "source"
    if before[same] != facts[same]:
        change = "" if before["source"] != facts["source"] else ", whose files have changed since"
        raise ValueError(
            f"`source` must be {before['source']!r} as when the cache '{files.folder}' was made. "
            f"Received: source={facts['source']!r}{change}; overwrite=True makes it anew"
        )


def _interrupted(files: CacheFiles, source: Source, overwrite: bool) -> dict[str, Any] | None:
    """Return how far a cache has come that is not finished, or `None` to begin anew."""
    if files.about.exists() or not files.progress.exists():
        return None
    try:
        state = cache_files.read_note(files.progress)
        _check_state(state, source.number)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _warn_anew(files.progress, error)
        return None
    try:
        _check_facts(files, state["facts"], source.facts)
    except ValueError:
        if not overwrite:
            raise
        return None
    return state


def _warn_anew(file: Path, reason: object) -> None:
    message = (
        f"Caching from the beginning, for '{file}' of an interrupted one is damaged ({reason})"
    )
    warnings.warn(message, stacklevel=5)


def _fill(
    files: CacheFiles, source: Source, state: dict[str, Any] | None, verbose: bool
) -> tuple[list[int], Counter[str]]:
    """Append examples to the file, and note after each chunk how far that is safe.

    Returns the positions of those that were left out, and what was lost of the others.
    """
    import keras  # slow to import

    with contextlib.ExitStack() as stack:
        try:
            appended = _appended(files, stack, state)
        except DamagedError as error:
            _warn_anew(error.file, error.reason)
            stack.close()
            state = None
            files.clear()
            appended = _appended(files, stack, state)
        examples, spelled = appended
        if state is None:
            state = {"format": FORMAT, "facts": source.facts, "read": 0, "kept": 0, "skipped": []}
            state |= {"shape": None, "dtype": None, "lost": {}}
        # Those of older versions noted none.
        lost = Counter(state.get("lost", {}))

        def note() -> int:
            state["examples"], state["labels"] = examples.note(), spelled.note()
            state["lost"] = dict(lost)
            cache_files.put_note(files.progress, state)
            return examples.size

        noted = examples.size
        bar = keras.utils.Progbar(max(source.number, 1), verbose=int(verbose), unit_name="example")
        bar.update(state["read"])
        for position, example, label in source.examples(state["read"], lost):
            if example is None:
                state["skipped"].append(position)
            else:
                if state["shape"] is None:
                    state |= {"shape": list(example.shape), "dtype": example.dtype.str}
                if list(example.shape) != state["shape"]:
                    raise different_sizes(
                        f"the first of shape {tuple(state['shape'])}",
                        f"number {position} of shape {example.shape}",
                    )
                examples.write(np.ascontiguousarray(example).tobytes())
                spelled.write(json.dumps(label).encode() + b"\n")
                state["kept"] += 1
            state["read"] = position + 1
            if state["read"] % CHUNK == 0 or examples.size >= noted + _NOTED:
                noted = note()
                bar.update(state["read"])
        note()
        bar.update(max(source.number, 1), finalize=True)
        _finish(files, source, state, examples)
    return list(state["skipped"]), lost


def _appended(
    files: CacheFiles, stack: contextlib.ExitStack, state: dict[str, Any] | None
) -> tuple[Appended, Appended]:
    examples = Appended(files.examples, HEADER, state and state["examples"])
    stack.enter_context(examples)
    spelled = Appended(files.spelled, 0, state and state["labels"])
    stack.enter_context(spelled)
    return examples, spelled


def _finish(files: CacheFiles, source: Source, state: dict[str, Any], examples: Appended) -> None:
    if not state["kept"]:
        raise ValueError(f"None of the {state['read']} images can be read.")
    source.check()
    classes, groups, numbers = source.names(_labels(files, state["kept"]))
    labels = numbers.astype("<i8")
    shape = (state["kept"], *state["shape"])
    digest = examples.finish(cache_files.header(shape, state["dtype"]))
    cache_files.put(files.labels, cache_files.array_bytes(labels))
    about = {
        "format": FORMAT,
        "facts": source.facts,
        "description": source.description,
        "class_names": classes,
        "groups": groups,
        "shape": list(shape),
        "dtype": state["dtype"],
        "examples": digest,
        "labels": cache_files.sha256(labels.tobytes()),
    }
    cache_files.put_note(files.about, about)
    files.tidy()


def _labels(files: CacheFiles, kept: int) -> list[Any]:
    """Return the labels as they were spelled: texts, or lists of texts and numbers."""
    try:
        spelled = [
            json.loads(line) for line in cache_files.read_whole(files.spelled).split(b"\n")[:-1]
        ]
        lengths = {-1 if isinstance(x, str) else len(x) for x in spelled}
        if len(spelled) != kept or len(lengths) != 1:
            raise ValueError(f"{len(spelled)} labels of {kept} examples")
        if not all(isinstance(x, str | int) for label in spelled for x in label):
            raise ValueError("labels are texts and numbers")
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(files.spelled, error) from error
    return spelled


def _load(files: CacheFiles, facts: dict[str, Any]) -> ClassDataset:
    """Return a finished cache, or raise a `ValueError` if it is damaged or of other facts."""
    about = cache_files.read_note(files.about)
    try:
        _check_about(about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(files.about, f"{type(error).__name__}: {error}") from error
    _check_facts(files, about["facts"], facts)
    shape, dtype = tuple(about["shape"]), about["dtype"]
    examples = cache_files.read_array(files.examples, shape, dtype, about["examples"])
    labels = cache_files.read_array(files.labels, shape[:1], "<i8", about["labels"])
    names, groups = about["class_names"], about["groups"]
    try:
        return ClassDataset(
            examples, np.array(labels), names, groups, description=about["description"]
        )
    except (ValueError, TypeError) as error:
        raise DamagedError(files.about, error) from error


# A note may be of anybody, with a digest that fits: whatever is done with it is checked before.


def _check_about(about: dict[str, Any]) -> None:
    _expect_facts(about["facts"])
    _expect(_are(int, about["shape"]) and min(about["shape"]) > 0, "shape")
    _expect(np.dtype(about["dtype"]).kind in "biuf", "dtype")
    _expect(_are(str, about["class_names"]), "class_names")
    _expect(about["groups"] is None or _are(str, about["groups"]), "groups")
    _expect(_are(str, [about["description"], about["examples"], about["labels"]]), "texts")
    about["description"].encode()  # or it cannot be printed
    _expect(bool(re.fullmatch("[0-9a-f]{64}", about["examples"])), "examples")


def _check_state(state: dict[str, Any], number: int) -> None:
    _expect_facts(state["facts"])
    read, kept, skipped = state["read"], state["kept"], state["skipped"]
    _expect(_are(int, [read, kept, *skipped]), "numbers")
    _expect(0 <= kept <= read == kept + len(skipped), "read")
    _expect(number < 0 or read <= number, "read")
    _expect(all(0 <= position < read for position in skipped), "skipped")
    lost = [*state.get("lost", {}).values()]
    _expect(_are(int, lost) and all(0 <= number <= read for number in lost), "lost")
    size = 0
    if kept:
        _expect(_are(int, state["shape"]) and min(state["shape"], default=1) > 0, "shape")
        _expect(np.dtype(state["dtype"]).kind in "biuf", "dtype")
        size = kept * math.prod(state["shape"]) * np.dtype(state["dtype"]).itemsize
    _expect(state["examples"]["bytes"] == size, "examples")
    noted = [state[key][of] for key in ("examples", "labels") for of in ("bytes", "sha256")]
    _expect(_are(int, noted[::2]) and _are(str, noted[1::2]) and min(noted[::2]) >= 0, "labels")


def _expect_facts(facts: Any) -> None:
    _expect(_are(str, [facts["source"], facts.get("files", "")]), "facts")
    _expect(isinstance(facts["options"], dict), "facts")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"`{what}` is not what was written")


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
