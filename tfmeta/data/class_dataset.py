"""Examples sorted by class: what episodes are drawn from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tfmeta.checks import check_count, did_you_mean
from tfmeta.data.class_sizes import left_out, small_classes
from tfmeta.data.images import in_words
from tfmeta.data.maps import packed, unpacked
from tfmeta.data.readers import read_directory, read_tfds
from tfmeta.data.several_inputs import check_names, each, number_of
from tfmeta.data.shards import Shards
from tfmeta.data.shares import positions_of, shares
from tfmeta.types import Array

OneInput: TypeAlias = Array | Shards | Sequence[str]
Examples: TypeAlias = OneInput | Mapping[str, OneInput]

_SMALLEST_SQUARE = 8  # pixels: what is smaller is hardly an image
_SCANNED_AT_ONCE = 1 << 22  # numbers: bounds the memory that a check takes


class ClassDataset:
    """Examples of many classes, any of which can be found at once.

    The examples stay where they are, be it memory or a file on disk; every `ClassDataset` made
    from another one shares them.

    Args:
        examples: NumPy array `[n, ...]`; for data larger than memory an `np.memmap` of that shape,
            or `tfmeta.data.Shards` for several; or a list of strings. uint8 `[n, height, width]`
            and with more axes stands for images of 0..255; vectors of integers, `[n, d]`, are what
            they are. A dict of such, by name, for models of several inputs.
        labels: The class of each example, `[n]`: integers or strings. Classes are numbered from 0
            in the sorted order of the labels that occur.
        class_names: The name of each class, in that order; the labels themselves by default.
        groups: The group of each class (an alphabet, a superclass), in that order, or `None`.
        description: What the data are, in words; printed with the results.

    Attributes:
        examples: The array given, or a dict of them. A list of strings becomes an array of objects.
        class_names: A tuple, one name a class.
        groups: A tuple, one group a class, or `None`.
        class_offsets: int64, where each class begins in `class_indices`, and the end.
        class_indices: int64. `class_indices[class_offsets[c] : class_offsets[c + 1]]` are the
            positions in `examples` of the examples of class `c`.
        quarter_turns: uint8, one a class. Examples of class `c` are shown rotated
            counter-clockwise by `quarter_turns[c]` times 90 degrees, as `np.rot90` does.
        description: As given.

    Raises:
        TypeError: The examples or labels are of a type that cannot be used.
        ValueError: There are no examples; lengths differ, those of inputs too; examples are NaN or
            infinite; or images of 0..255 come as another type than uint8. (A memory-mapped file is
            not read to check its numbers.)

    Example:
        >>> import numpy as np
        >>> images = np.zeros([6, 28, 28, 1], np.uint8)
        >>> ClassDataset(images, ["cat", "cat", "dog", "dog", "eel", "eel"])
        ClassDataset(3 classes, 6 examples, example_shape=(28, 28, 1), dtype=uint8)
    """

    def __init__(
        self,
        examples: Examples,
        labels: npt.ArrayLike,
        class_names: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        *,
        description: str = "",
    ) -> None:
        self.examples: Any = _check_inputs(examples)
        checked = _check_labels(labels, number_of(self.examples))
        # Equal labels come to lie together, each class's examples in ascending order.
        order = np.argsort(checked, kind="stable")
        classes, sizes = np.unique(checked[order], return_counts=True)
        if class_names is None:
            class_names = [str(c) for c in classes]
        self.class_names = _check_names("class_names", class_names, classes)
        if len(set(self.class_names)) != len(classes):
            twice = next(name for name in self.class_names if self.class_names.count(name) > 1)
            raise ValueError(f"`class_names` must all differ. Received {twice!r} more than once.")
        self.groups = None if groups is None else _check_names("groups", groups, classes)
        self.class_indices = order.astype(np.int64)
        self.class_offsets = _offsets(sizes)
        self.quarter_turns = np.zeros(len(classes), np.uint8)
        self.description = description

    @classmethod
    def from_arrays(
        cls,
        examples: Examples,
        labels: npt.ArrayLike,
        class_names: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        *,
        description: str = "",
    ) -> ClassDataset:
        """The same as `ClassDataset(...)`, by the name that goes with its siblings."""
        return cls(examples, labels, class_names, groups, description=description)

    @classmethod
    def from_tfds(
        cls,
        name: str,
        split: str,
        data_dir: str | os.PathLike[str] | None = None,
        image_key: str = "image",
        label_key: str = "label",
        *,
        group_key: str | None = None,
        size: int | tuple[int, int] | None = None,
        grayscale: bool = False,
        invert: bool = False,
        resample: str = "lanczos",
        download: bool = True,
    ) -> ClassDataset:
        """Reads a data set of TensorFlow Datasets into memory.

        Args:
            name: The name there, for instance `"cifar100"`.
            split: What to read, for instance `"train"` or `"train+test"`.
            data_dir: The folder of TensorFlow Datasets; its own default when `None`.
            image_key: The feature that holds the examples. Images are decoded; other numbers and
                texts are taken as they are.
            label_key: The feature that holds the labels.
            group_key: The feature that holds the group of an example's class, if any.
            size, grayscale, invert, resample: How images are made; see `from_directory`.
                Images of one channel stay so.
            download: Whether to download and prepare what `data_dir` lacks.

        Returns:
            The examples of all classes that occur in `split`, images as uint8
            `[n, height, width, channels]`.

        Raises:
            FileNotFoundError: The data are not in `data_dir` and cannot be downloaded.
            ValueError: An unknown feature, or images of different sizes without `size`.

        Example:

        ```python
        images = ClassDataset.from_tfds("cifar100", "train+test", group_key="coarse_label")
        ```
        """
        labelled = read_tfds(
            name,
            split,
            data_dir,
            image_key=image_key,
            label_key=label_key,
            group_key=group_key,
            download=download,
            size=size,
            grayscale=grayscale,
            invert=invert,
            resample=resample,
        )
        return cls(*labelled, description=f"{name} {split}")

    @classmethod
    def from_directory(
        cls,
        path: str | os.PathLike[str],
        size: int | tuple[int, int] | None = None,
        *,
        grayscale: bool = False,
        invert: bool = False,
        resample: str = "lanczos",
        dtype: str | None = None,
        alpha: bool | None = None,
        pages: str | None = None,
        skip_unreadable: bool = False,
    ) -> ClassDataset:
        """Reads a folder of images into memory.

        A class is any folder below `path` that directly holds images, and is called by its path
        from there: `dog`, or `Greek/character01`, whose group is `Greek`. Hidden files, other
        kinds of files and images directly in `path` are left alone. Symbolic links are followed,
        but no folder is read twice.

        Where something of images is lost, one warning says of how many, and what would keep it;
        one who has said `dtype`, `alpha` or `pages` gets none about that.

        Args:
            path: The folder.
            size: Side of the square, or `(height, width)`, to which images are resized. `None`
                leaves them as they are; then all must be of one size.
            grayscale: One channel when `True`, red, green and blue otherwise.
            invert: Whether to turn `v` into `255 - v`, so that dark ink on paper becomes bright.
            resample: `"lanczos"`, `"area"` or `"bilinear"`.
            dtype: `"uint8"` is the default: images of 16 bits are brought to 8. `"uint16"` keeps
                them, and those of 8 bits are multiplied by 257; samplers bring both to [0, 1].
                `"float32"` is between 0 and 1; but floats of a file, and integers of 32 bits or
                with a sign, have no agreed range and are taken as they are.
            alpha: Whether there is one channel more, the opacity. If not, which is the default,
                images are laid on white paper.
            pages: `"all"` makes each page of a document and each frame of an animation an example;
                `"first"`, the default, reads one of each file.
            skip_unreadable: Leaves out files and folders that cannot be read, with a warning that
                names them, instead of raising an error.

        Returns:
            The images as `[n, height, width, channels]`, in sorted order of their paths.

        Raises:
            FileNotFoundError: `path` does not exist.
            NotADirectoryError: `path` is a file.
            ValueError: There are no images or only one class, a file or folder cannot be read or
                a link leads nowhere (it is named), the name of a class is not in UTF-8, or images
                of different sizes come without `size`.

        Example:

        ```python
        pets = ClassDataset.from_directory("photos", size=84)
        train, validation, test = pets.split(0.6, 0.2, 0.2)
        ```
        """
        labelled = read_directory(
            path,
            size,
            grayscale=grayscale,
            invert=invert,
            resample=resample,
            dtype=dtype,
            alpha=alpha,
            pages=pages,
            skip_unreadable=skip_unreadable,
        )
        pixels, labels, names, groups = labelled
        # Of which range they are is known of the files, and need not be guessed from the numbers.
        description = f"images of {in_words(path)}"
        placeholder = np.zeros([len(pixels), 1], bool)
        made = cls(placeholder, labels, names, groups, description=description)
        made.examples = np.asarray(pixels)
        return made

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def example_shape(self) -> Any:
        """The shape of one example; `()` for strings, a dict of shapes for several inputs."""
        return each(lambda examples: examples.shape[1:], self.examples)

    @property
    def dtype(self) -> Any:
        """The type of the numbers in `examples`; object for strings, a dict for several inputs."""
        return each(lambda examples: examples.dtype, self.examples)

    def __len__(self) -> int:
        return len(self.class_indices)

    def __repr__(self) -> str:
        text = (
            f"{self.num_classes} classes, {len(self)} examples, "
            f"example_shape={self.example_shape}, dtype={self.dtype}"
        )
        return f"ClassDataset({text}{', ' + repr(self.description) if self.description else ''})"

    def __getstate__(self) -> dict[str, Any]:
        """In a pickle a memory map is the name of its file."""
        return {**self.__dict__, "examples": each(packed, self.examples)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "examples": each(unpacked, state["examples"])})

    def input(self, name: str) -> ClassDataset:
        """Returns the data set of one of several inputs.

        Args:
            name: Which.

        Returns:
            A `ClassDataset` of the same classes that shares the examples.

        Raises:
            ValueError: There is no such input.

        Example:
            >>> import numpy as np
            >>> both = {"image": np.zeros([2, 9, 9], np.uint8), "text": ["a cat", "a dog"]}
            >>> ClassDataset(both, ["cat", "dog"]).input("text")
            ClassDataset(2 classes, 2 examples, example_shape=(), dtype=object)
        """
        names = list(self.examples) if isinstance(self.examples, dict) else []
        if name not in names:
            raise ValueError(
                f"`name` must be an input of this data set, which has {names or 'one, unnamed'}. "
                f"Received: name={name!r}.{did_you_mean(name, names)}"
            )
        other = self._derive(range(self.num_classes))
        other.examples = self.examples[name]
        return other

    def select(self, classes: Iterable[int | str]) -> ClassDataset:
        """Returns the data set of some classes only, in the order given.

        Args:
            classes: Numbers or names of classes.

        Returns:
            A `ClassDataset` that shares the examples; its classes are numbered from 0.

        Raises:
            TypeError: `classes` is a single string, or holds neither integers nor strings.
            ValueError: `classes` is empty, or names a class twice or one that does not exist.

        Example:
            >>> import numpy as np
            >>> toys = ClassDataset(np.zeros([3, 2], np.float32), ["cat", "dog", "eel"])
            >>> toys.select(["eel", 0]).class_names
            ('eel', 'cat')
        """
        return self._derive(positions_of(self.class_names, classes, "classes", "class"))

    def split(self, *fractions: float | Sequence[float], seed: int = 0) -> tuple[ClassDataset, ...]:
        """Shares the classes out at random, so that no part has a class of another.

        Split before `with_rotations`, or the same drawing would turn up in several parts.

        Args:
            *fractions: The share of the classes of each part; together 1. One sequence of them
                will do.
            seed: Another number gives another assignment. It depends on nothing but the number
                and the names of the classes.

        Returns:
            A `ClassDataset` for each fraction; the classes of a part stay in order.

        Raises:
            TypeError: The fractions are no numbers.
            ValueError: The fractions are not positive or do not add up to 1, or there are too few
                classes for each part to have one.

        Example:

        ```python
        train, validation, test = images.split(0.6, 0.2, 0.2)
        ```
        """
        parts = shares(self.class_names, fractions, seed, one="class", many="classes")
        return tuple(map(self._derive, parts))

    def with_min_per_class(self, min_per_class: int) -> ClassDataset:
        """Leaves out the classes of fewer examples, with a warning that lists them.

        An episode needs `shots + queries` examples of each of its classes.

        Args:
            min_per_class: How many examples are enough.

        Returns:
            A `ClassDataset` of the others that shares the examples.

        Raises:
            TypeError: `min_per_class` is no integer.
            ValueError: No class has so many examples.

        Example:

        ```python
        pets = ClassDataset.from_directory("photos", size=84).with_min_per_class(6)
        ```
        """
        least = check_count("min_per_class", min_per_class)
        small = small_classes(self.class_names, self.class_offsets, least)
        if len(small) == self.num_classes:
            largest = max(size for _, size in small)
            raise ValueError(
                f"`min_per_class` must be at most {largest}, the size of the largest class. "
                f"Received: min_per_class={min_per_class}"
            )
        if small:
            warnings.warn(left_out(small, least), stacklevel=2)
        sizes = np.diff(self.class_offsets)
        return self._derive(np.flatnonzero(sizes >= least).tolist())

    def with_rotations(self) -> ClassDataset:
        """Makes each rotation of a class by 0, 90, 180 and 270 degrees a class of its own.

        Returns:
            A `ClassDataset` of four times as many classes that shares the examples. Class
            `4 * c + r` is class `c` turned counter-clockwise by `r` quarter turns.

        Raises:
            ValueError: The examples are no square images, or have been rotated before.

        Example:
            >>> import numpy as np
            >>> toys = ClassDataset(np.zeros([2, 9, 9], np.uint8), ["cat", "dog"])
            >>> toys.with_rotations().class_names[:3]
            ('cat/rot000', 'cat/rot090', 'cat/rot180')
        """
        shape = self.example_shape
        if isinstance(shape, dict) or len(shape) not in (2, 3) or shape[0] != shape[1]:
            raise ValueError(
                "Only square images, [height, width] or [height, width, channels], can be rotated. "
                f"Received: example_shape={shape}"
            )
        if self.quarter_turns.any():
            raise ValueError("The classes of this data set are rotated already.")
        turned = self._derive(np.repeat(np.arange(self.num_classes), 4).tolist())
        turned.quarter_turns = np.tile(np.arange(4, dtype=np.uint8), self.num_classes)
        turned.class_names = tuple(
            f"{name}/rot{90 * turns:03d}" for name in self.class_names for turns in range(4)
        )
        return turned

    def _derive(self, classes: Sequence[int]) -> ClassDataset:
        """The data set of these classes, which may repeat; nothing is checked again."""
        chosen = np.asarray(classes, np.int64)
        starts, sizes = self.class_offsets[chosen], np.diff(self.class_offsets)[chosen]
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.class_indices = np.concatenate(
            [self.class_indices[i : i + n] for i, n in zip(starts, sizes, strict=True)]
        )
        other.class_offsets = _offsets(sizes)
        other.quarter_turns = self.quarter_turns[chosen]
        other.class_names = tuple(self.class_names[c] for c in classes)
        other.groups = None if self.groups is None else tuple(self.groups[c] for c in classes)
        return other


def _offsets(sizes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _as_array(argument: str, values: object) -> Array:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise TypeError(
            f"`{argument}` must be an array, or a list of entries of one shape. Received: a "
            f"{type(values).__name__} ({error})"
        ) from error


def _check_names(argument: str, names: Sequence[str], classes: Array) -> tuple[str, ...]:
    if isinstance(names, str) or len(names) != len(classes):
        raise ValueError(
            f"`{argument}` must have one entry for each of the {len(classes)} classes that occur "
            f"in `labels`. Received: {len(names)} entries"
        )
    checked = tuple(str(name) for name in names)
    for name in checked:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"`{argument}` must be texts that UTF-8 can spell. Received: {name!r}"
            ) from None
    return checked


def _check_labels(labels: npt.ArrayLike, examples: int) -> Array:
    checked = _as_array("labels", labels)
    if checked.ndim != 1:
        raise ValueError(
            "`labels` must have one axis, one class number or name for each example. "
            f"Received: labels of shape {checked.shape}"
        )
    if len(checked) != examples:
        raise ValueError(
            "`examples` and `labels` must have the same length. "
            f"Received: {examples} examples, {len(checked)} labels"
        )
    if checked.dtype == object and all(isinstance(label, str) for label in checked):
        return checked.astype(str)
    if checked.dtype.kind == "S":
        return np.char.decode(checked)
    if checked.dtype.kind not in "biuU":
        raise TypeError(
            f"`labels` must be integers or strings. Received: labels of type {checked.dtype}"
        )
    return checked


def _check_inputs(examples: Any) -> Any:
    """Return the examples, of each input where there are several."""
    if not isinstance(examples, Mapping):
        return _check_examples(examples)
    check_names("examples", examples)
    checked = {}
    for name, part in examples.items():
        try:
            checked[name] = _check_examples(part)
        except (TypeError, ValueError) as error:
            raise type(error)(f"Input {name!r}: {error}") from error
    sizes = {name: len(part) for name, part in checked.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"`examples` must have as many examples of each input. Received: {sizes}")
    return checked


def _check_examples(examples: Any) -> Any:
    if isinstance(examples, Shards):  # which has what is needed of an array
        return examples
    if not isinstance(examples, np.ndarray):
        if not hasattr(examples, "__len__") or isinstance(examples, (Mapping, set, str, bytes)):
            raise TypeError(
                "`examples` must be an array, a list of arrays or strings, or a dict of such. "
                f"Received: examples={examples!r}"
            )
        if len(examples) and all(isinstance(example, str) for example in examples):
            texts = np.empty(len(examples), object)  # np.array would pad all to the longest
            texts[:] = list(examples)
            return texts
        examples = _as_array("examples", examples)
    if examples.ndim == 0 or len(examples) == 0:
        raise ValueError(
            "`examples` must hold at least one example. "
            f"Received: examples of shape {examples.shape}"
        )
    if examples.dtype.kind == "U" and examples.ndim == 1:
        return examples
    if examples.dtype == object and all(isinstance(example, str) for example in examples):
        return examples
    if examples.dtype.kind not in "biuf":
        raise TypeError(
            f"`examples` must be numbers or strings. Received: examples of type {examples.dtype}"
        )
    if examples.ndim == 1 or 0 in examples.shape:
        raise ValueError(
            "`examples` must have the shape [examples, ...], with an axis for what makes up one "
            f"example. Received: examples of shape {examples.shape}"
        )
    # Whole numbers along one axis, the tokens of a text for instance, may be anything; so may those
    # along two, a series' for instance, unless they are floats as large as pixels of a square.
    square = examples.ndim == 3 and examples.shape[1] == examples.shape[2] >= _SMALLEST_SQUARE
    floats = examples.dtype.kind == "f"
    images = (examples.ndim == 4 and examples.shape[3] in (1, 3, 4)) or (floats and square)
    scanned = floats or (images and examples.dtype.kind in "iu")
    if scanned and examples.dtype != np.uint8 and not isinstance(examples, np.memmap):
        _check_numbers(examples, images)
    return examples


def _check_numbers(examples: Array, images: bool) -> None:
    """Raises on NaN, infinities, and images of 0..255 that should have been uint8."""
    at_once = max(1, _SCANNED_AT_ONCE // examples[0].size)
    bytes_so_far, largest = images, 0.0
    for start in range(0, len(examples), at_once):
        chunk = examples[start : start + at_once]
        finite = np.isfinite(chunk)
        if not finite.all():
            bad = start + int(np.argmin(finite.reshape(len(chunk), -1).all(axis=1)))
            raise ValueError(
                f"`examples` must be finite. Received: NaN or infinity in examples[{bad}]"
            )
        if bytes_so_far:
            bytes_so_far = bool(((chunk >= 0) & (chunk <= 255) & (chunk == np.floor(chunk))).all())
            largest = max(largest, float(chunk.max()))
    if bytes_so_far and largest > 1:
        raise ValueError(
            "`examples` of whole numbers from 0 to 255 look like images, which must be of type "
            "uint8 (they are scaled when episodes are drawn), or floats scaled to [0, 1]. Pass "
            f"`examples.astype(np.uint8)`. Received: {examples.dtype} up to {largest:g}"
        )
