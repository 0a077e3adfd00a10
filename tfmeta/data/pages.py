"""Files with several images in them: the pages of a document, or the frames of an animation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from PIL import Image

from tfmeta.foreign import of_pillow

# A JPEG file may have others too, which are a preview or how far away things are.
_OF_PAGES = ("GIF", "PNG", "TIFF", "WEBP")


@dataclasses.dataclass(frozen=True)
class Page(os.PathLike[str]):
    """One of the pages of a file.

    Attributes:
        path: The file.
        number: As Pillow counts, from 0.
    """

    path: str
    number: int

    def __fspath__(self) -> str:
        """Return the path of the file."""
        return self.path


def pages_of(image: Image.Image) -> list[int]:
    """Returns the numbers of an opened image's pages, and leaves it at the first one.

    Those that are another one made smaller, or a mask of it, are none.
    """
    if image.format not in _OF_PAGES or not getattr(image, "is_animated", False):
        return [0]
    if image.format != "TIFF":
        return list(range(image.n_frames))  # type: ignore[attr-defined]
    found = []
    for number in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(number)
        if number == 0 or not of_pillow.is_beside(image):
            found.append(number)
    image.seek(0)
    return found


def has_pages(image: Image.Image) -> bool:
    """Returns whether an opened image has several pages, which takes less than to count them."""
    if image.format == "TIFF":
        return len(pages_of(image)) > 1
    return image.format in _OF_PAGES and bool(getattr(image, "is_animated", False))


def may_have_pages(image: Image.Image) -> bool:
    """Returns whether it is worth looking for more pages, which moves in the file."""
    return image.format == "GIF" or (
        image.format in _OF_PAGES and bool(getattr(image, "is_animated", False))
    )


def each_page(
    files: Sequence[str], labels: Sequence[str], formats: tuple[str, ...]
) -> tuple[list[str | Page], list[str]]:
    """Returns files of several pages as so many, with their labels.

    Args:
        files: Image files.
        labels: The class of each.
        formats: Which kinds of files Pillow may open.
    """
    pages: list[str | Page] = []
    of_pages: list[str] = []
    for file, label in zip(files, labels, strict=True):
        try:
            with Image.open(file, formats=formats) as image:
                numbers = pages_of(image)
        # What is wrong is said, with the name of the file, when it is read.
        except Exception:
            numbers = [0]
        pages += [file] if numbers == [0] else [Page(file, number) for number in numbers]
        of_pages += [label] * len(numbers)
    return pages, of_pages
