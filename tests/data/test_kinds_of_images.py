"""Every kind of image file: its numbers are what was written, and what is lost is said, once."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.damage import damage
from tests.data.image_bytes import chunk, png, tiff, twelve_bits
from tests.data.test_cache import StopHereError, assert_same, contents, stop_after
from tfmeta.data import ClassDataset, EpisodeSampler, cache
from tfmeta.data.changes import IN_WORDS
from tfmeta.data.images import DTYPES, FORMATS, read_image
from tfmeta.setting_values import choices_of

H, W = 4, 6
RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, [H, W, 1], np.uint8)
COLOUR = RANDOM.integers(0, 256, [H, W, 3], np.uint8)
OPACITY = RANDOM.choice(np.array([0, 255], np.uint8), [H, W, 1])
DEEP = RANDOM.integers(0, 65536, [H, W, 4], np.uint16)
LUMA = np.array([0.299, 0.587, 0.114])

# ---- What Pillow writes: each of its modes in each of the formats that take it.


def in_colour(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(float), 3, axis=2) if values.shape[2] == 1 else values * 1.0


def on_white(values: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity / opacity.dtype.type(np.iinfo(opacity.dtype).max)
    return in_colour(values) * share + np.iinfo(values.dtype).max * (1 - share)


def of_palette() -> Image.Image:
    image = Image.fromarray(np.arange(H * W, dtype=np.uint8).reshape(H, W)).convert("P")
    image.putpalette(COLOUR.tobytes())
    return image


def of_inks() -> np.ndarray:
    inks = np.concatenate([COLOUR, GREY], axis=2).astype(float)
    return (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255


def of_luminance() -> np.ndarray:
    y, cb, cr = np.moveaxis(COLOUR.astype(float), 2, 0)
    cb, cr = cb - 128, cr - 128
    rgb = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
    return np.stack(rgb, axis=2).clip(0, 255)


# The image, what it is in red, green and blue on white paper, and what is lost.
MODES: dict[str, tuple[Callable[[], Image.Image], np.ndarray | None, set[str]]] = {
    "1": (lambda: Image.fromarray(GREY[..., 0] > 99), in_colour((GREY > 99) * 255), set()),
    "L": (lambda: Image.fromarray(GREY[..., 0]), in_colour(GREY), set()),
    "P": (of_palette, COLOUR * 1.0, set()),
    "RGB": (lambda: Image.fromarray(COLOUR), COLOUR * 1.0, set()),
    "LA": (
        lambda: Image.fromarray(np.dstack([GREY, OPACITY])),
        on_white(GREY, OPACITY),
        {"transparent"},
    ),
    "RGBA": (
        lambda: Image.fromarray(np.dstack([COLOUR, OPACITY])),
        on_white(COLOUR, OPACITY),
        {"transparent"},
    ),
    "CMYK": (
        lambda: Image.frombytes("CMYK", (W, H), np.dstack([COLOUR, GREY]).tobytes()),
        of_inks(),
        {"colours"},
    ),
    "YCbCr": (
        lambda: Image.frombytes("YCbCr", (W, H), COLOUR.tobytes()),
        of_luminance(),
        set(),
    ),
    # Which red is which of LAB depends on its white.
    "LAB": (lambda: Image.frombytes("LAB", (W, H), COLOUR.tobytes()), None, {"colours"}),
    "I;16": (lambda: Image.fromarray(DEEP[..., 0]), in_colour(DEEP[..., :1]) / 257, {"bits"}),
    "I": (
        lambda: Image.fromarray(DEEP[..., 0].astype(np.int32)),
        in_colour(DEEP[..., :1]) / 257,
        {"bits"},
    ),
    "F": (lambda: Image.fromarray(DEEP[..., 0].astype(np.float32)), None, set()),
}
# What a format does not keep when it is written, of which a reader cannot know.
NO_OPACITY = {("RGBA", "PPM"), ("RGBA", "JPEG"), ("LA", "PPM"), ("LA", "JPEG"), ("LA", "GIF")}
NO_RANGE = {("I", "TIFF"), ("F", "TIFF"), ("F", "PPM")}
TOLERANCE = {"JPEG": 5.0, "WEBP": 1.0}


def written(mode: str, kind: str) -> bytes | None:
    file = io.BytesIO()
    how: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    try:
        MODES[mode][0]().save(file, kind, **how.get(kind, {}))
    except (OSError, ValueError, KeyError):
        return None
    return file.getvalue()


def said(caught: list[warnings.WarningMessage]) -> set[str]:
    """Which of the words stand in the only warning there is."""
    assert len(caught) <= 1
    return {
        name
        for name, words in IN_WORDS.items()
        for warning in caught
        if re.escape(words.partition("(")[0][3:20]) in re.escape(str(warning.message))
    }


def read(content: bytes, **options: Any) -> tuple[np.ndarray, set[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels = read_image(io.BytesIO(content), **options)
    assert all(warning.filename == __file__ for warning in caught)
    return pixels, said(caught)


def test_every_mode_in_every_format_is_read_as_it_was_written() -> None:
    tried = 0
    for mode, (_, expected, lost) in MODES.items():
        for kind in FORMATS:
            content = written(mode, kind)
            if content is None:
                continue
            with Image.open(io.BytesIO(content)) as image:
                kept = image.mode
            if mode.startswith("I") and not kept.startswith("I"):
                continue  # cut to 8 bits when it was written
            case, tried = (mode, kind), tried + 1
            if case in NO_RANGE:
                with pytest.raises(ValueError, match=r"have no agreed range; dtype='float32' take"):
                    read_image(io.BytesIO(content))
                raw, _ = read(content, dtype="float32", grayscale=True)
                np.testing.assert_array_equal(raw, DEEP[..., :1].astype(np.float32), str(case))
                continue
            pixels, words = read(content)
            assert pixels.dtype == np.uint8, case
            if case in NO_OPACITY or (mode in ("LA", "RGBA") and kind == "BMP"):
                expected_here, lost_here = in_colour(COLOUR if mode == "RGBA" else GREY), set()
            else:
                expected_here, lost_here = expected, lost
            # A format that has not the mode may have been written in another.
            if lost == {"colours"} and kept not in ("CMYK", "LAB"):
                lost_here = set()
            assert words == lost_here, case
            if expected_here is not None:
                far = np.abs(pixels - expected_here).max()
                exact = 0.501 if mode not in ("CMYK", "YCbCr") else 1.001
                assert far <= TOLERANCE.get(kind, 0) + exact, (case, far)
    assert tried >= 28


# ---- What Pillow only reads.

TRANSPARENT = chunk(b"tRNS", DEEP[1, 2, :3].astype(">u2").tobytes())
GREY_TRANSPARENT = chunk(b"tRNS", DEEP[1, 2, :1].astype(">u2").tobytes())
SEEN = (DEEP[..., :3] != DEEP[1, 2, :3]).any(2, keepdims=True) * np.uint16(65535)
GREY_SEEN = (DEEP[..., :1] != DEEP[1, 2, :1]) * np.uint16(65535)
TWELVE = DEEP[..., :1] >> 4
UPSIDE = {274: [3]}
# The file, its numbers of 16 bits (grey is grey), and their opacity, if there is one.
DEEPER: dict[str, tuple[bytes, np.ndarray, np.ndarray | None]] = {
    "PNG grey": (png(DEEP[..., :1], 0), DEEP[..., :1], None),
    "PNG grey, one of it transparent": (
        png(DEEP[..., :1], 0, GREY_TRANSPARENT),
        DEEP[..., :1],
        GREY_SEEN,
    ),
    "PNG": (png(DEEP[..., :3], 2), DEEP[..., :3], None),
    "PNG, a colour transparent": (png(DEEP[..., :3], 2, TRANSPARENT), DEEP[..., :3], SEEN),
    "PNG with opacity": (png(DEEP, 6), DEEP[..., :3], DEEP[..., 3:]),
    "PPM": (b"P6 6 4 65535\n" + DEEP[..., :3].astype(">u2").tobytes(), DEEP[..., :3], None),
    "PPM of 1000": (
        b"P6 6 4 1000\n" + (DEEP[..., :3] % 1001).astype(">u2").tobytes(),
        np.rint((DEEP[..., :3] % 1001) / 1000 * 65535),
        None,
    ),
    "PGM": (b"P5 6 4 65535\n" + DEEP[..., :1].astype(">u2").tobytes(), DEEP[..., :1], None),
    "TIFF of 12 bits": (
        tiff(TWELVE, 1, packed=twelve_bits(TWELVE[..., 0]), bits=12),
        np.rint(TWELVE / 4095 * 65535),
        None,
    ),
    "TIFF of ink": (tiff(DEEP[..., :1], 0), 65535 - DEEP[..., :1], None),
    **{
        f"TIFF {order} {'deflated ' * deflate}{name}": (
            tiff(pixels, photometric, order, deflate=deflate, tags=tags),
            expected,
            opacity,
        )
        for order in "<>"
        for deflate in (False, True)
        for name, pixels, photometric, tags, expected, opacity in (
            ("grey", DEEP[..., :1], 1, {}, DEEP[..., :1], None),
            ("colour", DEEP[..., :3], 2, {}, DEEP[..., :3], None),
            ("upside down", DEEP[..., :3], 2, UPSIDE, DEEP[::-1, ::-1, :3], None),
            ("opacity", DEEP, 2, {338: [2]}, DEEP[..., :3], DEEP[..., 3:]),
        )
    },
}


@pytest.mark.parametrize("kind", DEEPER)
def test_numbers_of_16_bits_are_kept_if_that_is_asked_for(kind: str) -> None:
    content, numbers, opacity = DEEPER[kind]
    numbers = numbers.astype(np.uint16)
    whole = in_colour(numbers).astype(np.uint16)
    whole = np.dstack([whole, np.full_like(GREY_SEEN, 65535) if opacity is None else opacity])
    pixels, words = read(content, dtype="uint16", alpha=True)
    assert pixels.dtype == np.uint16
    assert not words
    np.testing.assert_array_equal(pixels, whole)
    pixels, words = read(content, dtype="float32", alpha=True)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, whole / 65535, atol=0.51 / 65535)
    # As they were, and with words for it.
    laid = in_colour(numbers) if opacity is None else on_white(numbers, opacity)
    pixels, words = read(content)
    assert pixels.dtype == np.uint8
    assert words == {"bits"} | (set() if opacity is None else {"transparent"})
    assert np.abs(pixels - laid / 257).max() <= 0.5 + 1e-9
    assert not read(content, dtype="uint8", alpha=False)[1]  # who says so knows
    grey, _ = read(content, dtype="uint16", alpha=False, grayscale=True)
    assert np.abs(grey[..., 0] - laid @ LUMA).max() <= 1.5
    inverted, _ = read(content, dtype="uint16", alpha=True, invert=True)
    np.testing.assert_array_equal(inverted, np.dstack([65535 - whole[..., :3], whole[..., 3:]]))


REFUSED: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "planes": (tiff(DEEP[..., :3], 2, planes=True), {}, "in planes cannot be read; save it as PNG"),
    "grey with opacity": (png(DEEP[..., :2], 4), {"dtype": "uint16"}, r"kind \(RGBA\) cannot be"),
    "inks": (tiff(DEEP, 5), {"dtype": "uint16"}, r"this kind \(CMYK\) cannot be read as dtype='ui"),
    "signed": (tiff(DEEP[..., :1].astype(np.int16), 1), {}, "signed integers have no agreed range"),
    "signed 8 bits": (tiff(DEEP[..., :1].astype(np.int8), 1), {}, "signed integers have no agree"),
    "32 bits": (tiff(DEEP[..., :1].astype(np.uint32), 1), {}, "of 32 bits have no agreed range; d"),
    "large": (
        tiff(DEEP[..., :1].astype(np.uint32) * 65537, 1),
        {"dtype": "float32"},
        "integers that float32 has no numbers for",
    ),
    "NaN": (
        tiff(np.where(SEEN, np.nan, 1).astype(np.float32), 1),
        {"dtype": "float32"},
        "holds a NaN or an infinity",
    ),
    "no range to invert": (
        tiff(DEEP[..., :1].astype(np.float32), 1),
        {"dtype": "float32", "invert": True},
        "`invert` needs numbers of an agreed range",
    ),
    "64 bits": (tiff(DEEP[..., :1].astype(np.float64), 1), {"dtype": "float32"}, "cannot identify"),
    "a page too few": (png(DEEP[..., :3], 2), {"page": 1}, "a file object, page 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_kept_is_refused(kind: str) -> None:
    content, options, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        read_image(io.BytesIO(content), **options)


def test_plain_files_of_numbers_as_text() -> None:
    assert read(b"P1 2 1 1 0")[0][0, :, 0].tolist() == [0, 255]
    assert read(b"P2 3 1 15 0 1 15", grayscale=True)[0].ravel().tolist() == [0, 17, 255]
    pixels, words = read(b"P2 3 1 1000 0 1 1000", grayscale=True, dtype="uint16")
    assert pixels.ravel().tolist() == [0, 66, 65535]
    assert not words
    pixels, words = read(b"P3 1 1 1000 0 500 1000")
    assert pixels.ravel().tolist() == [0, 128, 255]
    assert words == {"bits"}
    with pytest.raises(ValueError, match=r"PPM of 16 bits and of this kind \(RGB\) cannot be read"):
        read_image(io.BytesIO(b"P3 1 1 1000 0 500 1000"), dtype="uint16")


def test_integers_and_floats_without_a_range_are_taken_as_they_are() -> None:
    for numbers in (
        DEEP[..., :1].astype(np.int8),
        DEEP[..., :1].astype(np.int16),
        DEEP[..., :1].astype(np.int32) * -65536,
        DEEP[..., :1].astype(np.uint32) * 65536,  # more than an int32 holds
        RANDOM.normal(size=[H, W, 1]).astype(np.float32),
    ):
        pixels, words = read(tiff(numbers, 1), dtype="float32", grayscale=True)
        np.testing.assert_array_equal(pixels, numbers.astype(np.float32))
        assert not words


def test_channels_beside_the_colours_are_told_of() -> None:
    four = np.dstack([COLOUR, GREY])
    pixels, words = read(tiff(four, 2, tags={338: [0]}))
    np.testing.assert_array_equal(pixels, COLOUR)
    assert words == {"channels"}
    assert read(tiff(DEEP, 2, tags={338: [0]}), dtype="uint16")[1] == {"channels"}
    # Of 8 bits they may lie in planes.
    pixels, words = read(tiff(COLOUR, 2, planes=True))
    np.testing.assert_array_equal(pixels, COLOUR)
    assert not words


def test_opacity_of_8_bits_is_a_channel_if_that_is_asked_for() -> None:
    half = RANDOM.integers(0, 256, [H, W, 1], np.uint8)
    content = png(np.dstack([COLOUR, half]), 6)
    pixels, words = read(content)
    assert words == {"transparent"}
    assert np.abs(pixels - on_white(COLOUR, half)).max() <= 1
    for dtype, largest in (("uint8", 255), ("uint16", 65535), ("float32", 1)):
        pixels, words = read(content, alpha=True, dtype=dtype, invert=True)
        assert not words
        expected = np.dstack([255 - COLOUR, half]) / 255 * largest
        np.testing.assert_allclose(pixels, expected, rtol=1e-6)
    grey, _ = read(content, alpha=True, grayscale=True)
    assert grey.shape == (H, W, 2)
    np.testing.assert_array_equal(grey[..., 1:], half)
    # All opaque: nothing is lost, and nothing said.
    assert not read(png(np.dstack([COLOUR, np.full_like(GREY, 255)]), 6))[1]
    transparent = chunk(b"tRNS", COLOUR[1, 2].astype(">u2").tobytes())
    keyed, _ = read(png(COLOUR, 2, transparent), alpha=True)
    np.testing.assert_array_equal(keyed[..., 3] == 0, (COLOUR[1, 2] == COLOUR).all(2))


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_resizing_of_more_bits_is_that_of_8(dtype: str) -> None:
    """On a smooth image, whose numbers of 8 bits are those of 16 but for what is rounded."""
    y, x = np.mgrid[:40, :30] / 40
    smooth = np.stack([y, x, y * x, 0.5 + y / 2], axis=2)
    deep = np.rint(smooth * 65535).astype(np.uint16)
    for resample in ("lanczos", "area", "bilinear"):
        options = {"size": (9, 11), "resample": resample, "alpha": True}
        few, _ = read(png(np.rint(smooth * 255).astype(np.uint8), 6), **options)
        many, _ = read(png(deep, 6), dtype=dtype, **options)
        scale = 65535 if dtype == "uint16" else 1
        assert np.abs(many / scale - few / 255).max() < 3 / 255
        # Each pixel the mean of those that it was made of, to the last bit.
        made, _ = read(png(deep[..., :3], 2), dtype=dtype, size=(20, 15), resample="area")
        means = deep[..., :3].reshape(20, 2, 15, 2, 3).mean((1, 3))
        assert np.abs(made / scale - means / 65535).max() <= 0.51 / 65535
    # What is transparent gives its colour to nobody.
    half = np.zeros([8, 8, 4], np.uint16)
    half[:, :4] = 65535, 0, 0, 65535
    half[:, 4:] = 0, 65535, 0, 0
    made, _ = read(png(half, 6), dtype=dtype, size=4, resample="area", alpha=True)
    assert (made[:, 2:, 1] == 0).all() or (made[:, 2:, 3] == 0).all()
    assert (made[:, :2, 1] == 0).all()


def test_a_deep_image_is_turned_as_its_camera_was() -> None:
    turned = {
        1: lambda x: x,
        6: lambda x: np.rot90(x, -1),
        8: np.rot90,
        5: lambda x: x.swapaxes(0, 1),
    }
    for orientation, turn in turned.items():
        for pixels, photometric in ((DEEP[..., :1], 1), (DEEP[..., :3], 2)):
            content = tiff(pixels, photometric, tags={274: [orientation]})
            made, _ = read(content, dtype="uint16", grayscale=photometric == 1)
            np.testing.assert_array_equal(made, turn(pixels))


# ---- Pages


def frames(kind: str, number: int = 3) -> bytes:
    file = io.BytesIO()
    images = [Image.fromarray(np.full([H, W, 3], 60 * i, np.uint8)) for i in range(number)]
    how = {"lossless": True} if kind == "WEBP" else {}
    images[0].save(file, kind, save_all=True, append_images=images[1:], **how)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_pages(kind: str, tmp_path: Path) -> None:
    content = frames(kind)
    pixels, words = read(content)
    assert words == {"pages"}
    assert (pixels == 0).all()
    for page in range(3):
        pixels, words = read(content, page=page)
        assert not words
        assert (pixels == 60 * page).all()
    with pytest.raises(ValueError, match="Not a readable image: a file object, page 3"):
        read_image(io.BytesIO(content), page=3)
    folder = classes(tmp_path, {f"0.{kind.lower()}": content, "1.png": png(COLOUR, 2)})
    with pytest.warns(UserWarning, match=r"Of 4 image\(s\) of .*: 2 with several pages, of which "):
        assert len(ClassDataset.from_directory(folder)) == 4
    assert len(ClassDataset.from_directory(folder, pages="first")) == 4
    every = ClassDataset.from_directory(folder, pages="all")
    assert [x[0, 0, 0] for x in every.examples] == 2 * [0, 60, 120, COLOUR[0, 0, 0]]
    assert np.diff(every.class_offsets).tolist() == [4, 4]
    made = cache(folder, tmp_path / "cache", pages="all", verbose=False)
    assert_same(made, every)


def test_the_second_picture_of_a_photograph_is_no_page() -> None:
    file = io.BytesIO()
    photo = Image.fromarray(COLOUR)
    photo.save(file, "MPO", save_all=True, append_images=[photo.resize((2, 2))])
    assert read(file.getvalue())[1] == set()


def test_small_copies_of_a_page_are_no_pages(tmp_path: Path) -> None:
    file = io.BytesIO()
    large, small = Image.fromarray(COLOUR), Image.fromarray(COLOUR).resize((3, 2))
    small.encoderinfo = {"tiffinfo": {254: 1}}  # type: ignore[attr-defined]
    large.save(file, "TIFF", save_all=True, append_images=[small])
    assert read(file.getvalue())[1] == set()
    folder = classes(tmp_path, {"0.tif": file.getvalue()})
    assert len(ClassDataset.from_directory(folder, pages="all")) == 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_damaged_pages_are_named_or_left_out(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    name = f"1.{kind.lower()}"
    folder = classes(tmp_path, {"0.png": png(COLOUR, 2), name: frames(kind, 4)})
    file, refused = folder / "a" / name, 0
    whole = file.read_bytes()
    for _ in range(30):
        how = damage(file, random)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options: dict[str, Any] = {"pages": "all", "size": (H, W)}
            made = ClassDataset.from_directory(folder, skip_unreadable=True, **options)
            assert 6 <= len(made) <= 10, how
            left_out = [str(w.message) for w in caught if "Left out" in str(w.message)]
            if left_out:
                refused += 1
                assert f"{file}" in left_out[0], how
                with pytest.raises(ValueError, match=f"Not a readable image: '{file}'"):
                    ClassDataset.from_directory(folder, **options)
        file.write_bytes(whole)
    assert refused > 3


# ---- Folders


def classes(path: Path, files: dict[str, bytes]) -> Path:
    for name in ("a", "b"):
        (path / "folder" / name).mkdir(parents=True)
        for file, content in files.items():
            (path / "folder" / name / file).write_bytes(content)
    return path / "folder"


MIXED = {
    "0.png": png(COLOUR, 2),
    "1.png": png(DEEP[..., :3], 2),
    "2.png": png(DEEP, 6),
    "3.png": png(np.dstack([COLOUR, OPACITY]), 6),
    "4.gif": frames("GIF"),
}
TOLD = (
    r"Of 10 image\(s\) of {}/folder some could not be kept as they are: "
    r"4 brought from 16 bits to 8 \(dtype='uint16', --dtype uint16, keeps them\); "
    r"4 laid on white paper where transparent \(alpha=True, --alpha, keeps that\); "
    r"2 with several pages, of which the first was read \(pages='all', --pages all, reads each\)$"
)


def test_a_folder_is_told_of_once(tmp_path: Path) -> None:
    folder = classes(tmp_path, MIXED)
    with pytest.warns(UserWarning, match=TOLD.format(tmp_path)) as caught:
        expected = ClassDataset.from_directory(folder)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match=TOLD.format(tmp_path)) as caught:
        made = cache(folder, tmp_path / "cache", verbose=False)
    assert [warning.filename for warning in caught] == [__file__]
    assert_same(made, expected)
    # Not again; and who says what is done anyway is told nothing and gets the same.
    chosen: dict[str, Any] = {"dtype": "uint8", "alpha": False, "pages": "first"}
    assert_same(cache(folder, tmp_path / "cache", verbose=False), expected)
    assert_same(cache(folder, tmp_path / "cache", verbose=False, **chosen), expected)
    assert_same(ClassDataset.from_directory(folder, **chosen), expected)
    for name, value in {"dtype": "uint16", "alpha": True, "pages": "all"}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be None as when the cache"):
            cache(folder, tmp_path / "cache", verbose=False, **{name: value})


def test_what_was_lost_before_an_interruption_is_told_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = classes(tmp_path, MIXED)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(StopHereError):
            cache(folder, tmp_path / "parts", verbose=False)
    with pytest.warns(UserWarning, match=TOLD.format(tmp_path)):
        cache(folder, tmp_path / "parts", verbose=False)
    with pytest.warns(UserWarning, match="Of 10"):
        cache(folder, tmp_path / "whole", verbose=False)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_folder_without_loss(tmp_path: Path) -> None:
    folder = classes(tmp_path, MIXED)
    options: dict[str, Any] = {"dtype": "uint16", "alpha": True, "pages": "all"}
    every = ClassDataset.from_directory(folder, **options)
    assert every.examples.shape == (14, H, W, 4)
    assert every.dtype == np.uint16
    np.testing.assert_array_equal(every.examples[0, ..., :3], COLOUR.astype(np.uint16) * 257)
    np.testing.assert_array_equal(every.examples[2], DEEP)
    assert_same(cache(folder, tmp_path / "cache", verbose=False, **options), every)
    with pytest.raises(ValueError, match=r"`dtype` must be 'uint16' as when .*dtype=None"):
        cache(folder, tmp_path / "cache", verbose=False, alpha=True, pages="all")
    inputs, _ = EpisodeSampler(every, ways=2, shots=3, queries=4).batch(0)
    seen = np.sort(np.concatenate([inputs["support_x"], inputs["query_x"]], axis=1).ravel())
    np.testing.assert_allclose(seen, np.sort((every.examples / 65535).ravel()), atol=1e-7)


def test_floats_among_others_are_told_of(tmp_path: Path) -> None:
    floats = tiff(RANDOM.normal(size=[H, W, 1]).astype(np.float32), 1)
    folder = classes(tmp_path, {"0.tif": floats, "1.png": png(GREY, 0)})
    words = r"Of 4 image\(s\) .*: 2 with numbers as they are in the file, and not between 0 and 1"
    with pytest.warns(UserWarning, match=words):
        ClassDataset.from_directory(folder, dtype="float32", grayscale=True)
    for file in folder.rglob("*.png"):
        file.unlink()
    ClassDataset.from_directory(folder, dtype="float32", grayscale=True)


def test_dark_images_of_16_bits_are_no_bytes(tmp_path: Path) -> None:
    """Numbers up to 255 of 65535, or whole numbers in floats, are what their files say."""
    dark = GREY.astype(np.uint16)
    folder = classes(tmp_path, {"0.tif": tiff(dark, 1)})
    made = ClassDataset.from_directory(folder, dtype="uint16", grayscale=True)
    np.testing.assert_array_equal(made.examples, np.stack([dark, dark]))
    for name in ("a", "b"):
        (folder / name / "0.tif").write_bytes(tiff(GREY.astype(np.float32), 1))
    made = ClassDataset.from_directory(folder, dtype="float32", grayscale=True)
    np.testing.assert_array_equal(made.examples[0], GREY)


@pytest.mark.parametrize("kind", ["PNG with opacity", "PPM", "TIFF < deflated opacity"])
def test_deep_images_that_are_damaged_at_random(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    content, _, _ = DEEPER[kind]
    folder, refused = classes(tmp_path, {"0.png": content}), 0
    for _ in range(40):
        how = damage(folder / "a" / "0.png", random)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options: dict[str, Any] = {"dtype": "uint16", "alpha": True, "size": (H, W)}
            try:
                made = ClassDataset.from_directory(folder, skip_unreadable=True, **options)
                assert made.examples.shape == (2, H, W, 4), how
            except ValueError as error:
                refused += 1
                assert "at least two classes" in str(error), how  # noqa: PT017
                assert any(f"{folder / 'a' / '0.png'}" in str(w.message) for w in caught), how
        (folder / "a" / "0.png").write_bytes(content)
    assert refused > 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "int8"}, ValueError, "`dtype` must be one of 'uint8', 'uint16', 'float32'. Rec"),
        ({"dtype": np.uint16}, ValueError, "`dtype` must be one of"),
        ({"alpha": "white"}, TypeError, "`alpha` must be True or False. Received: alpha='white'"),
        ({"pages": 3}, ValueError, "`pages` must be one of 'first', 'all'. Received: pages=3"),
    ],
)
def test_options_that_are_none(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    folder = classes(tmp_path, {"0.png": png(COLOUR, 2)})
    with pytest.raises(error, match=message):
        ClassDataset.from_directory(folder, **options)
    with pytest.raises(error, match=message):
        cache(folder, tmp_path / "cache", verbose=False, **options)
    if "pages" not in options:
        with pytest.raises(error, match=message):
            read_image(io.BytesIO(png(COLOUR, 2)), **options)
    with pytest.raises(ValueError, match=r"`page` must be at least 0\. Received: page=-1"):
        read_image(io.BytesIO(png(COLOUR, 2)), page=-1)


def test_the_command_offers_what_can_be_chosen() -> None:
    assert choices_of("dtype") == DTYPES
