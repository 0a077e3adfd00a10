"""Class datasets: the index, what is derived from them, folders, TFDS, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfmeta.data import ClassDataset, readers
from tfmeta.data.images import prepare, read_image


def images(n: int = 6, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *(shape or (8, 8, 1))), np.uint8)


def toy(classes: int = 3, each: int = 2) -> ClassDataset:
    return ClassDataset(images(classes * each), np.tile(np.arange(classes), each))


# The index


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60))
def test_index_finds_the_examples_of_each_class_in_order(labels: list[int]) -> None:
    dataset = ClassDataset(np.zeros((len(labels), 2), np.uint8), labels)
    assert dataset.class_names == tuple(str(c) for c in sorted(set(labels)))
    for c, label in enumerate(sorted(set(labels))):
        start, stop = dataset.class_offsets[c : c + 2]
        expected = [i for i, other in enumerate(labels) if other == label]
        assert dataset.class_indices[start:stop].tolist() == expected
    assert dataset.class_offsets.dtype == dataset.class_indices.dtype == np.int64
    assert len(dataset) == len(labels)


def test_labels_may_be_strings_and_names_follow_their_order() -> None:
    dataset = ClassDataset(
        images(4), ["dog", "cat", "eel", "cat"], ["Cat", "Dog", "Eel"], ["fur", "fur", "fins"]
    )
    assert dataset.class_names == ("Cat", "Dog", "Eel")
    assert dataset.groups == ("fur", "fur", "fins")
    assert dataset.class_indices.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("labels", [np.array([b"a", b"b"]), np.array(["a", "b"], object)])
def test_other_kinds_of_strings(labels: np.ndarray) -> None:
    assert ClassDataset(images(2), labels).class_names == ("a", "b")


def test_examples_are_shared_and_may_be_mapped_from_a_file(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(4, 3))
    mapped[2] = np.nan  # what is in a file is not read until it is drawn
    dataset = ClassDataset.from_arrays(mapped, [0, 0, 1, 1])
    assert dataset.examples is mapped
    assert dataset.select([1]).examples is mapped


def test_texts_are_kept_as_they_are() -> None:
    texts = ["short", "a much longer one"]
    dataset = ClassDataset(texts, [0, 1])
    assert dataset.examples.tolist() == texts
    assert dataset.example_shape == ()
    assert dataset.dtype == object


def test_repr_says_what_there_is() -> None:
    dataset = ClassDataset(images(6), [0, 1, 2] * 2, description="toys")
    expected = "ClassDataset(3 classes, 6 examples, example_shape=(8, 8, 1), dtype=uint8, 'toys')"
    assert repr(dataset) == expected


# What is derived


def test_select_takes_numbers_and_names_in_the_order_given() -> None:
    part = toy(4).select(["3", 1])
    assert part.class_names == ("3", "1")
    assert part.class_indices.tolist() == [3, 7, 1, 5]
    assert part.class_offsets.tolist() == [0, 2, 4]
    assert part.select(["1"]).class_indices.tolist() == [1, 5]


def test_split_shares_all_classes_out() -> None:
    dataset = toy(50)
    parts = dataset.split(0.6, 0.2, 0.2)
    assert [part.num_classes for part in parts] == [30, 10, 10]
    together = [name for part in parts for name in part.class_names]
    assert sorted(together) == sorted(dataset.class_names)
    assert together != list(dataset.class_names)


def test_split_depends_on_the_seed_and_on_nothing_else() -> None:
    first, again, other = (toy(50).split(0.5, 0.5, seed=seed)[0] for seed in (0, 0, 1))
    assert first.class_names == again.class_names != other.class_names
    # Written down, so that no release of Python or NumPy changes anybody's split.
    assert toy(6).split(0.5, 0.5)[0].class_names == ("0", "2", "4")


def test_with_rotations_makes_four_classes_of_one() -> None:
    dataset = ClassDataset(images(4), [0, 0, 1, 1], ["a", "b"], ["g", "h"])
    turned = dataset.with_rotations()
    assert turned.class_names[4:] == ("b/rot000", "b/rot090", "b/rot180", "b/rot270")
    assert turned.groups == ("g",) * 4 + ("h",) * 4
    assert turned.quarter_turns.tolist() == [0, 1, 2, 3] * 2
    assert turned.quarter_turns.dtype == np.uint8
    assert turned.class_indices.tolist() == [0, 1] * 4 + [2, 3] * 4
    assert turned.examples is dataset.examples
    assert dataset.num_classes == 2
    assert turned.select([6]).quarter_turns.tolist() == [2]


@pytest.mark.parametrize(
    "examples",
    [
        np.arange(200).reshape(10, 20, 1)[:, :, 0].reshape(10, 4, 5),
        np.tile(np.arange(100), (10, 1)).reshape(10, 50, 2),
        np.tile(np.arange(64), (10, 1)).reshape(10, 8, 8),
        np.tile(np.arange(64.0), (10, 1)).reshape(10, 16, 4),
        np.tile(np.arange(54), (10, 1)).reshape(10, 3, 3, 6),
    ],
    ids=lambda x: f"{x.dtype}{x.shape[1:]}",
)
def test_series_of_whole_numbers_are_no_images(examples: np.ndarray) -> None:
    assert ClassDataset(examples, np.arange(10) // 5).examples is examples


def test_split_takes_one_sequence_too() -> None:
    whole, parts = toy(10), (0.5, 0.5)
    for one in (parts, list(parts)):
        names = [part.class_names for part in whole.split(one)]
        assert names == [part.class_names for part in whole.split(*parts)]


# What is refused

Attempt = Callable[[], Any]


def one_bad(value: float) -> np.ndarray:
    array = np.full((5, 4, 4, 1), 0.5, np.float32)
    array[3, 2, 1] = value
    return array


REFUSED: dict[str, tuple[Attempt, type[Exception], str]] = {
    "lengths": (
        lambda: ClassDataset(images(5), [0, 1]),
        ValueError,
        r"same length. Received: 5 examples, 2 labels",
    ),
    "inputs of several lengths": (
        lambda: ClassDataset({"image": images(4), "text": images(3)}, range(4)),
        ValueError,
        r"as many examples of each input. Received: {'image': 4, 'text': 3}",
    ),
    "no inputs": (lambda: ClassDataset({}, []), ValueError, "at least one input"),
    "inputs called by numbers": (
        lambda: ClassDataset({0: images(4)}, range(4)),  # type: ignore[dict-item]
        TypeError,
        r"called by texts. Received: \[0\]",
    ),
    "an input of another type": (
        lambda: ClassDataset({"image": images(4), "text": 3}, range(4)),  # type: ignore[dict-item]
        TypeError,
        r"Input 'text': `examples` must be an array",
    ),
    "an unknown input": (
        lambda: ClassDataset({"image": images(4), "text": ["a"] * 4}, range(4)).input("txt"),
        ValueError,
        r"which has \['image', 'text'\]. Received: name='txt'. Did you mean 'text'",
    ),
    "the input of one": (lambda: toy().input("image"), ValueError, "has one, unnamed"),
    "rotations of several inputs": (
        lambda: ClassDataset({"image": images(4), "text": ["a"] * 4}, range(4)).with_rotations(),
        ValueError,
        "Only square images",
    ),
    "float image of a square": (
        lambda: ClassDataset(images(4, 8, 8).astype(np.float32), range(4)),
        ValueError,
        r"must be of type uint8",
    ),
    "fractions of another type": (
        lambda: toy().split("0.5", 0.5),  # type: ignore[arg-type]
        TypeError,
        r"`fractions` must be numbers",
    ),
    "empty": (lambda: ClassDataset(images(0), []), ValueError, "at least one example"),
    "empty list": (lambda: ClassDataset([], []), ValueError, "at least one example"),
    "empty axis": (lambda: ClassDataset(np.zeros((2, 0)), [0, 1]), ValueError, "shape"),
    "NaN": (lambda: ClassDataset(one_bad(np.nan), range(5)), ValueError, r"examples\[3\]"),
    "infinity": (lambda: ClassDataset(one_bad(np.inf), range(5)), ValueError, r"examples\[3\]"),
    "floats for uint8": (
        lambda: ClassDataset(images(4).astype(np.float32), range(4)),
        ValueError,
        r"uint8.*scaled to \[0, 1\].*Received: float32 up to 25\d",
    ),
    "integers for uint8": (
        lambda: ClassDataset(images(4).astype(np.int64), range(4)),
        ValueError,
        r"must be of type uint8.*Received: int64 up to 25\d",
    ),
    "no examples": (
        lambda: ClassDataset(None, [1]),  # type: ignore[arg-type]
        TypeError,
        "`examples` must be an array.*Received: examples=None",
    ),
    "ragged": (
        lambda: ClassDataset([[1, 2], [3]], [0, 1]),  # type: ignore[list-item]
        TypeError,
        "`examples` must be an array, or a list of entries of one shape. Received: a list",
    ),
    "ragged labels": (
        lambda: ClassDataset(images(2), [[1, 2], [3]]),  # type: ignore[list-item]
        TypeError,
        "`labels` must be an array, or a list of entries of one shape. Received: a list",
    ),
    "scalars": (lambda: ClassDataset(np.zeros(4), range(4)), ValueError, r"shape \(4,\)"),
    "objects": (
        lambda: ClassDataset(np.array([{}, {}]), range(2)),
        TypeError,
        "numbers or strings. Received: examples of type object",
    ),
    "float labels": (
        lambda: ClassDataset(images(2), [0.5, 1.0]),
        TypeError,
        "`labels` must be integers or strings. Received: labels of type float64",
    ),
    "one-hot labels": (
        lambda: ClassDataset(images(2), np.eye(2, dtype=int)),
        ValueError,
        r"one axis.*shape \(2, 2\)",
    ),
    "names": (
        lambda: ClassDataset(images(2), [0, 1], ["a"]),
        ValueError,
        "`class_names` must have one entry for each of the 2 classes.*Received: 1",
    ),
    "groups": (
        lambda: ClassDataset(images(2), [0, 1], groups=["a"] * 3),
        ValueError,
        "`groups` must have one entry for each of the 2 classes.*Received: 3",
    ),
    "names twice": (
        lambda: ClassDataset(images(2), [0, 1], ["a", "a"]),
        ValueError,
        "`class_names` must all differ. Received 'a' more than once",
    ),
    "unknown class": (
        lambda: ClassDataset(images(2), ["heron", "stork"]).select(["herons"]),
        ValueError,
        "unknown 'herons'. Did you mean 'heron'?",
    ),
    "class number": (lambda: toy().select([3]), ValueError, "from 0 to 2. Received: 3"),
    "class twice": (lambda: toy().select([1, "1"]), ValueError, "Received 1 more than once"),
    "no class": (lambda: toy().select([]), ValueError, "at least one class"),
    "string of classes": (lambda: toy().select("12"), TypeError, "classes='12'"),
    "class of another type": (lambda: toy().select([1.0]), TypeError, "Received: 1.0"),
    "mask of classes": (lambda: toy(2).select([True, False]), TypeError, "Received: True"),
    "fractions": (lambda: toy().split(0.5, 0.6), ValueError, r"Received: fractions=\(0.5, 0.6\)"),
    "negative": (lambda: toy().split(1.5, -0.5), ValueError, "positive"),
    "no fractions": (lambda: toy().split(), ValueError, "positive"),
    "empty part": (lambda: toy(3).split(0.9, 0.1), ValueError, "at least one class in each part"),
    "not square": (
        lambda: ClassDataset(images(2, 8, 9, 1), [0, 1]).with_rotations(),
        ValueError,
        r"square.*example_shape=\(8, 9, 1\)",
    ),
    "rotated twice": (lambda: toy().with_rotations().with_rotations(), ValueError, "already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    attempt, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        attempt()


@pytest.mark.parametrize(
    "examples",
    [
        np.zeros((4, 8, 8), np.float32),  # a black image, or one of ink and paper
        np.arange(40, dtype=np.float64).reshape(4, 10),  # features, not images
        np.arange(64, dtype=np.float32).reshape(4, 4, 4) - 8,
        images(4).astype(np.float32) / 255,
        np.arange(40).reshape(4, 10),  # tokens
        images(4).astype(np.int64) // 128,
        images(4).astype(np.uint16) * 257,
    ],
)
def test_numbers_that_are_no_bytes_are_accepted(examples: np.ndarray) -> None:
    assert ClassDataset(examples, range(4)).examples is examples


# Folders


def save(file: Path, shape: tuple[int, int] = (8, 8), value: int | None = None) -> Path:
    pixels = images(1, *shape)[0] if value is None else np.full(shape, value, np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of two images; every image is filled with another grey."""
    for i, name in enumerate(("b/2", "a/1", "b/1", "a/2")):
        save(tmp_path / f"{name}.png", value=10 * i)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    save(tmp_path / ".cache" / "thumbnail.png")
    save(tmp_path / "overview.png")
    return tmp_path


