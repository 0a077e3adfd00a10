"""Lists of classes that somebody has written: which to train on, to validate with and to test.

A list is a text file with the name of a class on each line, as `tfmeta train` says them: the path
of a sub-folder from the folder of images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tfmeta.choices import did_you_mean
from tfmeta.setting_values import SPLITS

# Bytes of a file: as many as settings may have.
_LONGEST = 2**24


class Line(NamedTuple):
    """The name of a class, and where it stands."""

    name: str
    file: Path
    number: int

    def __str__(self) -> str:
        """Return the place."""
        return f"'{self.file}', line {self.number}"


class ClassLists:
    """The lists of the three parts.

    Args:
        files: A text file for each of "train", "validation" and "test".

    Raises:
        FileNotFoundError: If one is not there.
        ValueError: If one is no text in UTF-8, is too long or names no class, or a class is named
            twice; the line is said.

    Example:
        >>> lists = ClassLists({part: Path("splits", f"{part}.txt") for part in SPLITS})
        >>> lists.checked(images.class_names)["test"]
        ['dog', 'eel']
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._lines = {part: list(_lines(files[part])) for part in SPLITS}
        seen: dict[str, Line] = {}
        for part, lines in self._lines.items():
            if not lines:
                raise ValueError(f"'{files[part]}' must name at least one class. Received: none")
            for line in lines:
                if line.name in seen:
                    raise ValueError(
                        f"Each class must be named once, in one list. Received: {line.name!r} "
                        f"in {line} and in {seen[line.name]}"
                    )
                seen[line.name] = line

    def checked(self, known: Collection[str]) -> dict[str, list[str]]:
        """Return the names of the classes of each part, which a data set has.

        Args:
            known: The classes of the data set.

        Raises:
            ValueError: If there is none of a name; file and line are said.
        """
        unknown = [line for lines in self._lines.values() for line in lines]
        unknown = [line for line in unknown if line.name not in known]
        if unknown:
            first, more = unknown[0], len(unknown) - 1
            others = f" (and {more} more of them)" if more else ""
            raise ValueError(
                f"{first} must name one of the {len(known)} classes of the folder. Received: "
                f"{first.name!r}{others}.{did_you_mean(first.name, known)}"
            )
        return {part: [line.name for line in lines] for part, lines in self._lines.items()}


def files_of(folder: Path) -> dict[str, Path]:
    """Return the file of each part in a folder: `train.txt`, `validation.txt` and `test.txt`."""
    return {part: folder / f"{part}.txt" for part in SPLITS}


def _lines(file: Path) -> Iterator[Line]:
    """Return the lines of a file that are not blank."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no list of classes '{file}'")
    if (size := file.stat().st_size) > _LONGEST:
        raise ValueError(f"'{file}' must have at most {_LONGEST} bytes. Received: {size} bytes")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = 1 + error.object[: error.start].count(b"\n")
        raise ValueError(
            f"'{file}' must be text in UTF-8. Received: other bytes in line {number}"
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Line(line.strip(), file, number)
