"""Files that are damaged, or made by a stranger: an error that names them, or the right result."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.damage import damage
from tests.data.test_cache import StopHereError, assert_same, contents, stop_after, write_images
from tfmeta.data import (
    ClassDataset,
    EpisodeList,
    EpisodeSampler,
    Shards,
    cache,
    cache_files,
    glyphs,
    write_episodes,
)

MANY = [pytest.param(0), *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 21))]


def assert_named(path: Path, error: Exception, said: object) -> None:
    assert str(path) in str(error), (said, error)


def interrupted(monkeypatch: pytest.MonkeyPatch, photos: Path, folder: Path) -> None:
    """A cache of which 8 of 12 images are noted, and 10 written."""
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        with pytest.raises(StopHereError):
            cache(photos, folder, verbose=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", 3, 4)


# ---- Caches


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def deepen(file: Path) -> None:
    file.write_text("[" * 100_000)


def become_a_link(file: Path) -> None:
    elsewhere = file.parents[1] / "elsewhere"
    elsewhere.write_bytes(file.read_bytes() + b"of the user")
    file.unlink()
    file.symlink_to(elsewhere)


DAMAGES: tuple[Callable[[Path], None], ...] = (
    *(flip_a_bit, shorten, Path.unlink, deepen, become_a_link),
)


@pytest.mark.parametrize("name", ["examples.npy", "labels.jsonl", "progress.json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_an_interrupted_cache_that_is_damaged_is_begun_anew(
    how: Callable[[Path], None],
    name: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache(photos, tmp_path / "whole", verbose=False)
    interrupted(monkeypatch, photos, tmp_path / "parts")
    how(tmp_path / "parts" / name)
    elsewhere = tmp_path / "elsewhere"
    users = elsewhere.read_bytes() if elsewhere.exists() else b""
    begun = stop_after(monkeypatch, -1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        cache(photos, tmp_path / "parts", verbose=False)
    assert begun == [0]
    # A note that is lost is as if there had been none.
    if (how, name) != (Path.unlink, "progress.json"):
        (warning,) = seen
        assert f"parts/{name}' of an interrupted one is damaged" in str(warning.message)
        assert warning.filename == __file__
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert not users or elsewhere.read_bytes() == users


@pytest.mark.parametrize("name", ["examples.npy", "labels.npy", "cache.json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_finished_cache_that_is_damaged_is_refused_and_made_anew_when_asked(
    how: Callable[[Path], None], name: str, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    cache(photos, folder, verbose=False)
    expected = ClassDataset.from_directory(photos)
    how(folder / name)
    if (how, name) != (Path.unlink, "cache.json"):
        damaged = contents(folder) if how not in (Path.unlink, become_a_link) else {}
        with pytest.raises(ValueError, match=rf"{name}' is damaged .*overwrite=True makes"):
            cache(photos, folder, verbose=False)
        assert not damaged or contents(folder) == damaged
    assert_same(cache(photos, folder, overwrite=True, verbose=False), expected)
    assert_same(cache(photos, folder, verbose=False), expected)


def test_numbers_of_a_large_cache_are_compared_when_its_time_is_another(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_files, "_SMALL", 0)
    hashed: list[int] = []
    hash_of = cache_files.hash_of
    monkeypatch.setattr(
        cache_files, "hash_of", lambda file, size: hashed.append(size) or hash_of(file, size)
    )
    expected = cache(photos, tmp_path / "cache", verbose=False)
    hashed.clear()
    assert_same(cache(photos, tmp_path / "cache"), expected)
    assert hashed == []  # known by their times
    shutil.copytree(tmp_path / "cache", tmp_path / "copy", copy_function=shutil.copyfile)
    for _ in range(2):
        assert_same(cache(photos, tmp_path / "copy"), expected)
    assert sorted(hashed) == [12 * 8, 12 * 6 * 6 * 3]  # a copy is read once
    flip_a_bit(tmp_path / "copy" / "examples.npy")
    with pytest.raises(ValueError, match=r"examples\.npy' is damaged \(its numbers have changed\)"):
        cache(photos, tmp_path / "copy")


def test_overwriting_needs_a_source(photos: Path, tmp_path: Path) -> None:
    cache(photos, tmp_path / "cache", verbose=False)
    before = contents(tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="`path` must be an existing folder"):
        cache(tmp_path / "none", tmp_path / "cache", overwrite=True, verbose=False)
    assert contents(tmp_path / "cache") == before


def of_the_user(folder: Path) -> Path:
    folder.mkdir()
    for name in ("examples.npy", "labels.npy", "cache.json", "progress.json", "thesis.tex"):
        (folder / name).write_text("of the user")
    return folder


@pytest.mark.parametrize("name", [".lock", ".tfmeta-cache"])
@pytest.mark.parametrize("kind", ["empty", "other", "link", "pipe", "folder"])
def test_a_folder_is_no_cache_by_the_name_of_a_file(
    name: str, kind: str, photos: Path, tmp_path: Path
) -> None:
    cache(photos, tmp_path / "cache", verbose=False)
    folder = of_the_user(tmp_path / "mine")
    if kind == "link":
        (folder / name).symlink_to(tmp_path / "cache" / ".tfmeta-cache")
    elif kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).write_text("" if kind == "empty" else "12345\n")
    before = {path: path.is_file() and path.read_bytes() for path in folder.iterdir()}
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="mine' exists and is no cache; nothing is chang"):
            cache(photos, folder, overwrite=overwrite, verbose=False)
    assert before == {path: path.is_file() and path.read_bytes() for path in folder.iterdir()}


def test_a_cache_removes_nothing_else_in_its_folder(photos: Path, tmp_path: Path) -> None:
    cache(photos, tmp_path / "cache", verbose=False)
    (tmp_path / "cache" / "notes.txt").write_text("of the user")
    cache(photos, tmp_path / "cache", size=3, overwrite=True, verbose=False)
    assert (tmp_path / "cache" / "notes.txt").read_text() == "of the user"


@pytest.mark.parametrize("written", [0, 20])
def test_a_cache_that_was_killed_when_it_made_its_mark(
    written: int, photos: Path, tmp_path: Path
) -> None:
    cache(photos, tmp_path / "whole", verbose=False)
    mark = (tmp_path / "whole" / ".tfmeta-cache").read_bytes()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".tfmeta-cache").write_bytes(mark[:written])
    cache(photos, tmp_path / "cache", verbose=False)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


def rewrite(file: Path, keep_time: bool) -> None:
    """Other pixels in as many bytes."""
    before = file.stat()
    flip_a_bit(file)
    if keep_time:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_a_source_of_as_many_bytes_that_has_changed_is_noticed(
    finished: bool, large: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr("tfmeta.data.fingerprint._SMALL", 0)
    image = photos / "group0" / "class0" / "0.bmp"
    Image.new("RGB", (6, 6)).save(image)
    if finished:
        cache(photos, tmp_path / "cache", verbose=False)
    else:
        interrupted(monkeypatch, photos, tmp_path / "cache")
    rewrite(image, keep_time=not large)
    with pytest.raises(ValueError, match=r"`source` must be '.*whose files have changed since; ov"):
        cache(photos, tmp_path / "cache", verbose=False)
    made = cache(photos, tmp_path / "cache", overwrite=True, verbose=False)
    assert_same(made, ClassDataset.from_directory(photos))


def test_small_images_with_other_times_are_the_same(photos: Path, tmp_path: Path) -> None:
    expected = cache(photos, tmp_path / "cache", verbose=False)
    shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    assert_same(cache(tmp_path / "copy", tmp_path / "cache"), expected)


def test_a_source_that_changes_while_it_is_cached(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = cache_files.Appended.write
    image = photos / "group0" / "class0" / "0.png"

    def change(self: Any, content: bytes) -> None:
        Image.new("RGB", (6, 6)).save(image)
        read(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(cache_files.Appended, "write", change)
        with pytest.raises(ValueError, match=r"must stay as it is while .*have changed meanwhile"):
            cache(photos, tmp_path / "cache", verbose=False)
    assert not (tmp_path / "cache" / "cache.json").exists()
    with pytest.raises(ValueError, match="whose files have changed since; overwrite=True"):
        cache(photos, tmp_path / "cache", verbose=False)
    made = cache(photos, tmp_path / "cache", overwrite=True, verbose=False)
    assert_same(made, ClassDataset.from_directory(photos))


@pytest.mark.parametrize("part", MANY)
def test_caches_that_are_damaged_at_random(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_images(tmp_path / "photos", 3, 4)
    expected = cache(photos, tmp_path / "whole", verbose=False)
    interrupted(monkeypatch, photos, tmp_path / "parts")
    random = np.random.default_rng(part)
    refused = 0
    for _ in range(60):
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / str(random.choice(["whole", "parts"])), folder)
        files = sorted(folder.iterdir())
        said = damage(files[random.integers(len(files))], random)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = cache(photos, folder, verbose=False)
            assert_same(made, expected)
        except (ValueError, FileExistsError) as error:
            refused += 1
            assert_named(folder, error, said)
        except Exception as error:
            raise AssertionError(said) from error
        shutil.rmtree(folder)
    assert 10 < refused < 60


def hostile(random: np.random.Generator, value: Any, depth: int = 0) -> Any:
    """Another value somewhere in a note, of whatever type and size."""
    if isinstance(value, dict) and value and depth < 3:
        key = str(random.choice(list(value)))
        return {**value, key: hostile(random, value[key], depth + 1)}
    others = [None, True, -1, 0, 1, 2**31, 2**63, 10**30, -0.5, 1e308, "", "../../x", "O", "\udcff"]
    others += [[], [0], [2**62, 2**62], [[]], {}, {"a": {}}, "<f8", "|V9", "é" * 9, "0" * 64]
    return others[random.integers(len(others))]


@pytest.mark.parametrize("part", MANY)
def test_notes_of_a_stranger_with_a_digest_that_fits(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_images(tmp_path / "photos", 3, 4)
    expected = cache(photos, tmp_path / "whole", verbose=False)
    interrupted(monkeypatch, photos, tmp_path / "parts")
    (tmp_path / "x").write_text("of the user")
    random = np.random.default_rng(100 + part)
    refused = 0
    for _ in range(60):
        kind, name = (("whole", "cache.json"), ("parts", "progress.json"))[random.integers(2)]
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / kind, folder)
        note = cache_files.read_note(folder / name)
        note = hostile(random, note)
        cache_files.put_note(folder / name, note)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = cache(photos, folder, verbose=False)
            # Names and the like may be another's; they are texts.
            np.testing.assert_array_equal(made.examples, expected.examples)
            f"{made.class_names} {made.groups} {made.description}".encode()
        except ValueError as error:
            refused += 1
            assert_named(folder, error, note)
        except Exception as error:
            raise AssertionError(note) from error
        shutil.rmtree(folder)
    assert refused > 10
    assert (tmp_path / "x").read_text() == "of the user"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "photos", "whole", "x"]


# ---- Shards


def what_numpy_says(file: Path) -> np.ndarray:
    """What is behind the header; there is no sum over such a file."""
    with file.open("rb") as opened:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        assert read is not None
        shape, fortran, dtype = read(opened)
        return np.frombuffer(opened.read(), dtype).reshape(shape, order="F" if fortran else "C")


@pytest.mark.parametrize("part", MANY)
def test_shards_that_are_damaged_at_random(part: int, tmp_path: Path) -> None:
    random = np.random.default_rng(part)
    whole = random.integers(0, 256, [9, 5, 5], np.uint8)
    refused = 0
    for _ in range(100):
        for i in range(3):
            np.save(tmp_path / f"{i}.npy", whole[3 * i : 3 * i + 3])
        said = damage(tmp_path / f"{random.integers(3)}.npy", random)
        try:
            shards = Shards(tmp_path)
        except (ValueError, TypeError) as error:
            refused += 1
            assert_named(tmp_path, error, said)
            continue
        except Exception as error:
            raise AssertionError(said) from error
        expected = np.concatenate([what_numpy_says(tmp_path / f"{i}.npy") for i in range(3)])
        np.testing.assert_array_equal(shards[:], expected)
    assert 20 < refused < 95


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: os.truncate(file, 140), r"1\.npy' \(.*mmap length"),
        (lambda file: os.truncate(file, 400), r"1\.npy' \(400 bytes, where its header says 203\)"),
        (lambda file: (file.unlink(), os.mkfifo(file)), r"1\.npy' \(it is no file\)"),
        (lambda file: file.write_bytes(b"PK\x03\x04"), r"1\.npy' \(.*magic"),
        (
            lambda file: np.save(file, np.array([[{}]]), allow_pickle=True),
            r"1\.npy' \(.*Python objects",
        ),
    ],
)
def test_shards_that_are_none(make: Any, message: str, tmp_path: Path) -> None:
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", np.zeros([3, 5, 5], np.uint8))
    make(tmp_path / "1.npy")
    with pytest.raises(ValueError, match=r"`source` must hold whole files.*" + message):
        Shards(tmp_path)


# ---- Lists of episodes

DATASET = ClassDataset(np.ones([40, 2], np.float32), np.arange(40) // 8)


@pytest.mark.parametrize("part", MANY)
def test_lists_that_are_damaged_at_random(part: int, tmp_path: Path) -> None:
    random = np.random.default_rng(part)
    write_episodes(tmp_path / "list", EpisodeSampler(DATASET, 3, 2, 1), 12)
    whole = (tmp_path / "list").read_bytes()
    expected = EpisodeList(DATASET, tmp_path / "list")
    refused = 0
    for _ in range(150):
        (tmp_path / "list").write_bytes(whole)
        said = damage(tmp_path / "list", random)
        try:
            made = EpisodeList(DATASET, tmp_path / "list")
        except ValueError as error:
            refused += 1
            assert_named(tmp_path / "list", error, said)
            continue
        except Exception as error:
            raise AssertionError(said) from error
        np.testing.assert_array_equal(made._support, expected._support)
        np.testing.assert_array_equal(made._query, expected._query)
    assert refused > 100


def test_a_list_that_has_lost_lines_is_refused(tmp_path: Path) -> None:
    write_episodes(tmp_path / "list", EpisodeSampler(DATASET, 3, 2, 1), 12)
    lines = (tmp_path / "list").read_text().splitlines(keepends=True)
    for kept in (lines[:-1], lines[:1], [*lines, lines[1]], [lines[0], *lines[:0:-1]]):
        (tmp_path / "list").write_text("".join(kept))
        with pytest.raises(ValueError, match=r"must be as `write_episodes` has .*list', which has"):
            EpisodeList(DATASET, tmp_path / "list")
    (tmp_path / "list").write_text("".join(lines[3:5]))  # one's own choice, without the first line
    assert len(EpisodeList(DATASET, tmp_path / "list")) == 2


# ---- Images


@pytest.mark.parametrize("part", MANY)
def test_images_that_are_damaged_at_random(part: int, tmp_path: Path) -> None:
    random = np.random.default_rng(part)
    kinds = [*("bmp", "gif", "jpg", "png", "ppm", "tif", "webp")]
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        for kind in kinds:
            pixels = random.integers(0, 256, [9, 7, 3], np.uint8)
            Image.fromarray(pixels).save(tmp_path / c / f"x.{kind}")
    whole = ClassDataset.from_directory(tmp_path)
    refused = 0
    for _ in range(100):
        file = tmp_path / str(random.choice(["a", "b"])) / f"x.{random.choice(kinds)}"
        before = file.read_bytes()
        said = damage(file, random)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = ClassDataset.from_directory(tmp_path, size=(9, 7))
                assert made.examples.shape == whole.examples.shape, said
            except ValueError as error:
                refused += 1
                assert_named(file, error, said)
            except Exception as error:
                raise AssertionError(said) from error
        file.write_bytes(before)
    assert 20 < refused < 95


def test_only_kinds_of_images_are_opened_that_are_named(tmp_path: Path) -> None:
    """Pillow goes by the content, and runs PostScript."""
    for c in ("a", "b"):
        (tmp_path / c).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / c / "x.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "a" / "y.png", format="ICO")
    with pytest.raises(ValueError, match=r"Not a readable image: .*y\.png' \(cannot identify"):
        ClassDataset.from_directory(tmp_path)


# ---- The drawn letters


@pytest.mark.parametrize("part", MANY)
def test_letters_that_are_damaged_at_random(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(part)
    points = np.arange(65, 69, dtype=np.uint32)
    images = random.integers(0, 256, [4, glyphs.EXAMPLES, glyphs.SIDE, glyphs.SIDE], np.uint8)
    file = tmp_path / "letters.npz"
    glyphs._write(file, points, images)
    whole = file.read_bytes()
    drawn = 0
    for _ in range(60):
        file.write_bytes(whole)
        said = damage(file, random)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read = glyphs._read(file)
            except Exception as error:
                raise AssertionError(said) from error
        if read is None:
            drawn += 1
            continue
        np.testing.assert_array_equal(read[0], points)
        np.testing.assert_array_equal(read[1], images)
    assert drawn > 20