def test_from_directory_reads_images_in_sorted_order(folder: Path) -> None:
    dataset = ClassDataset.from_directory(folder, grayscale=True)
    assert dataset.class_names == ("a", "b")
    assert dataset.groups is None
    assert dataset.example_shape == (8, 8, 1)
    assert dataset.examples[:, 0, 0, 0].tolist() == [10, 30, 20, 0]


def test_from_directory_in_colour_inverted_and_resized(folder: Path) -> None:
    dataset = ClassDataset.from_directory(str(folder), size=(3, 4), invert=True)
    assert dataset.example_shape == (3, 4, 3)
    assert dataset.examples[:, 2, 3, 1].tolist() == [245, 225, 235, 255]


def test_from_directory_with_groups(tmp_path: Path) -> None:
    for name in ("Greek/beta", "Greek/alpha", "Latin/a"):
        save(tmp_path / name / "1.png")
    dataset = ClassDataset.from_directory(tmp_path)
    assert dataset.class_names == ("Greek/alpha", "Greek/beta", "Latin/a")
    assert dataset.groups == ("Greek", "Greek", "Latin")


@pytest.fixture
def damaged(folder: Path) -> Path:
    file = folder / "b" / "2.png"
    file.write_bytes(save(folder / "b" / "whole.png", (64, 64)).read_bytes()[:900])
    (folder / "b" / "whole.png").unlink()
    return file


