"""The named benchmarks: what they hold and how they are asked for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmeta.data import BENCHMARKS, ClassDataset, benchmarks, load

PARTS = ("train", "validation", "test")


@pytest.fixture
def characters(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Puts small images in the place of TFDS, and records how they were asked for."""
    asked: dict[str, Any] = {}

    def from_tfds(name: str, split: str, data_dir: Any, **options: Any) -> ClassDataset:
        asked.update(options, name=name, split=split, data_dir=data_dir)
        alphabets = ["Greek"] * 900 + ["Hebrew"] * 64 + ["Tengwar"] * 659
        names = [f"{alphabet}_{c}" for c, alphabet in enumerate(alphabets)]
        labels = np.arange(1623).repeat(2)
        return ClassDataset(np.zeros((3246, 4, 4, 1), np.uint8), labels, names, alphabets)

    monkeypatch.setattr(ClassDataset, "from_tfds", from_tfds)
    return asked


def sizes(parts: tuple[ClassDataset, ...]) -> list[int]:
    return [part.num_classes for part in parts]


def test_omniglot_as_prepared_by_default(characters: dict[str, Any]) -> None:
    parts = load("omniglot", data_dir="somewhere")
    assert characters == {
        **{"name": "omniglot", "split": "train+test", "data_dir": "somewhere"},
        **{"group_key": "alphabet", "size": 28, "grayscale": True, "invert": True},
        "resample": "lanczos",
    }
    assert sizes(parts) == [4 * 900, 4 * 64, 4 * 659]
    assert parts[1].groups is not None
    assert set(parts[1].groups) == {"Hebrew"}
    assert [part.description for part in parts] == [
        f"omniglot[split=vinyals, rotations=classes, ink=one, resize=lanczos, 28x28] {part}"
        for part in PARTS
    ]


@pytest.mark.parametrize(
    ("options", "classes", "stated"),
    [
        ({"preset": "maml"}, [1100, 100, 423], "split=random, rotations=episode, ink=one"),
        ({"preset": "lake"}, [900, 64, 659], "split=background, rotations=none, ink=one"),
        ({"preset": "maml", "split": "background"}, [900, 64, 659], "rotations=episode"),
        ({"rotations": None, "ink": "zero"}, [900, 64, 659], "rotations=none, ink=zero"),
        ({"rotations": None, "resize": "area", "size": 9}, [900, 64, 659], "resize=area, 9x9"),
    ],
)
def test_omniglot_presets_and_options(
    characters: dict[str, Any], options: dict[str, Any], classes: list[int], stated: str
) -> None:
    parts = load("omniglot", **options)
    assert sizes(parts) == classes
    assert stated in parts[0].description
    assert characters["invert"] is (options.get("ink") != "zero")
    assert characters["resample"] == options.get("resize", "lanczos")
    assert characters["size"] == options.get("size", 28)
    names = [name for part in parts for name in part.class_names]
    assert len(set(names)) == 1623


def test_the_final_training_has_the_validation_classes_too(characters: dict[str, Any]) -> None:
    train, validation, test = load("omniglot", preset="vinyals_final")
    assert "split=vinyals_final" in train.description
    assert set(validation.class_names) < set(train.class_names)
    before = load("omniglot")
    assert set(train.class_names) == {*before[0].class_names, *before[1].class_names}
    assert test.class_names == before[2].class_names
    assert not set(test.class_names) & set(train.class_names)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"name": "omniglott"}, ValueError, "`name` must be one of 'omniglot', .*mean 'omniglot'"),
        ({"name": "omniglot", "preset": "mamml"}, ValueError, "'mamml'. Did you mean 'maml'"),
        ({"name": "omniglot", "rotation": None}, TypeError, "Did you mean 'rotations'"),
        ({"name": "omniglot", "rotations": "some"}, ValueError, "`rotations`.*'episode', None"),
        ({"name": "omniglot", "ink": 1}, ValueError, "`ink` must be one of 'one', 'zero'.*ink=1"),
        ({"name": "omniglot", "size": 2.5}, TypeError, "`size` must be an integer"),
    ],
)
def test_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        load(**arguments)


def test_every_benchmark_has_a_description_and_a_loader() -> None:
    for name, description in BENCHMARKS.items():
        assert len(description) > 20
        assert "data_dir" in inspect.signature(benchmarks._LOADERS[name]).parameters


def test_omniglot_itself(data_dir: Path) -> None:
    parts = load("omniglot", data_dir=data_dir / "tfds")
    assert sizes(parts) == [4112, 688, 1692]
    for part in parts:
        assert set(np.diff(part.class_offsets)) == {20}
        assert part.example_shape == (28, 28, 1)
        assert part.dtype == np.uint8
    images = parts[0].examples
    assert 0.05 < (images > 127).mean() < 0.2, "thin bright ink on black"
    assert parts[0].class_names[0] == "Arcadian_0/rot000"


@pytest.fixture(scope="module", autouse=True)
def read_cifar100_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks, "_cifar100", functools.cache(benchmarks._cifar100))
        yield


@pytest.mark.parametrize(("name", "classes"), [("cifar_fs", [64, 16, 20]), ("fc100", [60, 20, 20])])
def test_cifar_itself(name: str, classes: list[int], data_dir: Path) -> None:
    parts = load(name, data_dir=data_dir / "tfds")
    assert sizes(parts) == classes
    for part, text in zip(parts, PARTS, strict=True):
        assert set(np.diff(part.class_offsets)) == {600}
        assert part.example_shape == (32, 32, 3)
        assert part.description == f"{name} {text}"
    groups = [set(part.groups or ()) for part in parts]
    disjoint = not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    assert disjoint is (name == "fc100")
    # The published mean of the training images, 0.5071, 0.4865, 0.4409; test images differ little.
    mean = parts[0].examples[::7].mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.5071, 0.4865, 0.4409], atol=0.005)
