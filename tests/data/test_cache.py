"""A data set that is decoded once, whatever comes in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.data.test_class_dataset import store
from tfmeta.data import ClassDataset, EpisodeSampler, cache, cache_files, caching

ROOT = Path(__file__).parents[2]
# Runs in a process of its own, to be killed.
PROGRAM = """
import sys
from tfmeta.data import cache, caching, images
caching.CHUNK = images.CHUNK = int(sys.argv[3])
cache(sys.argv[1], sys.argv[2])
"""


def write_images(folder: Path, classes: int, images: int, side: int = 6) -> Path:
    random = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"group{c % 2}" / f"class{c}").mkdir(parents=True)
        for i in range(images):
            pixels = random.integers(0, 256, [side, side, 3], np.uint8)
            Image.fromarray(pixels).save(folder / f"group{c % 2}" / f"class{c}" / f"{i}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", 5, 6)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def assert_same(one: ClassDataset, other: ClassDataset) -> None:
    assert one.class_names == other.class_names
    assert one.groups == other.groups
    assert one.description == other.description
    assert one.examples.dtype == other.examples.dtype
    np.testing.assert_array_equal(one.examples, other.examples)
    np.testing.assert_array_equal(one.class_indices, other.class_indices)
    np.testing.assert_array_equal(one.class_offsets, other.class_offsets)


class StopHereError(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, images: int, chunk: int = 4) -> list[int]:
    """Have decoding end after so many images; the list gets where each decoding begins."""
    begun: list[int] = []
    each = caching.each_image

    def some(*args: Any, start: int, **options: Any) -> Iterator[Any]:
        begun.append(start)
        for i, image in each(*args, start=start, **options):
            if i == images:
                raise StopHereError
            yield i, image

    monkeypatch.setattr(caching, "CHUNK", chunk)
    monkeypatch.setattr(caching, "each_image", some)
    return begun


def test_a_folder_is_cached_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    options: dict[str, Any] = {"size": (5, 4), "grayscale": True, "invert": True}
    expected = ClassDataset.from_directory(photos, **options)
    made = cache(photos, tmp_path / "cache", **options)
    assert "30/30" in capsys.readouterr().out
    assert isinstance(made.examples, np.memmap)
    assert_same(made, expected)
    assert set(contents(tmp_path / "cache")) == {
        ".tfmeta-cache",
        "cache.json",
        "examples.npy",
        "labels.npy",
    }
    begun = stop_after(monkeypatch, 0)
    assert_same(cache(photos, tmp_path / "cache", **options), expected)
    assert not begun
    assert not capsys.readouterr().out
    # Also where the images are no more, and where they are elsewhere.
    photos.rename(tmp_path / "moved")
    assert_same(cache(photos, tmp_path / "cache", **options), expected)
    assert_same(cache(tmp_path / "moved", tmp_path / "cache", **options), expected)
    inputs, _ = EpisodeSampler(made, 2, 1, 2).batch(0)
    assert inputs["support_x"].shape == (1, 2, 5, 4, 1)


@pytest.mark.parametrize("stops", [(0,), (1,), (9, 17), (29,)])
def test_interrupted_and_continued_gives_the_same_bytes(
    stops: tuple[int, ...], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(photos, tmp_path / "whole", verbose=False)
    for images in stops:
        with monkeypatch.context() as patch:
            stop_after(patch, images)
            with pytest.raises(StopHereError):
                cache(photos, tmp_path / "parts", verbose=False)
        assert not (tmp_path / "parts" / "cache.json").exists()
    begun = stop_after(monkeypatch, -1)
    cache(photos, tmp_path / "parts", verbose=False)
    assert begun == [stops[-1] // 4 * 4]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_an_interruption_at_the_end(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the numbers are written and what is beside them is not, or not yet tidied up."""
    cache(photos, tmp_path / "whole", verbose=False)
    for owner, name in ((cache_files, "array_bytes"), (caching.CacheFiles, "tidy")):
        calls = 0

        def fail(*_: Any, name: str = name, **__: Any) -> None:
            nonlocal calls
            calls += 1
            if name == "array_bytes" or calls == 2:  # the first time there is nothing to tidy up
                raise StopHereError

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(StopHereError):
                cache(photos, tmp_path / name, verbose=False)
        assert (tmp_path / name / "progress.json").exists()
        cache(photos, tmp_path / name, verbose=False)
        assert contents(tmp_path / name) == contents(tmp_path / "whole")