def test_a_truncated_image_is_named(folder: Path, damaged: Path) -> None:
    with pytest.raises(ValueError, match=r"b/2\.png.*truncated.*skip_unreadable=True"):
        ClassDataset.from_directory(folder)


def test_a_truncated_image_is_left_out_when_asked(folder: Path, damaged: Path) -> None:
    with pytest.warns(UserWarning, match=r"Left out 1 unreadable image\(s\): .*b/2\.png") as seen:
        dataset = ClassDataset.from_directory(folder, grayscale=True, skip_unreadable=True)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert dataset.examples[:, 0, 0, 0].tolist() == [10, 30, 20]
    assert np.diff(dataset.class_offsets).tolist() == [2, 1]


def test_a_link_that_leads_nowhere_is_unreadable(folder: Path) -> None:
    (folder / "b" / "lost.png").symlink_to(folder / "nowhere.png")
    hint = r"b/lost\.png.*Leave out such files with skip_unreadable=True \(--skip-unreadable\)"
    with pytest.raises(ValueError, match=hint):
        ClassDataset.from_directory(folder)
    with pytest.warns(UserWarning, match=r"Left out 1 unreadable image\(s\): .*b/lost\.png"):
        assert len(ClassDataset.from_directory(folder, skip_unreadable=True)) == 4


