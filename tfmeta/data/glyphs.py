"""Letters of the fonts that matplotlib ships: images of a thousand classes without a download."""

from __future__ import annotations

import os
import unicodedata
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFont

from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.places import default_cache
from tfmeta.files import replacing

SIDE = 28
EXAMPLES = 20  # of each letter
_RECIPE = 1  # part of the cache's name: raise it whenever other images would come out
_FONTS_AT_LEAST = 12
_SCRIPTS = ("ARMENIAN", "CYRILLIC", "GEORGIAN", "GREEK", "LATIN")
# The fonts, in order, with the code points they may be asked for: those named cm* draw symbols
# in the places of all but the plain letters.
_ALL, _ASCII = range(0x110000), range(0x80)
_FONTS = (
    ("DejaVuSans*.ttf", _ALL),
    ("DejaVuSerif*.ttf", _ALL),
    ("STIXGeneral*.ttf", _ALL),
    *(
        (f"{name}.ttf", _ASCII)
        for name in ("cmr10", "cmti10", "cmtt10", "cmss10", "cmb10", "cmmi10")
    ),
)
_HEIGHT = 40  # of the fonts, in pixels
_INK = 20  # the longer side of a letter as it is shown, in pixels
# Letters that look the same, for the most part in different scripts, make tasks that nobody can
# solve. Distance: mean over fonts of |a - b|^2 / (|a|^2 + |b|^2). Below 0.03 are o in Latin,
# Cyrillic and Greek, or the two Greek breathings; above it Y with a breve and with a grave accent,
# or a capital and the small letter of the same form.
_SAME_BELOW = 0.03


