"""Data sets that are decoded once, into a file that is mapped into memory from then on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.images import CHUNK, check_image_options, different_sizes, each_image
from tfmeta.data.images import warn_unreadable as warn_of
from tfmeta.data.readers import classes_and_groups, list_images, open_tfds
from tfmeta.files import replacing
from tfmeta.types import Array

FORMAT = 1
_HEADER = 256  # bytes in front of the numbers; the shape is only known in the end


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
    the same folder at once, one makes it and the others wait.

    Args:
        source: A folder of images as for `ClassDataset.from_directory`; with `split`, the name of a
            data set of TensorFlow Datasets as for `ClassDataset.from_tfds`.
        path: The folder of the cache: `examples.npy` and `labels.npy`, the class of each, as arrays
            of NumPy, and `cache.json` with the names of classes and groups.
        split: What to read of TensorFlow Datasets.
        overwrite: Whether to make a cache anew that was made of another source, or otherwise.
        verbose: Whether to show a progress bar.
        **options: Those of `from_directory` or `from_tfds`.

    Returns:
        A `ClassDataset` of the same examples, in the same order, as from `from_directory` or
        `from_tfds`; `examples` is an `np.memmap`.

    Raises:
        FileNotFoundError: `source` is not there, and not cached.
        FileExistsError: `path` is something else than a cache.
        TypeError: An option is unknown, or the examples are texts.
        ValueError: The cache is of another source, of other options or of another version; or what
            `from_directory` and `from_tfds` raise.

    Example:

    ```python
    photos = tfmeta.data.cache("photos", "cached/photos", size=84)
    cifar = tfmeta.data.cache("cifar100", "cached/cifar100", split="train+test")
    ```
    """
    made = _folder(source, options) if split is None else _tfds(source, split, options)
    folder = Path(path)
    files = _Files(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not files.known()):
        raise FileExistsError(f"'{folder}' exists and is no cache; nothing is changed")
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked():
        if overwrite and not _same(files, made.facts):
            files.clear()
        _check(files, made.facts)
        if not files.about.exists():
            _fill(files, made, verbose)
        return _load(files)


class _Source(NamedTuple):
    facts: dict[str, Any]  # what the bytes depend on
    description: str
    number: int
    # From a position on: positions, and examples with their labels; `None` for one left out.
    examples: Callable[[int], Iterator[tuple[int, Array | None, Any]]]
    names: Callable[[list[Any]], tuple[list[str], list[str] | None, Array]]
    skipped: Callable[[list[int]], None]


class _Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.examples = folder / "examples.npy"
        self.labels = folder / "labels.npy"
        self.about = folder / "cache.json"  # the last one to be written
        # Of a cache that is not finished.
        self.spelled = folder / "labels.jsonl"
        self.progress = folder / "progress.json"

    def known(self) -> bool:
        return (self.folder / ".lock").exists()

    def clear(self) -> None:
        for file in (self.about, self.progress, self.spelled, self.labels, self.examples):
            file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self) -> dict[str, Any] | None:
        """What is known of the cache, finished or not."""
        for file in (self.about, self.progress):
            if file.exists():
                try:
                    known = json.loads(file.read_text())
                    if known["format"] != FORMAT:
                        raise ValueError(f"format {known['format']}, this version has {FORMAT}")
                    return dict(known)
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"'{file}' is damaged or of another version ({error!r}); "
                        "overwrite=True makes the cache anew"
                    ) from error
        return None


def _folder(source: str | os.PathLike[str], options: dict[str, Any]) -> _Source:
    bound = inspect.signature(ClassDataset.from_directory).bind(source, **options)
    bound.apply_defaults()
    chosen = {name: value for name, value in bound.arguments.items() if name != "path"}
    check_image_options(chosen["size"], chosen["resample"])
    facts = {"source": os.path.abspath(source), "options": json.loads(json.dumps(chosen))}
    files: list[str] = []
    labels: list[str] = []
    if Path(source).exists():
        files, labels = list_images(source)
        digest = hashlib.sha256()
        for file in files:
            size = os.path.getsize(file) if os.path.exists(file) else -1
            digest.update(f"{os.path.relpath(file, source)}\0{size}\0".encode())
        facts["files"] = digest.hexdigest()

    def examples(start: int) -> Iterator[tuple[int, Array | None, Any]]:
        if not files:
            list_images(source)  # which tells what is wrong
        for i, image in each_image(files, start=start, **chosen):
            yield i, image, labels[i]

    def names(spelled: list[Any]) -> tuple[list[str], list[str] | None, Array]:
        classes, groups = classes_and_groups(source, spelled)
        numbers = {name: c for c, name in enumerate(classes)}
        return classes, groups, np.array([numbers[name] for name in spelled], np.int64)

    def skipped(positions: list[int]) -> None:
        warn_of([files[i] for i in positions], stacklevel=5)

    description = f"images of {os.fspath(source)}"
    return _Source(facts, description, len(files), examples, names, skipped)