def test_a_folder_is_read_once_whatever_links_lead_to_it(folder: Path) -> None:
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "c").symlink_to(folder / "b", target_is_directory=True)
    assert ClassDataset.from_directory(folder).class_names == ("a", "b")


def test_folders_that_cannot_be_used(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(FileNotFoundError, match=r"`path` must be an existing folder.*nowhere"):
        ClassDataset.from_directory(empty / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"`path` must be a folder.*overview.png"):
        ClassDataset.from_directory(folder / "overview.png")
    with pytest.raises(ValueError, match="one sub-folder of images for each class"):
        ClassDataset.from_directory(empty)
    save(empty / "only" / "1.png")
    with pytest.raises(ValueError, match=r"at least two classes.*one class 'only'"):
        ClassDataset.from_directory(empty)
    save(folder / "b" / "wide.png", (8, 16))
    with pytest.raises(
        ValueError, match=r"need `size`.*a/1.png.*\(8, 8, 3\).*wide.png.*\(8, 16, 3"
    ):
        ClassDataset.from_directory(folder)
    with pytest.raises(ValueError, match=r"`size` must be a positive integer or a pair.*size=0"):
        ClassDataset.from_directory(folder, size=0)
    with pytest.raises(ValueError, match=r"`resample` must be one of 'lanczos'.*'cubic'"):
        ClassDataset.from_directory(folder, size=4, resample="cubic")


# Single images

DEEP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
KINDS: dict[str, tuple[Image.Image, np.ndarray]] = {
    "bits": (Image.fromarray(DEEP > 30000), np.where(DEEP > 30000, 255, 0)),
    "16 bits": (Image.fromarray(DEEP), np.rint(DEEP / 257)),
    "palette": (Image.fromarray(images(1)[0, :, :, 0]).convert("P"), images(1)[0, :, :, 0]),
    "transparent": (Image.new("RGBA", (8, 8), (9, 9, 9, 0)), np.full((8, 8), 255)),
    "opaque": (Image.new("LA", (8, 8), (9, 255)), np.full((8, 8), 9)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_read_image_understands(kind: str, channels: int, tmp_path: Path) -> None:
    image, expected = KINDS[kind]
    file = tmp_path / "image.png"
    image.save(file)
    pixels = read_image(file, grayscale=channels == 1, dtype="uint8", alpha=False)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.repeat(expected[:, :, None], channels, axis=2))


def test_read_image_obeys_the_orientation(tmp_path: Path) -> None:
    image = Image.fromarray(images(1, 4, 6)[0])
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "image.png", exif=exif)
    pixels = read_image(tmp_path / "image.png", grayscale=True)
    np.testing.assert_array_equal(pixels[:, :, 0], np.rot90(np.asarray(image), -1))


def test_read_image_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`path` must be an image file.*nothing.png"):
        read_image(tmp_path / "nothing.png")
    file = tmp_path / "text.png"
    file.write_text("no image")
    with pytest.raises(ValueError, match=r"Not a readable image: .*text.png"):
        read_image(file)
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "floats.tif")
    with pytest.raises(ValueError, match="floats have no agreed range"):
        read_image(tmp_path / "floats.tif")


