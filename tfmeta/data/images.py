"""Image files as uint8 arrays, all made in the same way wherever they come from."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from tfmeta.checks import check_size
from tfmeta.choices import SUFFIXES as SUFFIXES

ImageArray = npt.NDArray[np.uint8]

RESAMPLING = {
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
}
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
) -> ImageArray:
    """Reads one image as a uint8 array of shape `[height, width, channels]`.

    Images of 1, 8 and 16 bits per channel are brought to 0..255, transparent ones are laid on
    white paper, and a camera's orientation tag is obeyed.

    Args:
        path: An image file: BMP, GIF, JPEG, PBM, PGM, PNG, PPM, TIFF or WebP, whatever its name; or
            what is in one, as a binary file object.
        size: Side of the square, or `(height, width)`, to which the image is resized (its
            proportions are not kept). `None` leaves the size as it is.
        grayscale: One channel when `True`, red, green and blue otherwise.
        invert: Whether to turn `v` into `255 - v`, so that dark ink on paper becomes bright.
        resample: `"lanczos"`, `"area"` or `"bilinear"`; all three average over the pixels that
            they shrink.

    Returns:
        A uint8 array of shape `[height, width, 1]` or `[height, width, 3]`.

    Raises:
        FileNotFoundError: `path` is not a file.
        TypeError: `size` is neither an integer nor a pair of them.
        ValueError: `path` cannot be read as an image, for instance because it is truncated; or
            another argument is not one of the values above.

    Example:

    ```python
    drawing = read_image("cat.png", size=28, grayscale=True, invert=True)
    drawing.shape    # (28, 28, 1)
    ```
    """
    return _read(
        path, lambda pixels: None, size=size, grayscale=grayscale, invert=invert, resample=resample
    )


def _read(
    path: str | os.PathLike[str] | BinaryIO,
    admit: Callable[[int], None],
    *,
    size: int | tuple[int, int] | None = None,
    grayscale: bool = False,
    invert: bool = False,
    resample: str = "lanczos",
) -> ImageArray:
    """Read an image; `admit` is told the number of its pixels before they are decoded."""
    check_image_options(size, resample)
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if name is not None and not os.path.isfile(name):
        raise FileNotFoundError(f"`path` must be an image file. Received: path={name!r}")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            admit(opened.width * opened.height)
            opened.load()
            image = _to_eight_bits(opened, "L" if grayscale else "RGB")
    # Pillow's decoders raise a dozen types (OSError, SyntaxError, struct.error, zlib.error, ...).
    except Exception as error:
        what = "a file object" if name is None else repr(name)
        raise ValueError(f"Not a readable image: {what} ({error})") from error
    pixels = np.asarray(image)
    stack = pixels.reshape(1, *pixels.shape[:2], -1)
    made: ImageArray = prepare(stack, size=size, invert=invert, resample=resample)[0]
    return made


def prepare(
    images: ImageArray,
    *,
    size: int | tuple[int, int] | None = None,
    grayscale: bool = False,
    invert: bool = False,
    resample: str = "lanczos",
) -> ImageArray:
    """Resizes and converts a stack of images at once.

    Args:
        images: A uint8 array `[n, height, width, channels]` of 1, 3 or 4 channels.
        size, grayscale, invert, resample: As for `read_image`; one channel stays one.

    Returns:
        A new uint8 array of the same layout.
    """
    shape = check_image_options(size, resample)
    n, height, width, channels = images.shape
    if grayscale and channels > 1:
        colour = Image.fromarray(images.reshape(n * height, width, channels))
        images = np.asarray(colour.convert("L")).reshape(n, height, width, 1)
    if shape is not None and shape != (height, width):
        # First the width, then the height with the axes exchanged: the two passes that Pillow
        # makes of every single image, to the bit, but each a single call for the stack.
        images = _resize_width(images, shape[1], resample).swapaxes(1, 2)
        images = _resize_width(images, shape[0], resample).swapaxes(1, 2)
    return 255 - images if invert else np.ascontiguousarray(images)


def _resize_width(images: ImageArray, width: int, resample: str) -> ImageArray:
    n, height, _, channels = images.shape
    one_below_the_other = images.reshape(n * height, -1, channels)
    if channels == 1:
        one_below_the_other = one_below_the_other[:, :, 0]
    resized = Image.fromarray(one_below_the_other).resize((width, n * height), RESAMPLING[resample])
    return np.asarray(resized).reshape(n, height, width, channels)


def read_images(
    paths: Sequence[str | os.PathLike[str]], *, skip_unreadable: bool = False, **options: Any
) -> tuple[ImageArray, list[int]]:
    """Reads many image files into one array, in threads and in the order of `paths`.

    Args:
        paths: The image files.
        skip_unreadable: Leaves out files that cannot be read, with one warning that names them,
            instead of raising an error.
        **options: As for `read_image`.

    Returns:
        A uint8 array `[images, height, width, channels]` and the positions in `paths` of the
        images it holds.

    Raises:
        ValueError: An image cannot be read, or its size differs from the others'.
    """
    images: ImageArray | None = None
    kept: list[int] = []
    unreadable: list[str] = []
    for i, image in each_image(paths, skip_unreadable=skip_unreadable, **options):
        if image is None:
            unreadable.append(os.fspath(paths[i]))
            continue
        if images is None:
            images = np.empty((len(paths), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise different_sizes(
                f"{os.fspath(paths[kept[0]])!r} of shape {images.shape[1:]}",
                f"{os.fspath(paths[i])!r} of shape {image.shape}",
            )
        images[len(kept)] = image
        kept.append(i)
    warn_unreadable(unreadable, stacklevel=5)
    if images is None:
        raise ValueError(f"None of the {len(paths)} images can be read.")
    return images[: len(kept)], kept


def each_image(
    paths: Sequence[str | os.PathLike[str]],
    *,
    start: int = 0,
    skip_unreadable: bool = False,
    **options: Any,
) -> Iterator[tuple[int, ImageArray | None]]:
    """Reads many image files, in threads and in the order of `paths`.

    Args:
        paths: The image files.
        start: The position in `paths` to begin with.
        skip_unreadable: Gives `None` for a file that cannot be read, instead of raising an error.
        **options: As for `read_image`.

    Yields:
        The position in `paths`, and the image.

    Raises:
        ValueError: An image cannot be read.
    """
    check_image_options(options.get("size"), options.get("resample", "lanczos"))
    memory = _Memory(start)

    def read(position: int) -> ImageArray | None:
        image = None
        try:
            image = _read(paths[position], lambda pixels: memory.take(position, pixels), **options)
        # A link that leads nowhere is a FileNotFoundError.
        except (ValueError, FileNotFoundError) as error:
            if not skip_unreadable:
                hint = "Leave out such files with skip_unreadable=True (--skip-unreadable)."
                raise ValueError(f"{error}. {hint}") from error
        finally:
            memory.keep(position, 0 if image is None else image.nbytes)
        return image

    # Worth it for photographs; small drawings are decoded too fast to gain by threads.
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        ahead: deque[Future[ImageArray | None]] = deque()
        for i in range(start, len(paths)):
            while len(ahead) < min(CHUNK, len(paths) - i):
                ahead.append(pool.submit(read, i + len(ahead)))
            yield i, ahead.popleft().result()
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


def in_words(path: str | os.PathLike[str]) -> str:
    """Returns a path as a text that can be printed and encoded, whatever bytes it is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def different_sizes(one: str, other: str) -> ValueError:
    """The error about two images that cannot be put into one array."""
    return ValueError(
        "Images of different sizes need `size`, to which they are resized. "
        f"Received: size=None, {one} and {other}"
    )


def _to_eight_bits(image: Image.Image, mode: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit PNG and TIFF: `convert` would clip at 255 instead of scaling.
        deep = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.rint(deep.clip(0, 255)).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("images of floats have no agreed range; save them as 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def check_image_options(size: object, resample: object) -> tuple[int, int] | None:
    """Returns `size` as a pair, or raises the error that names the argument at fault."""
    if resample not in RESAMPLING:
        known = ", ".join(map(repr, RESAMPLING))
        raise ValueError(f"`resample` must be one of {known}. Received: resample={resample!r}")
    return check_size(size)