def glyphs(cache_dir: str | os.PathLike[str] | None = None) -> ClassDataset:
    """Reads the letters from the cache, or draws them and fills it.

    Every class is a letter that at least 12 of the fonts contain, and each of its 20 examples is
    drawn in the next of these fonts, a little moved, turned, slanted and scaled. Letters are
    centred and brought to the same size, and of those that then look alike only the first is kept.

    Args:
        cache_dir: Where to keep the images; by default the folder in the environment variable
            `TFMETA_CACHE`, or else the one that the operating system has for such files.

    Returns:
        uint8 images `[n, 28, 28, 1]` of bright ink on black. A class is called by its Unicode name,
        such as `LATIN SMALL LETTER A`; groups are scripts.

    Example:

    ```python
    letters = glyphs()
    greek = letters.select([c for c, g in enumerate(letters.groups) if g == "GREEK"])
    ```
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "The letters of 'glyphs' are those of matplotlib's fonts: pip install matplotlib. "
            f"Received: {error}"
        ) from error
    folder = default_cache() if cache_dir is None else Path(cache_dir)
    file = folder / f"glyphs-{_RECIPE}-matplotlib-{matplotlib.__version__}.npz"
    cached = _read(file)
    if cached is None:
        cached = draw_all(Path(matplotlib.get_data_path()) / "fonts" / "ttf")
        _write(file, *cached)
    code_points, images = cached
    names = [unicodedata.name(chr(point)) for point in code_points]
    return ClassDataset(
        images.reshape(-1, SIDE, SIDE, 1),
        np.repeat(np.arange(len(names)), EXAMPLES),
        names,
        [name.split()[0] for name in names],
        description=f"glyphs[matplotlib {matplotlib.__version__}, {SIDE}x{SIDE}]",
    )


def draw_all(folder: Path) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
    """Draws every letter of the fonts in `folder`.

    Returns:
        The letters' code points `[letters]` and their images `[letters, 20, 28, 28]`.
    """
    letters = {
        point: drawings
        for point, drawings in sorted(_drawings(folder).items())
        if len(drawings) >= _FONTS_AT_LEAST
    }
    if not letters:
        raise FileNotFoundError(
            f"matplotlib's fonts are needed to draw glyphs, but its folder {str(folder)!r} does "
            "not hold them. Install matplotlib from PyPI or conda-forge."
        )
    kept = _distinct(list(letters.values()))
    points = np.array(list(letters), np.uint32)[kept]
    images = np.empty((len(points), EXAMPLES, SIDE, SIDE), np.uint8)
    variations = np.random.default_rng(0).uniform(-1, 1, (len(points), EXAMPLES, 5))
    for point, row, variation in zip(points, images, variations, strict=True):
        drawings = list(letters[int(point)].values())
        for i in range(EXAMPLES):
            row[i] = _show(drawings[i % len(drawings)], variation[i])
    return points, images


def _drawings(folder: Path) -> dict[int, dict[str, Image.Image]]:
    """The drawings of each letter by font, cropped to the ink."""
    from matplotlib.ft2font import FT2Font

    drawings: dict[int, dict[str, Image.Image]] = {}
    for pattern, allowed in _FONTS:
        for file in sorted(folder.glob(pattern)):
            # matplotlib reads which letters a font has, which Pillow cannot.
            present = sorted(p for p in FT2Font(str(file)).get_charmap() if p in allowed)
            font = ImageFont.truetype(str(file), _HEIGHT, layout_engine=ImageFont.Layout.BASIC)
            for point in present:
                if _is_letter(chr(point)):
                    drawing = _draw(font, chr(point))
                    if drawing is not None:
                        drawings.setdefault(point, {})[file.name] = drawing
    return drawings


def _is_letter(character: str) -> bool:
    """Whether it is a letter of one of the scripts, and no small raised one."""
    return (
        unicodedata.category(character) in ("Lu", "Ll", "Lt", "Lo")
        and unicodedata.name(character).split()[0] in _SCRIPTS
    )


def _draw(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    mask = font.getmask(character, mode="L")
    if 0 in mask.size:
        return None
    drawing = Image.frombytes("L", mask.size, bytes(mask))
    ink = drawing.getbbox()
    # Besides blanks, marks such as the iota subscript are left out: they would be blown up.
    if ink is None or max(ink[2] - ink[0], ink[3] - ink[1]) < _INK * 3 // 4:
        return None
    return drawing.crop(ink)


def _show(drawing: Image.Image, variation: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Shows a drawing centred in 28x28, changed by five numbers in [-1, 1] (none at 0)."""
    scale = 1 + 0.12 * variation[0]
    angle, slant = np.deg2rad(8) * variation[1], 0.12 * variation[2]
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shrink = 2 * _INK * scale / max(drawing.size)
    # Pillow asks where in the drawing each pixel shown comes from, so the inverse. Shown twice as
    # large at first, and then averaged down, because `transform` does not average.
    inverse = np.linalg.inv(shrink * rotation @ np.array([[1.0, slant], [0.0, 1.0]]))
    centre = SIDE + 2 * 1.5 * variation[3:]
    start = np.array(drawing.size) / 2 - inverse @ centre
    data = (inverse[0, 0], inverse[0, 1], start[0], inverse[1, 0], inverse[1, 1], start[1])
    shown = drawing.transform(
        (2 * SIDE, 2 * SIDE), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    return np.asarray(shown.reduce(2))


def _distinct(letters: list[dict[str, Image.Image]]) -> list[int]:
    """The positions of the letters that look like none before them."""
    fonts = sorted({font for drawings in letters for font in drawings})
    total = np.zeros((len(letters), len(letters)), np.float32)
    shared = np.zeros_like(total)
    for font in fonts:
        here = [i for i, drawings in enumerate(letters) if font in drawings]
        shown = np.stack([_show(letters[i][font], np.zeros(5)).ravel() for i in here])
        pixels = shown.astype(np.float32) / 255
        squares = (pixels * pixels).sum(axis=1)
        both = squares[:, np.newaxis] + squares
        total[np.ix_(here, here)] += 1 - 2 * pixels @ pixels.T / both
        shared[np.ix_(here, here)] += 1
    distance = np.divide(total, shared, out=np.full_like(total, np.inf), where=shared > 0)
    kept: list[int] = []
    for i in range(len(letters)):
        if not (distance[i, kept] < _SAME_BELOW).any():
            kept.append(i)
    return kept


def _read(file: Path) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]] | None:
    """The contents of the cache, or `None` if there is none or it is damaged."""
    if not file.exists():
        return None
    try:
        # Reading verifies the format's checksums.
        with file.open("rb") as opened, np.load(opened) as arrays:
            points, images = arrays["code_points"], arrays["images"]
        if images.shape != (len(points), EXAMPLES, SIDE, SIDE):
            raise ValueError(f"images of shape {images.shape}")
        return points, images
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"Drawing the glyphs again: {file} is damaged ({error})", stacklevel=4)
        return None


def _write(file: Path, code_points: npt.NDArray[np.uint32], images: npt.NDArray[np.uint8]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as beside:
            np.savez_compressed(beside, code_points=code_points, images=images)
    except OSError as error:
        message = f"The glyphs will be drawn again next time: {file} cannot be written ({error})"
        warnings.warn(message, stacklevel=4)
