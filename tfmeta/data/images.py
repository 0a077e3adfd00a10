"""Image files as arrays, all made in the same way wherever they come from."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from tfmeta.checks import check_count, check_size
from tfmeta.choices import SUFFIXES as SUFFIXES
from tfmeta.data.changes import IN_WORDS, warn_changes
from tfmeta.data.decoding import decode
from tfmeta.data.pages import Page, has_pages, may_have_pages, pages_of
from tfmeta.data.resizing import RESAMPLING as RESAMPLING
from tfmeta.data.resizing import prepare as prepare
from tfmeta.data.resizing import prepare_floats
from tfmeta.types import Array

DTYPES = ("uint8", "uint16", "float32")
# What is done, and said, where nobody has chosen.
_DEFAULTS = {"dtype": "uint8", "alpha": False, "pages": "first"}
# What files of these names may hold. Pillow would also open others by their content, of which some
# are programs: it has PostScript run.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Decoded ahead of the one image that is asked for: so many images, of so many bytes.
CHUNK = 1024
AHEAD = 1 << 30
# What an image takes at most while it is decoded, converted, turned and resized.
_BYTES_PER_PIXEL = 16


def read_image(
    path: str | os.PathLike[str] | BinaryIO,
    size: int | tuple[int, int] | None = None,
    *,
    grayscale: bool = False,
    invert: bool = False,
    resample: str = "lanczos",
    dtype: str | None = None,
    alpha: bool | None = None,
    page: int | None = None,
) -> Array:
    """Reads one image as an array of shape `[height, width, channels]`.

    A camera's orientation tag is obeyed. Where something of the image is lost there is a warning
    that says what would keep it; one who has said `dtype`, `alpha` or `page` gets none.

    Args:
        path: An image file: BMP, GIF, JPEG, PBM, PGM, PNG, PPM, TIFF or WebP, whatever its name; or
            what is in one, as a binary file object.
        size: Side of the square, or `(height, width)`, to which the image is resized (its
            proportions are not kept). `None` leaves the size as it is.
        grayscale: One channel when `True`, red, green and blue otherwise.
        invert: Whether to turn `v` into `255 - v`, or what is the same of another type, so that
            dark ink on paper becomes bright.
        resample: `"lanczos"`, `"area"` or `"bilinear"`; all three average over the pixels that
            they shrink.
        dtype: `"uint8"`, of 0..255, is the default: images of 16 bits are brought to 8.
            `"uint16"`, of 0..65535, keeps them, and those of 8 bits are multiplied by 257.
            `"float32"` is between 0 and 1; but floats of a file, and integers of 32 bits or with a
            sign, have no agreed range and are taken as they are.
        alpha: Whether there is one channel more, the opacity. If not, which is the default, images
            are laid on white paper.
        page: Which page of a document or frame of an animation, from 0, the default.

    Returns:
        An array of shape `[height, width, 1]` or `[height, width, 3]`; with `alpha`, of 2 or 4
        channels.

    Raises:
        FileNotFoundError: `path` is not a file.
        TypeError: `size` is neither an integer nor a pair of them.
        ValueError: `path` cannot be read as an image, for instance because it is truncated, or not
            as `dtype`; or another argument is not one of the values above.

    Example:

    ```python
    drawing = read_image("cat.png", size=28, grayscale=True, invert=True)
    drawing.shape    # (28, 28, 1)
    ```
    """
    image, done = _read(
        path,
        lambda pixels: None,
        size=size,
        grayscale=grayscale,
        invert=invert,
        resample=resample,
        dtype=dtype,
        alpha=alpha,
        page=page,
    )
    warn_lost(Counter(done), 1, stacklevel=3, hint_of_pages="page")
    return image


def _read(
    path: str | os.PathLike[str] | BinaryIO,
    admit: Callable[[int], None],
    *,
    size: int | tuple[int, int] | None = None,
    grayscale: bool = False,
    invert: bool = False,
    resample: str = "lanczos",
    dtype: str | None = None,
    alpha: bool | None = None,
    pages: str | None = None,
    page: int | None = None,
) -> tuple[Array, frozenset[str]]:
    """Read an image, and return what was lost that nobody has chosen to lose.

    `admit` is told the number of its pixels before they are decoded.
    """
    check_image_options(size, resample, dtype, alpha, pages)
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if name is not None and not os.path.isfile(name):
        raise FileNotFoundError(f"`path` must be an image file. Received: path={name!r}")
    number = path.number if isinstance(path, Page) else check_count("page", page or 0, 0)
    kind = dtype or _DEFAULTS["dtype"]
    source: Any = path if name is None else name

    def opened() -> Image.Image:
        with contextlib.ExitStack() as unless_it_is_returned:
            image = unless_it_is_returned.enter_context(Image.open(source, formats=FORMATS))
            if number:
                image.seek(number)
            unless_it_is_returned.pop_all()
        return image

    several = False
    try:
        with contextlib.ExitStack() as stack:
            image = stack.enter_context(opened())
            is_asked = page is None and pages != "first" and not isinstance(path, Page)
            if is_asked and may_have_pages(image):
                several = _has_several_pages(opened, must_count=pages == "all")
                image = stack.enter_context(opened())
            pixels, done = decode(
                image, opened, admit, grayscale=grayscale, alpha=bool(alpha), dtype=str(kind)
            )
        if invert and "as they are" in done:
            raise ValueError("`invert` needs numbers of an agreed range")
    # Pillow's decoders raise a dozen types (OSError, SyntaxError, struct.error, zlib.error, ...).
    except Exception as error:
        what = "a file object" if name is None else repr(name)
        of = f", page {number}" if number else ""
        raise ValueError(f"Not a readable image: {what}{of} ({error})") from error
    if kind == "uint8":
        made = prepare(pixels[None], size=size, invert=invert, resample=resample)[0]
    else:
        made = prepare_floats(
            pixels,
            size=size,
            invert=invert,
            resample=resample,
            dtype=str(kind),
            bounded="as they are" not in done,
        )
    chosen = {"bits": dtype, "transparent": alpha}
    lost = {what for what in done if chosen.get(what) is None} | ({"pages"} if several else set())
    return made, frozenset(lost)


def _has_several_pages(opened: Callable[[], Image.Image], must_count: bool) -> bool:
    # Opened for it alone, so that what is damaged in a later page leaves the first as it is.
    try:
        with opened() as image:
            return len(pages_of(image)) > 1 if must_count else has_pages(image)
    except Exception:
        if must_count:
            raise
        return True


def read_images(
    paths: Sequence[str | os.PathLike[str]],
    *,
    skip_unreadable: bool = False,
    of: str = "",
    **options: Any,
) -> tuple[Array, list[int]]:
    """Reads many image files into one array, in threads and in the order of `paths`.

    Args:
        paths: The image files, or pages of such.
        skip_unreadable: Leaves out files that cannot be read, with one warning that names them,
            instead of raising an error.
        of: What the images are of, for the warning of what is lost.
        **options: As for `read_image`.

    Returns:
        An array `[images, height, width, channels]` and the positions in `paths` of the
        images it holds.

    Raises:
        ValueError: An image cannot be read, or its size differs from the others'.
    """
    images: Array | None = None
    kept: list[int] = []
    unreadable: list[str] = []
    lost: Counter[str] = Counter()
    for i, image in each_image(paths, skip_unreadable=skip_unreadable, lost=lost, **options):
        if image is None:
            unreadable.append(named(paths[i]))
            continue
        if images is None:
            images = np.empty((len(paths), *image.shape), image.dtype)
        if image.shape != images.shape[1:]:
            raise different_sizes(
                f"{named(paths[kept[0]])!r} of shape {images.shape[1:]}",
                f"{named(paths[i])!r} of shape {image.shape}",
            )
        images[len(kept)] = image
        kept.append(i)
    warn_unreadable(unreadable, stacklevel=5)
    warn_lost(lost, len(kept), stacklevel=5, of=of)
    if images is None:
        raise ValueError(f"None of the {len(paths)} images can be read.")
    return images[: len(kept)], kept


def stack_images(paths: Sequence[str | os.PathLike[str]], **options: Any) -> Array:
    """Reads a few image files of one size into one array, as `read_images` does.

    Args:
        paths: The image files.
        **options: As for `read_image`.

    Raises:
        ValueError: An image cannot be read.
    """
    images, lost = [], Counter[str]()
    for path in paths:
        image, done = _read(path, lambda pixels: None, **options)
        images.append(image)
        lost.update(done)
    warn_lost(lost, len(images), stacklevel=4)
    return np.stack(images)


def each_image(
    paths: Sequence[str | os.PathLike[str]],
    *,
    start: int = 0,
    skip_unreadable: bool = False,
    lost: Counter[str] | None = None,
    **options: Any,
) -> Iterator[tuple[int, Array | None]]:
    """Reads many image files, in threads and in the order of `paths`.

    Args:
        paths: The image files, or pages of such.
        start: The position in `paths` to begin with.
        skip_unreadable: Gives `None` for a file that cannot be read, instead of raising an error.
        lost: Is told what was lost of the images that were yielded.
        **options: As for `read_image`.

    Yields:
        The position in `paths`, and the image.

    Raises:
        ValueError: An image cannot be read.
    """
    chosen = {name: options.get(name) for name in ("size", "dtype", "alpha", "pages")}
    check_image_options(resample=options.get("resample", "lanczos"), **chosen)
    memory = _Memory(start)
    lost = Counter() if lost is None else lost

    def read(position: int) -> tuple[Array | None, frozenset[str]]:
        image, done = None, frozenset[str]()
        try:
            image, done = _read(
                paths[position], lambda pixels: memory.take(position, pixels), **options
            )
        # A link that leads nowhere is a FileNotFoundError.
        except (ValueError, FileNotFoundError) as error:
            if not skip_unreadable:
                hint = "Leave out such files with skip_unreadable=True (--skip-unreadable)."
                raise ValueError(f"{error}. {hint}") from error
        finally:
            memory.keep(position, 0 if image is None else image.nbytes)
        return image, done

    # Worth it for photographs; small drawings are decoded too fast to gain by threads.
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        ahead: deque[Future[tuple[Array | None, frozenset[str]]]] = deque()
        for i in range(start, len(paths)):
            while len(ahead) < min(CHUNK, len(paths) - i):
                ahead.append(pool.submit(read, i + len(ahead)))
            image, done = ahead.popleft().result()
            lost.update(done)
            yield i, image
            memory.next()
    finally:
        memory.close()
        pool.shutdown(cancel_futures=True)


class _Memory:
    """Has threads that decode ahead wait while what they hold together would be too much.

    The image that is asked for next is always let in, or it would wait for those behind it.
    """

    def __init__(self, start: int) -> None:
        self._wanted = start
        self._bytes: dict[int, int] = {}  # of each image, until the next one is asked for
        self._sum = 0
        self._changed = Condition()

    def take(self, position: int, pixels: int) -> None:
        needed = pixels * _BYTES_PER_PIXEL
        with self._changed:
            self._changed.wait_for(lambda: position <= self._wanted or self._sum + needed <= AHEAD)
            self._set(position, needed)

    def keep(self, position: int, size: int) -> None:
        """The image is decoded, and has so many bytes."""
        with self._changed:
            self._set(position, size)

    def next(self) -> None:
        with self._changed:
            self._set(self._wanted, 0)
            self._wanted += 1

    def close(self) -> None:
        """Nothing more is asked for: nobody waits any longer."""
        with self._changed:
            self._wanted = 2**63
            self._changed.notify_all()

    def _set(self, position: int, size: int) -> None:
        self._sum += size - self._bytes.pop(position, 0)
        if size:
            self._bytes[position] = size
        self._changed.notify_all()


def warn_unreadable(paths: Sequence[str], stacklevel: int, what: str = "image(s)") -> None:
    """Warns of the files that were left out, if there are any."""
    if paths:
        shown = ", ".join(map(in_words, paths[:10])) + (", ..." if len(paths) > 10 else "")
        warnings.warn(f"Left out {len(paths)} unreadable {what}: {shown}", stacklevel=stacklevel)


def warn_lost(
    lost: Counter[str], number: int, stacklevel: int, of: str = "", hint_of_pages: str = "pages"
) -> None:
    """Warns once of what was lost of so many images, if anything was.

    Args:
        lost: As `each_image` has told.
        number: How many images there are.
        stacklevel: As for `warnings.warn`.
        of: What they are of.
        hint_of_pages: The argument that chooses pages.
    """
    words = dict(IN_WORDS)
    if hint_of_pages == "page":
        words["pages"] = words["pages"].partition("(")[0] + "(page=1 reads the second)"
    if lost["as they are"] == number:  # which was asked for, and there are no others
        del words["as they are"]
    warn_changes(lost, number, words, f"image(s){of}", stacklevel + 1)


def named(path: str | os.PathLike[str]) -> str:
    """Returns the name of a file, and the page that is meant."""
    return os.fspath(path) + (f", page {path.number}" if isinstance(path, Page) else "")


def in_words(path: str | os.PathLike[str]) -> str:
    """Returns a path as a text that can be printed and encoded, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def different_sizes(one: str, other: str) -> ValueError:
    """The error about two images that cannot be put into one array."""
    return ValueError(
        "Images of different sizes need `size`, to which they are resized. "
        f"Received: size=None, {one} and {other}"
    )


def check_image_options(
    size: object,
    resample: object,
    dtype: object = None,
    alpha: object = None,
    pages: object = None,
) -> tuple[int, int] | None:
    """Returns `size` as a pair, or raises the error that names the argument at fault."""
    known: dict[str, tuple[object, Sequence[str]]] = {
        "resample": (resample, tuple(RESAMPLING)),
        "dtype": (_DEFAULTS["dtype"] if dtype is None else dtype, DTYPES),
        "pages": (_DEFAULTS["pages"] if pages is None else pages, ("first", "all")),
    }
    for name, (value, choices) in known.items():
        if value not in choices:
            among = ", ".join(map(repr, choices))
            raise ValueError(f"`{name}` must be one of {among}. Received: {name}={value!r}")
    if not isinstance(alpha, bool | None):
        raise TypeError(f"`alpha` must be True or False. Received: alpha={alpha!r}")
    return check_size(size)


def without_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options of images but those that are what is done where nobody chooses."""
    return {
        name: value
        for name, value in options.items()
        if name not in _DEFAULTS or value not in (None, _DEFAULTS[name])
    }
