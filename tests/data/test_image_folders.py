"""Folders of images: none vanishes, names are what they are, and memory has a bound."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.test_cache import ROOT, assert_same, write_images
from tfmeta.data import ClassDataset, cache, images

Read = Callable[..., ClassDataset]


def from_cache(path: Any, **options: Any) -> ClassDataset:
    return cache(path, Path(os.fsdecode(path)).parent / "cache", verbose=False, **options)


BOTH = pytest.mark.parametrize("read", [ClassDataset.from_directory, from_cache])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", 5, 3)


@BOTH
@pytest.mark.parametrize("group", [False, True])
def test_a_folder_that_cannot_be_read_does_not_vanish(
    read: Read, group: bool, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos / "group1" if group else photos / "group1" / "class3"
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if os.fspath(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = rf"'{folder}' \(Permission denied\). Leave out such folders with skip_unreadable=True"
    with pytest.raises(ValueError, match=f"Not a readable folder of images: {refused}"):
        read(photos)
    with pytest.warns(UserWarning, match=rf"Left out 1 unreadable folder\(s\): {folder}$") as seen:
        made = read(photos, skip_unreadable=True)
    assert [warning.filename for warning in seen] == [__file__]
    assert made.num_classes == (3 if group else 4)


@BOTH
def test_a_link_to_a_class_that_is_gone_does_not_vanish(read: Read, photos: Path) -> None:
    (photos / "group2").symlink_to(photos / "unmounted", target_is_directory=True)
    (photos / ".#edited").symlink_to("someone@somewhere")  # hidden
    with pytest.raises(ValueError, match=r"folder of images: .*group2' \(a link that leads now"):
        read(photos)
    with pytest.warns(UserWarning, match=r"Left out 1 unreadable folder\(s\): .*group2"):
        assert len(read(photos, skip_unreadable=True)) == 15


def test_a_folder_that_itself_cannot_be_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any = ".") -> Any:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="photos"):
        ClassDataset.from_directory(photos, skip_unreadable=True)


NO_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def names(photos: Path) -> Path:
    try:
        (photos / f"{NO_UTF8}.txt").touch()
    except OSError as error:
        pytest.skip(f"this file system has names in UTF-8 only: {error}")
    return photos


@BOTH
def test_images_may_have_any_name(read: Read, names: Path) -> None:
    expected = ClassDataset.from_directory(names)
    for file in list(names.rglob("2.png")):
        file.rename(file.with_name(f"{NO_UTF8}.png"))
    made = read(names)
    np.testing.assert_array_equal(np.sort(made.examples, 0), np.sort(expected.examples, 0))
    bad = names / "group0" / "class0" / f"{NO_UTF8}.png"
    bad.write_text("no image")
    with pytest.raises(ValueError, match=re.escape(r"caf\udce9.png' (cannot identify")) as error:
        ClassDataset.from_directory(names)
    str(error.value).encode()
    with pytest.warns(UserWarning, match=re.escape(r"caf\xe9.png")) as seen:
        ClassDataset.from_directory(names, skip_unreadable=True)
    str(seen[0].message).encode()


@BOTH
def test_a_class_must_have_a_name_in_utf8(read: Read, names: Path) -> None:
    (names / "group0" / "class0").rename(names / "group0" / NO_UTF8)
    with pytest.raises(ValueError, match=r"in UTF-8.*Received: .*group0/caf\\udce9'") as error:
        read(names)
    str(error.value).encode()
    with pytest.raises(ValueError, match=r"`class_names` must be texts that UTF-8 can spell. Rec"):
        ClassDataset(np.zeros([2, 3], np.uint8), ["a", NO_UTF8])


@BOTH
def test_a_folder_of_any_name_is_described_in_words(read: Read, names: Path) -> None:
    renamed = names.rename(names.with_name(NO_UTF8))
    made = read(renamed)
    assert made.description == rf"images of {names.parent}/caf\xe9"
    assert_same(made, ClassDataset.from_directory(renamed))


def test_images_ahead_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few threads or many, however slow the reader is, and whatever comes in between."""
    sides = [4, 40, 40, 2, 40, 40, 40, 3] * 8
    paths = [tmp_path / f"{i}.png" for i in range(len(sides))]
    for side, path in zip(sides, paths, strict=True):
        Image.new("L", (side, side), side).save(path)
    most = 3 * 40 * 40 * images._BYTES_PER_PIXEL
    monkeypatch.setattr(images, "AHEAD", most)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    lock, held, highest = threading.Lock(), 0, 0
    read = images._read

    def count(path: Path, admit: Callable[[int], None], **options: Any) -> Any:
        nonlocal held, highest

        def admitted(pixels: int) -> None:
            nonlocal held, highest
            admit(pixels)
            with lock:
                held += pixels
                highest = max(highest, held)

        return read(path, admitted, **options)

    monkeypatch.setattr(images, "_read", count)
    for (i, image), side in zip(images.each_image(paths), sides, strict=True):
        assert image is not None
        assert image.shape == (side, side, 3)
        assert i == paths.index(tmp_path / f"{i}.png")
        with lock:
            held -= side * side
    # Those that are decoded are held as less than what they took while they were.
    assert highest < 20 * 40 * 40
    # One who stops half-way leaves nobody behind that waits.
    before = threading.active_count()
    some = images.each_image(paths)
    next(some)
    assert isinstance(some, Iterator)
    some.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


# 12 megapixels each, in a process of its own.
PROGRAM = """
import sys, threading, time
from tfmeta.data import images

peak = 0
def resident():
    with open("/proc/self/status") as status:
        return next(int(x.split()[1]) for x in status if x.startswith("VmRSS")) / 1e3

begun = resident()
def watch():
    global peak
    while True:
        peak = max(peak, resident())
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
for i, _ in images.each_image(sys.argv[1:] * 5):
    if i == 0:
        time.sleep(12)  # a disk that is slow to write what was decoded
print(peak - begun)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
def test_photos_of_12_megapixels_are_decoded_within_2_gb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(20)]
    for path in paths:
        Image.linear_gradient("L").resize((4000, 3000)).convert("RGB").save(path)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    with capsys.disabled():
        print(f"\n100 photos of 36 MB: resident memory grew by {float(result.stdout):.0f} MB")
    assert float(result.stdout) < 2000