@pytest.mark.parametrize("resample", ["lanczos", "area", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_stack_is_resized_as_single_images_are(resample: str, channels: int) -> None:
    stack = images(5, 21, 17, channels)
    resized = prepare(stack, size=(6, 9), resample=resample, invert=True)
    method = {"lanczos": Image.Resampling.LANCZOS, "area": Image.Resampling.BOX}
    for one, expected in zip(resized, stack, strict=True):
        image = Image.fromarray(expected.squeeze())
        image = image.resize((9, 6), method.get(resample, Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(255 - one.squeeze(), np.asarray(image))


# TensorFlow Datasets


def store(folder: Path, feature: Any, values: list[Any]) -> None:
    """Writes a data set of four examples and two classes, `dog` and `cat`."""
    features = tfds.features.FeaturesDict(
        {
            "image": feature,
            "label": tfds.features.ClassLabel(names=["dog", "cat"]),
            "kind": tfds.features.Text(),
        }
    )
    columns = {"image": values, "label": [1, 0, 1, 0], "kind": ["felis", "canis"] * 2}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="toys",
        version="1.0.0",
        data_dir=folder,
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(columns)},
        features=features,
        disable_shuffling=True,
    )


def test_from_tfds_reads_images(tmp_path: Path) -> None:
    pixels = images(4, 8, 8, 3)
    store(tmp_path, tfds.features.Image(shape=(8, 8, 3)), list(pixels))
    dataset = ClassDataset.from_tfds("toys", "train", tmp_path, group_key="kind")
    assert dataset.class_names == ("dog", "cat")
    assert dataset.groups == ("canis", "felis")
    assert dataset.class_indices.tolist() == [1, 3, 0, 2]
    np.testing.assert_array_equal(dataset.examples, pixels)
    small = ClassDataset.from_tfds("toys", "train", tmp_path, size=4, grayscale=True, invert=True)
    np.testing.assert_array_equal(
        small.examples, prepare(pixels, size=4, grayscale=True, invert=True)
    )
    with pytest.raises(ValueError, match=r"`label_key` must be one of .*'kind'.*label_key='race'"):
        ClassDataset.from_tfds("toys", "train", tmp_path, label_key="race")


def test_from_tfds_reads_texts(tmp_path: Path) -> None:
    store(tmp_path, tfds.features.Text(), ["a", "b", "ç", "d"])
    dataset = ClassDataset.from_tfds("toys", "train", tmp_path)
    assert dataset.examples.tolist() == ["a", "b", "ç", "d"]
    named = ClassDataset.from_tfds("toys", "train", tmp_path, label_key="kind")
    assert named.class_names == ("canis", "felis")
    assert named.class_indices.tolist() == [1, 3, 0, 2]


def test_from_tfds_reads_numbers(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    store(tmp_path, tfds.features.Tensor(shape=(3,), dtype=np.float32), list(vectors))
    np.testing.assert_array_equal(
        ClassDataset.from_tfds("toys", "train", tmp_path).examples, vectors
    )


def test_from_tfds_says_what_to_do_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    retries = logging.getLogger("urllib3.connectionpool")

    def fail(*_: Any, **__: Any) -> None:
        assert not retries.isEnabledFor(logging.WARNING)
        raise ConnectionError("no route to host")

    monkeypatch.setattr(readers, "any_reachable", lambda hosts: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(FileNotFoundError, match=r"no route to host.*`data_dir`.*glyphs") as caught:
        ClassDataset.from_tfds("omniglot", "train", tmp_path)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert retries.isEnabledFor(logging.WARNING)


def test_from_tfds_says_what_is_wrong_with_a_half_imported_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(tfds, "builder")
    with pytest.raises(ImportError, match=r"tensorflow_datasets.*tensorflow-metadata<1\.18"):
        ClassDataset.from_tfds("omniglot", "train")
