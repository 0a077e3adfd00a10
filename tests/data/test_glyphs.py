"""The letters drawn from matplotlib's fonts, and their cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfmeta.data import benchmarks, glyphs
from tfmeta.data.class_dataset import ClassDataset

# Look alike: O and o in Latin, Cyrillic and Greek; the two breathings of alpha.
ALIKE = ("O\u041e\u039f", "o\u043e\u03bf", "\u1f00\u1f01")
LETTERS = "aAb\u03a3\u0436\u0532\u10d3" + "".join(ALIKE)


@pytest.fixture
def few_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws some letters only, which takes no time."""
    every = glyphs._is_letter
    monkeypatch.setattr(glyphs, "_is_letter", lambda c: c in LETTERS + "\u02b0-1" and every(c))


@pytest.fixture
def drawn(few_letters: None, tmp_path: Path) -> ClassDataset:
    return glyphs.glyphs(tmp_path)


def test_letters_become_classes(drawn: ClassDataset) -> None:
    assert drawn.class_names == (
        "LATIN CAPITAL LETTER A",
        "LATIN CAPITAL LETTER O",
        "LATIN SMALL LETTER A",
        "LATIN SMALL LETTER B",
        "LATIN SMALL LETTER O",
        "GREEK CAPITAL LETTER SIGMA",
        "CYRILLIC SMALL LETTER ZHE",
        "ARMENIAN CAPITAL LETTER BEN",
        "GEORGIAN LETTER DON",
        "GREEK SMALL LETTER ALPHA WITH PSILI",
    ), "of those that look alike, one is kept"
    assert drawn.groups is not None
    assert drawn.groups[4:7] == ("LATIN", "GREEK", "CYRILLIC")
    assert set(np.diff(drawn.class_offsets)) == {20}
    assert drawn.example_shape == (28, 28, 1)
    assert drawn.dtype == np.uint8


def test_every_drawing_is_another_and_fills_the_image(drawn: ClassDataset) -> None:
    images = drawn.examples[..., 0]
    assert len(np.unique(images, axis=0)) == len(images)
    assert (images.max(axis=(1, 2)) > 150).all(), "no image is blank"
    ink = (images > 60).mean(axis=(1, 2))
    assert ((ink > 0.03) & (ink < 0.5)).all()
    for axis in (1, 2):
        position = (images.sum(axis=axis) * np.arange(28)).sum(axis=1) / images.sum(axis=(1, 2))
        assert (abs(position - 13.5) < 5).all(), "letters are in the middle"


def test_a_letter_looks_more_like_itself_than_like_others(drawn: ClassDataset) -> None:
    flat = drawn.examples.reshape(10, 20, -1).astype(np.float32)
    means = flat[:, :16].mean(axis=1)
    distance = ((flat[:, 16:, None] - means) ** 2).sum(axis=-1)
    right = distance.argmin(axis=-1) == np.arange(10)[:, None]
    assert right.mean() > 0.75


def test_the_cache_is_used_and_holds_the_same(
    drawn: ClassDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glyphs, "draw_all", None)  # to call it would fail
    again = glyphs.glyphs(tmp_path)
    np.testing.assert_array_equal(again.examples, drawn.examples)
    assert again.class_names == drawn.class_names
    assert [file.suffix for file in tmp_path.iterdir()] == [".npz"]


@pytest.mark.parametrize("damage", ["truncated", "changed", "other", "empty"])
def test_a_damaged_cache_is_drawn_again(drawn: ClassDataset, tmp_path: Path, damage: str) -> None:
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    middle = len(good) // 2
    changed = good[:middle] + bytes(255 - byte for byte in good[middle : middle + 8])
    damaged = {"truncated": good[:middle], "changed": changed + good[middle + 8 :], "empty": b""}
    if damage == "other":
        np.savez(file, code_points=np.zeros(3), images=np.zeros(3))
    else:
        file.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match="Drawing the glyphs again: .*npz is damaged"):
        again = glyphs.glyphs(tmp_path)
    np.testing.assert_array_equal(again.examples, drawn.examples)
    np.testing.assert_array_equal(glyphs.glyphs(tmp_path).examples, drawn.examples)


def test_without_a_cache_the_glyphs_still_come(few_letters: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.warns(UserWarning, match="cannot be written"):
        assert len(glyphs.glyphs(tmp_path / "file" / "cache")) == 200


def test_the_place_of_the_cache(
    few_letters: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFMETA_CACHE", str(tmp_path / "chosen"))
    glyphs.glyphs()
    assert len(list((tmp_path / "chosen").iterdir())) == 1
    monkeypatch.delenv("TFMETA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert glyphs.default_cache() == tmp_path / "xdg" / "tfmeta"


def test_missing_fonts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="matplotlib's fonts are needed"):
        glyphs.draw_all(tmp_path)


def test_load_splits_the_letters(few_letters: None, tmp_path: Path) -> None:
    parts = benchmarks.load("glyphs", tmp_path)
    assert [part.num_classes for part in parts] == [6, 2, 2]
    assert parts[2].description.endswith("28x28] test")


@pytest.mark.slow
def test_all_letters(tmp_path: Path) -> None:
    letters = glyphs.glyphs(tmp_path)
    assert 900 < letters.num_classes < 1500
    assert set(letters.groups or ()) == {"ARMENIAN", "CYRILLIC", "GEORGIAN", "GREEK", "LATIN"}
    assert (letters.examples.max(axis=(1, 2, 3)) > 100).all()
    # No two letters have the same drawing.
    assert len(np.unique(letters.examples, axis=0)) > 0.999 * len(letters)