def _tfds(source: str | os.PathLike[str], split: str, options: dict[str, Any]) -> _Source:
    bound = inspect.signature(ClassDataset.from_tfds).bind(source, split, **options)
    bound.apply_defaults()
    records = open_tfds(**bound.arguments)
    elsewhere = ("name", "data_dir", "download")
    chosen = {name: value for name, value in bound.arguments.items() if name not in elsewhere}
    facts = {
        "source": records.name,
        "options": json.loads(json.dumps(chosen)),
        "files": str(records.number),
    }

    def examples(start: int) -> Iterator[tuple[int, Array | None, Any]]:
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
    return _Source(facts, description, records.number, examples, names, lambda positions: None)


def _check(files: _Files, facts: dict[str, Any]) -> None:
    """Raise unless the cache is of this source and these options."""
    known = files.read()
    if known is None:
        return
    before = known["facts"]
    for name, value in facts["options"].items():
        if before["options"].get(name) != value:
            raise ValueError(
                f"`{name}` must be {before['options'].get(name)!r} as when the cache "
                f"'{files.folder}' was made. Received: {name}={value!r}; overwrite=True makes it "
                "anew"
            )
    # A folder may have been moved; one that is gone is known by its name.
    same = "files" if "files" in facts and "files" in before else "source"
    if before["options"].keys() != facts["options"].keys() or before[same] != facts[same]:
        change = "" if before["source"] != facts["source"] else ", whose files have changed since"
        raise ValueError(
            f"`source` must be '{before['source']}' as when the cache '{files.folder}' was made. "
            f"Received: source='{facts['source']}'{change}; overwrite=True makes it anew"
        )


def _same(files: _Files, facts: dict[str, Any]) -> bool:
    try:
        _check(files, facts)
    except ValueError:
        return False
    return True


def _fill(files: _Files, source: _Source, verbose: bool) -> None:
    """Append examples to the file, and note after each chunk how far that is safe."""
    import keras  # slow to import

    state: dict[str, Any] = files.read() or {
        "format": FORMAT,
        "facts": source.facts,
        "read": 0,
        "kept": 0,
        "labels": 0,
        "skipped": [],
        "shape": None,
        "dtype": None,
    }
    with files.examples.open("ab") as examples, files.spelled.open("ab") as spelled:
        size = 0 if state["shape"] is None else _bytes(state)
        # What was written after the last note is written again.
        examples.truncate(_HEADER + state["kept"] * size if size else 0)
        spelled.truncate(state["labels"])
        if not size:
            examples.write(bytes(_HEADER))
        bar = keras.utils.Progbar(max(source.number, 1), verbose=int(verbose), unit_name="example")
        bar.update(state["read"])
        for position, example, label in source.examples(state["read"]):
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
            if state["read"] % CHUNK == 0:
                _note(files, state, examples, spelled)
                bar.update(state["read"])
        _note(files, state, examples, spelled)
        bar.update(max(source.number, 1), finalize=True)
    _finish(files, source, state)


def _bytes(state: dict[str, Any]) -> int:
    size: int = math.prod(state["shape"]) * np.dtype(state["dtype"]).itemsize
    return size


def _note(files: _Files, state: dict[str, Any], *written: BinaryIO) -> None:
    for file in written:
        file.flush()
        os.fsync(file.fileno())
    state["labels"] = written[-1].tell()
    with replacing(files.progress) as beside:
        beside.write_text(json.dumps(state))


def _finish(files: _Files, source: _Source, state: dict[str, Any]) -> None:
    if not state["kept"]:
        raise ValueError(f"None of the {state['read']} images can be read.")
    spelled = [json.loads(line) for line in files.spelled.read_text().splitlines()]
    classes, groups, numbers = source.names(spelled)
    with files.examples.open("r+b") as examples:
        examples.write(_header((state["kept"], *state["shape"]), state["dtype"]))
        examples.flush()
        os.fsync(examples.fileno())
    with replacing(files.labels) as beside:
        np.save(beside, numbers.astype(np.int64))
    about = {
        "format": FORMAT,
        "facts": source.facts,
        "description": source.description,
        "class_names": classes,
        "groups": groups,
    }
    with replacing(files.about) as beside:
        beside.write_text(json.dumps(about))
    for file in (files.progress, files.spelled):
        file.unlink()
    source.skipped(state["skipped"])


def _header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return what is in front of the numbers in a file of NumPy, of a length that is always one."""
    fields = str({"descr": dtype, "fortran_order": False, "shape": shape})
    length = _HEADER - 10
    return (
        b"\x93NUMPY\x01\x00"
        + length.to_bytes(2, "little")
        + fields.ljust(length - 1).encode()
        + b"\n"
    )


def _load(files: _Files) -> ClassDataset:
    known = files.read()
    assert known is not None
    try:
        examples, labels = np.load(files.examples, mmap_mode="r"), np.load(files.labels)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"The cache '{files.folder}' is damaged ({error}); delete it to make it anew"
        ) from error
    names, groups = known["class_names"], known["groups"]
    return ClassDataset(examples, labels, names, groups, description=known["description"])
