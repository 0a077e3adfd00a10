"""Data sets by name: read from mocks of TensorFlow Datasets, from folders, and the real ones."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from tests.folders import folder_of
from tfmeta.data import ClassDataset, EpisodeSampler, benchmarks, load, read_audio, readers
from tfmeta.data.audio import WINDOW
from tfmeta.data.class_splits import PARTS, class_lists
from tfmeta.data.recordings import MELS, of_sixteen_bits
from tfmeta.named_data import FROM_FOLDERS, NAMED, in_bytes

EACH = 3  # examples of a class


@pytest.fixture(autouse=True)
def cached_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFMETA_CACHE", str(tmp_path / "cache"))


def values_of(builder: Any, key: str, name: str, number: int, i: int) -> Any:
    """One made-up value of a feature: example `i`, of class `number` that is called `name`."""
    if key == "label":
        return number
    if key == "label_name":  # as the builder spells them
        return name.partition(".")[2].lower()
    if key == "intent_name":
        return name
    feature = builder.info.features[key]
    if isinstance(feature, tfds.features.Image):
        side = [n or 12 for n in feature.shape[:2]]
        image = np.full([*side, feature.shape[2]], 7 * number % 256, np.uint8)
        image[0, -1] = 255 - image[0, -1]  # the corner at the right above
        return image
    if isinstance(feature, tfds.features.Audio):
        return np.arange(2000 + number + i) % 100
    if isinstance(feature, tfds.features.Text):
        return f"{name} {i}"
    return np.zeros([n or 1 for n in feature.shape], feature.np_dtype)


@contextlib.contextmanager
def mocked(names: list[str], read: tuple[str, ...]) -> Iterator[None]:
    """Has builders of TensorFlow Datasets give `EACH` examples of each class, in turn."""

    def as_dataset(builder: Any, **_: Any) -> tf.data.Dataset:
        if "label" in builder.info.features:
            label = builder.info.features["label"]
            assert label.num_classes == len(names)
            if builder.name == "stanford_dogs":  # which finds its names in the files
                label.names = sorted(name.lower() for name in names)
        specs = {
            key: tf.TensorSpec(feature.shape, feature.tf_dtype)
            for key, feature in builder.info.features.items()
            if key in read
        }

        def examples() -> Iterator[dict[str, Any]]:
            for i in range(EACH * len(names)):
                number = i % len(names)
                yield {key: values_of(builder, key, names[number], number, i) for key in specs}

        made = tf.data.Dataset.from_generator(examples, output_signature=specs)
        return made.apply(tf.data.experimental.assert_cardinality(EACH * len(names)))

    with tfds.testing.mock_data(as_dataset_fn=as_dataset), pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "any_reachable", lambda hosts: True)
        yield


def every(name: str, split: str) -> list[str]:
    return list(itertools.chain(*class_lists(name, split).values()))


def names_in_order(name: str, split: str) -> list[str]:
    """The names of all classes as TensorFlow Datasets numbers them, which sorts them."""
    names = every(name, split)
    if all(one.isdecimal() for one in names):
        return sorted(names, key=int)
    return sorted(names, key=str.lower)


def check_parts(parts: tuple[ClassDataset, ...], name: str, split: str, each: int) -> None:
    lists = class_lists(name, split)
    for part, key in zip(parts, PARTS, strict=True):
        assert list(part.class_names) == lists[key]
        assert set(np.diff(part.class_offsets)) == ({each} if lists[key] else set())
        assert key in part.description


QUICK = [("cub", "closer_look"), ("traffic_signs", "meta_dataset"), ("spoken_digit", "own")]
FROM_TFDS = [
    pytest.param(name, split, marks=() if (name, split) in QUICK else pytest.mark.slow)
    for name, named in NAMED.items()
    for split in named.splits
    if named.source and name not in ("cifar_fs", "fc100", "omniglot_emnist")
]


@pytest.mark.parametrize(("name", "split"), FROM_TFDS)
def test_from_tensorflow_datasets(
    name: str, split: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    named = NAMED[name]
    names = names_in_order(name, split)
    key = {"clinc150": "text", "spoken_digit": "audio"}.get(name, "image")
    options = {"size": 8} if named.image_size else {}
    features = tfds.builder(str(named.source), data_dir=tmp_path).info.features
    numbered = features["label"].names if "label" in features else ["0"]
    if not numbered[0].isdecimal():
        # Names and their order are there without the data: they are the real ones.
        assert sorted(map(spelled, numbered)) == sorted(map(spelled, names))
        names = list(numbered)
    with mocked(names, (key, named.label_key)):
        parts = load(name, tmp_path / "tfds", split=split, examples_per_class=2, **options)
        said = capsys.readouterr().err
        again = load(name, tmp_path / "tfds", split=split, examples_per_class=2, **options)
    check_parts(parts, name, split, each=2)
    assert f"licence: {named.licence}" in said
    assert str(named.source) in said
    assert f"Download: {in_bytes(named.download or 0)}" in said
    for part, other in zip(parts, again, strict=True):
        assert part.class_names == other.class_names
        np.testing.assert_array_equal(part.examples, other.examples)
        if name != "clinc150":
            assert isinstance(part.examples, np.memmap)
    shape = {"clinc150": (), "spoken_digit": (98, MELS, 1)}.get(name)
    channels = 1 if name == "quickdraw" else 3
    assert parts[2].example_shape == (shape if shape is not None else (8, 8, channels))
    if named.image_size:  # each class has its own examples, whatever it was called on the way
        of_class = {spelled(one): number for number, one in enumerate(names)}
        for c in range(parts[2].num_classes):
            image = parts[2].examples[parts[2].class_indices[2 * c]]
            assert image[-1, 0, 0] == 7 * of_class[spelled(parts[2].class_names[c])] % 256


def spelled(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def characters(*_: Any, **__: Any) -> ClassDataset:
    alphabets = ["Greek", "Latin", "Tengwar"]
    return ClassDataset(np.zeros((3, 28, 28, 1), np.uint8), [0, 1, 2], alphabets, alphabets)


def test_characters_across_scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmarks, "_characters", characters)
    names = [str(i) for i in range(62)]
    with mocked(names, ("image", "label")):
        train, validation, test = load("omniglot_emnist", tmp_path)
    assert train.class_names == ("Greek", "Tengwar")
    assert validation.class_names == tuple(map(str, range(0, 62, 2)))
    assert test.class_names == tuple(map(str, range(1, 62, 2)))
    assert test.example_shape == train.example_shape == (28, 28, 1)
    first = test.examples[test.class_indices[0]]
    # What was at the right above lies at the left below when it is set upright.
    assert (first[-1, 0, 0], first[0, -1, 0]) == (255 - 7, 7)


@pytest.mark.parametrize(
    "name",
    [
        "dtd",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (*FROM_FOLDERS, "vgg_flowers", "fc100", "cifar_fs")
        ),
    ],
)
def test_from_a_folder(name: str, tmp_path: Path) -> None:
    table = "flowers" if name == "vgg_flowers" else name
    split = NAMED[table].splits[0]
    names = every(table, split)
    # A folder cannot have a slash in its name, and may be spelled in another way.
    folders = [name.upper().replace("/", "-").replace(" ", "_") for name in names]
    parts = load(name, folder=folder_of(tmp_path / "photos", folders), size=6)
    check_parts(parts, table, split, each=2)
    for part in parts:
        for c, one in enumerate(part.class_names):
            first = part.examples[part.class_indices[part.class_offsets[c]]]
            assert first[0, 0, 0] == names.index(one) % 256
    if name == "dtd":
        fewer = load(name, folder=tmp_path / "photos", size=6, examples_per_class=1)
        check_parts(fewer, table, split, each=1)


def test_what_a_folder_has_besides_is_named(tmp_path: Path) -> None:
    names = class_lists("eurosat", "bscd_fsl")["test"]
    folder = folder_of(tmp_path / "photos", [*names, "Desert"])
    with pytest.warns(UserWarning, match=r"Left out of `folder` of 'eurosat'.*know: 'Desert'"):
        parts = load("eurosat", folder=folder, size=8)
    check_parts(parts, "eurosat", "bscd_fsl", each=2)


def test_a_part_without_classes_is_an_error_where_it_is_used(tmp_path: Path) -> None:
    names = class_lists("eurosat", "bscd_fsl")["test"]
    train, validation, test = load("eurosat", folder=folder_of(tmp_path / "photos", names), size=8)
    assert (train.num_classes, validation.num_classes, test.num_classes) == (0, 0, 10)
    assert len(train) == 0
    assert train.example_shape == (8, 8, 3)
    assert EpisodeSampler(test, ways=5, shots=1, queries=1).batch(0)[1].shape == (1, 5)
    for part, word in ((train, "train"), (validation, "validation")):
        with pytest.raises(ValueError, match=rf"eurosat\[.*\] {word}: it has no classes"):
            EpisodeSampler(part, ways=5, shots=1, queries=1)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"name": "cubs"}, ValueError, "Did you mean 'cub'"),
        ({"name": "cub", "splt": "x"}, TypeError, "splt='x'. Did you mean 'split'"),
        ({"name": "cub", "split": "metadataset"}, ValueError, "Did you mean 'meta_dataset'"),
        ({"name": "mini_imagenet"}, ValueError, "`folder` must be given for 'mini_imagenet'"),
        ({"name": "cub", "folder": "nowhere"}, FileNotFoundError, "folder='nowhere'"),
        ({"name": "clinc150", "folder": "."}, FileNotFoundError, "data_full.json"),
        ({"name": "spoken_digit", "folder": "docs"}, ValueError, "no sounds"),
        ({"name": "spoken_digit", "size": 3}, ValueError, "`size` must be None"),
        ({"name": "dtd", "size": 0}, ValueError, "`size` must be"),
        ({"name": "omniglot_emnist", "sise": 3}, TypeError, "Did you mean 'size'"),
        ({"name": "glyphs", "folder": "x"}, TypeError, "no options. Received: folder='x'"),
        ({"name": "dtd", "examples_per_class": 0}, ValueError, "at least 1"),
    ],
)
def test_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        load(**arguments)


def test_a_folder_that_lacks_classes(tmp_path: Path) -> None:
    names = class_lists("eurosat", "bscd_fsl")["test"]
    folder = folder_of(tmp_path / "photos", [*names[1:], "Desert"])
    text = r"'eurosat', '.*photos', .* all 10 classes.*1 are missing, 'AnnualCrop'; .*'Desert'"
    with pytest.raises(ValueError, match=text):
        load("eurosat", folder=folder)
    (tmp_path / "data_full.json").write_text('{"train": [["a"]]}')
    with pytest.raises(ValueError, match=r"data_full.json must be the file of clinc150"):
        load("clinc150", folder=tmp_path)


def test_a_preparation_that_was_cut_off(tmp_path: Path) -> None:
    left = tmp_path / "dtd" / "incomplete.ABC123_3.0.1"
    left.mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"'dtd' was interrupted.*incomplete\.ABC123_3\.0\.1"):
        load("dtd", tmp_path)
    left.rename(tmp_path / "dtd" / "3.0.1")
    (tmp_path / "dtd" / "3.0.1" / "dtd-train.tfrecord-00000-of-00004").touch()
    with pytest.raises(FileExistsError, match=r"'dtd' holds no whole data set"):
        load("dtd", tmp_path)


def wave(path: Path, hertz: float, rate: int = 8000, seconds: float = 0.5) -> None:
    time = np.arange(int(rate * seconds)) / rate
    sound = 0.5 * np.sin(2 * np.pi * hertz * time, dtype=np.float64)[:, None]
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(tf.audio.encode_wav(sound.astype(np.float32), rate).numpy())


def test_spoken_digits_of_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="needs the extra `audio`")
    for digit in range(10):
        for i in range(2):
            wave(tmp_path / "wav" / str(digit) / f"{i}.wav", 300 + 300 * digit)
    parts = load("spoken_digit", folder=tmp_path / "wav")
    check_parts(parts, "spoken_digit", "own", each=2)
    for part in parts:
        for c, digit in enumerate(part.class_names):
            loudest = part.examples[part.class_indices[2 * c]][5, :, 0].argmax()
            assert abs(loudest - band_of(300 + 300 * int(digit))) <= 1
    wave(tmp_path / "wav" / "3" / "0.wav", 1200, rate=16000)
    with pytest.warns(UserWarning, match="resampled to 8000 samples a second"):
        load("spoken_digit", folder=tmp_path / "wav")
    (tmp_path / "wav" / "3" / "0.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"Not a readable sound.*3/0.wav"):
        load("spoken_digit", folder=tmp_path / "wav")


def band_of(hertz: float) -> int:
    """The band whose centre is nearest, by the formula of mel."""
    low, at, high = (1127 * np.log(1 + f / 700) for f in (60, hertz, 4000))
    return int(np.abs(np.linspace(low, high, MELS + 2)[1:-1] - at).argmin())


def test_samples_and_files_give_the_same(tmp_path: Path) -> None:
    """The formula itself is held by a twin in `test_audio.py`."""
    pytest.importorskip("soundfile", reason="needs the extra `audio`")
    wave(tmp_path / "tone.wav", 700, seconds=0.4)
    samples, _ = tf.audio.decode_wav((tmp_path / "tone.wav").read_bytes())
    numbers = np.round(samples.numpy()[:, 0] * 32768).astype(np.int64)
    with pytest.warns(UserWarning, match="followed by silence"):
        read = read_audio(tmp_path / "tone.wav", 8000, 1.0, mels=MELS)
    found = of_sixteen_bits(numbers)
    assert found.shape == ((8000 - round(8000 * WINDOW)) // 80 + 1, MELS, 1)
    np.testing.assert_array_equal(found, read)


# The real data


def test_clinc150_itself(data_dir: Path) -> None:
    folder = data_dir / "text" / "clinc150"
    parts = load("clinc150", folder=folder)
    check_parts(parts, "clinc150", "domains", each=150)
    assert parts[0].example_shape == ()
    utterances = json.loads((folder / "data_full.json").read_text())["test"]
    text, intent = utterances[0]
    part = next(part for part in parts if intent in part.class_names)
    c = part.class_names.index(intent)
    within = part.class_indices[part.class_offsets[c] : part.class_offsets[c + 1]]
    assert text in part.examples[within]


@pytest.mark.slow
def test_omniglot_of_a_folder_is_that_of_tensorflow_datasets(
    data_dir: Path, tmp_path: Path
) -> None:
    for file in sorted((data_dir / "omniglot").glob("*.zip")):
        with zipfile.ZipFile(file) as images:
            images.extractall(tmp_path / "omniglot")
    # This one depends on the order of the characters, the others on what they are called.
    ours = load("omniglot", folder=tmp_path / "omniglot", preset="lake")
    theirs = load("omniglot", data_dir / "tfds", preset="lake")
    for one, other in zip(ours, theirs, strict=True):
        of = [dict(zip(x.class_names, x.groups or (), strict=True)) for x in (one, other)]
        assert of[0] == of[1]
        assert one.description == other.description
        for name in other.class_names[::97]:
            assert total(one, name) == total(other, name)
    (tmp_path / "omniglot" / "images_background" / "Greek" / "character01").rename(tmp_path / "x")
    with pytest.raises(ValueError, match=r"its 1623 characters.*with 1622 such"):
        load("omniglot", folder=tmp_path / "omniglot")


def total(dataset: ClassDataset, name: str) -> tuple[int, ...]:
    """The sums of the images of a class, sorted: files come in another order."""
    c = dataset.class_names.index(name)
    chosen = dataset.class_indices[dataset.class_offsets[c] : dataset.class_offsets[c + 1]]
    return tuple(sorted(int(dataset.examples[i].sum()) for i in chosen))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_fs", "fc100"])
def test_cifar_of_a_folder(name: str, data_dir: Path, tmp_path: Path) -> None:
    real = load(name, data_dir / "tfds")
    for part in real:
        for c, one in enumerate(part.class_names):
            (tmp_path / "images" / one).mkdir(parents=True)
            for i in part.class_indices[part.class_offsets[c] :][:2]:
                Image.fromarray(part.examples[i]).save(tmp_path / "images" / one / f"{i:06}.png")
    small = load(name, data_dir / "tfds", size=16, examples_per_class=5)
    check_parts(small, name, "published", each=5)
    assert small[0].example_shape == (16, 16, 3)
    ours = load(name, folder=tmp_path / "images")
    for part, other in zip(ours, real, strict=True):
        assert set(part.class_names) == set(other.class_names)
        for c, one in enumerate(part.class_names):
            k = other.class_names.index(one)
            first = other.examples[other.class_indices[other.class_offsets[k]]]
            np.testing.assert_array_equal(part.examples[part.class_indices[2 * c]], first)