def kill_in_the_middle(source: Path, folder: Path, chunk: int, seconds: float = 0.05) -> int:
    """Cache in another process, which is killed; return how many images it has noted."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, source, folder, str(chunk)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    while not (folder / "progress.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return int(json.loads((folder / "progress.json").read_text())["read"])


@pytest.mark.slow
def test_a_process_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_images(tmp_path / "photos", 4, 400, side=40)
    noted = kill_in_the_middle(source, tmp_path / "parts", 16)
    assert 0 < noted < 1600
    begun = stop_after(monkeypatch, -1)
    cache(source, tmp_path / "parts", verbose=False)
    cache(source, tmp_path / "whole", verbose=False)
    assert begun == [noted, 0]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_omniglot_is_cached_with_interruptions(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """32,460 images in the folders of the published zip files."""
    for name in ("images_background.zip", "images_evaluation.zip"):
        with zipfile.ZipFile(data_dir / "omniglot" / name) as file:
            file.extractall(tmp_path / "omniglot")
    noted = kill_in_the_middle(tmp_path / "omniglot", tmp_path / "parts", 1024, seconds=6)
    begun = time.perf_counter()
    parts = cache(tmp_path / "omniglot", tmp_path / "parts", verbose=False)
    middle = time.perf_counter()
    whole = cache(tmp_path / "omniglot", tmp_path / "whole", verbose=False)
    end = time.perf_counter()
    cache(tmp_path / "omniglot", tmp_path / "whole", verbose=False)
    again = time.perf_counter() - end
    with capsys.disabled():
        print(
            f"\nkilled after {noted} images of {len(whole)}; the rest {middle - begun:.1f} s, all "
            f"{end - middle:.1f} s, a cache that is there {again:.1f} s, "
            f"{whole.num_classes} classes"
        )
    assert len(parts) == len(whole) == 32460
    assert whole.num_classes == 1623
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_processes_at_once_make_it_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = stop_after(monkeypatch, -1)
    expected = ClassDataset.from_directory(photos)
    made: list[ClassDataset] = []
    threads = [
        threading.Thread(
            target=lambda: made.append(cache(photos, tmp_path / "cache", verbose=False))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert begun == [0]
    assert len(made) == 3
    for dataset in made:
        assert_same(dataset, expected)


def test_what_cannot_be_read_is_left_out_when_asked(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = [photos / "group0" / "class0" / f"{i}.png" for i in (0, 2)]
    damaged[0].write_text("no image")
    damaged[1].unlink()
    os.symlink(tmp_path / "nowhere", damaged[1])
    with pytest.raises(ValueError, match=r"class0.0\.png.*skip_unreadable=True"):
        cache(photos, tmp_path / "cache", verbose=False)
    with pytest.warns(UserWarning, match=r"Left out 2 unreadable image\(s\)"):
        expected = ClassDataset.from_directory(photos, skip_unreadable=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 17)
        with pytest.raises(StopHereError):
            cache(photos, tmp_path / "parts", verbose=False, skip_unreadable=True)
    with pytest.warns(UserWarning, match=r"Left out 2 unreadable .*0\.png, .*2\.png"):
        made = cache(photos, tmp_path / "parts", verbose=False, skip_unreadable=True)
    assert_same(made, expected)


def test_tensorflow_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, [4, 8, 8, 3], np.uint8)
    store(tmp_path / "data", tfds.features.Image(shape=(8, 8, 3)), list(pixels))
    options: dict[str, Any] = {"data_dir": tmp_path / "data", "group_key": "kind", "size": 4}
    expected = ClassDataset.from_tfds("toys", "train", **options)
    monkeypatch.setattr(caching, "CHUNK", 3)
    put_note = cache_files.put_note

    def stop(*arguments: Any) -> None:
        put_note(*arguments)
        raise StopHereError

    with monkeypatch.context() as patch:
        patch.setattr(cache_files, "put_note", stop)
        with pytest.raises(StopHereError):
            cache("toys", tmp_path / "parts", split="train", verbose=False, **options)
    for folder in ("parts", "whole"):
        made = cache("toys", tmp_path / folder, split="train", verbose=False, **options)
        assert_same(made, expected)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="`size` must be 4 as when the cache"):
        cache("toys", tmp_path / "whole", split="train", **{**options, "size": 5})
    # The same data elsewhere, and others of that name there.
    shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copyfile)
    elsewhere = {**options, "data_dir": tmp_path / "copy"}
    assert_same(cache("toys", tmp_path / "whole", split="train", **elsewhere), expected)
    store(tmp_path / "other", tfds.features.Image(shape=(8, 8, 3)), list(255 - pixels))
    elsewhere = {**options, "data_dir": tmp_path / "other"}
    with pytest.raises(ValueError, match=r"toys/1\.0\.0', whose files have changed"):
        cache("toys", tmp_path / "whole", split="train", **elsewhere)
    with pytest.raises(ValueError, match="`label_key` must be one of the features"):
        cache("toys", tmp_path / "new", split="train", label_key="race", **options)


def test_texts_are_refused(tmp_path: Path) -> None:
    store(tmp_path / "data", tfds.features.Text(), ["a", "b", "c", "d"])
    with pytest.raises(TypeError, match=r"`image_key` must name images or numbers.*texts"):
        cache("toys", tmp_path / "cache", split="train", data_dir=tmp_path / "data", verbose=False)


def test_another_source_is_refused_or_replaced(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache(photos, folder, verbose=False)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"`size` must be None as .* Received: size=3; overwrite"):
        cache(photos, folder, size=3)
    others = write_images(tmp_path / "others", 3, 2)
    with pytest.raises(ValueError, match=r"`source` must be '.*photos' as .*Received: .*others'"):
        cache(others, folder)
    more = photos / "group0" / "class0" / "more.png"
    Image.new("RGB", (6, 6)).save(more)
    with pytest.raises(ValueError, match="whose files have changed since; overwrite=True makes"):
        cache(photos, folder)
    assert contents(folder) == before
    assert len(cache(photos, folder, overwrite=True, verbose=False)) == 31
    # What is as it should be is not made again.
    before = contents(folder)
    times = [file.stat().st_mtime_ns for file in folder.glob("*.npy")]
    cache(photos, folder, overwrite=True, verbose=False)
    assert [file.stat().st_mtime_ns for file in folder.glob("*.npy")] == times
    assert_same(
        cache(others, folder, overwrite=True, verbose=False), ClassDataset.from_directory(others)
    )


def test_damaged_caches_are_named(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache(photos, folder, verbose=False)
    about = (folder / "cache.json").read_text()
    (folder / "cache.json").write_text(about.replace('"format": 2', '"format": 7'))
    with pytest.raises(ValueError, match=r"of another version: format 7, this version has 2"):
        cache(photos, folder)
    (folder / "cache.json").write_text(about)
    with (folder / "examples.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(ValueError, match=r"examples\.npy' is damaged \(500 bytes, where"):
        cache(photos, folder)


def test_nothing_else_is_replaced(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("text")
    for path in (tmp_path / "thesis", tmp_path / "thesis" / "thesis.tex"):
        with pytest.raises(FileExistsError, match="exists and is no cache; nothing is changed"):
            cache(photos, path, overwrite=True)
    assert contents(tmp_path / "thesis") == {"thesis.tex": b"text"}


def test_bad_arguments(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sise'"):
        cache(photos, tmp_path / "cache", sise=3)
    with pytest.raises(ValueError, match="`size` must be a positive integer"):
        cache(photos, tmp_path / "cache", size=0)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError, match="`path` must be an existing folder"):
        cache(tmp_path / "none", tmp_path / "cache", verbose=False)
    Image.new("RGB", (9, 9)).save(photos / "group0" / "class0" / "0.png")
    with pytest.raises(ValueError, match=r"Images of different sizes need `size`.*\(9, 9, 3\)"):
        cache(photos, tmp_path / "cache", verbose=False)
