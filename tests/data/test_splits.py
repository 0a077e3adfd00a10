"""The class assignments of the package against the published lists, and that none ever moves."""

from __future__ import annotations

import json
from pathlib import Path

from tfmeta.data import splits

PARTS = {"train": "train", "validation": "val", "test": "test"}


def test_vinyals_is_the_published_split(data_dir: Path) -> None:
    published = {}
    for part, file in PARTS.items():
        text = (data_dir / "splits" / "omniglot_vinyals" / f"{file}.txt").read_text()
        for line in text.split():
            alphabet, character, _ = line.split("/")
            published[alphabet, int(character.removeprefix("character")) - 1] = part
    assert len(published) == 1623
    assert published == {key: splits.vinyals(*key) for key in published}


def test_cifar_fs_is_the_published_split(data_dir: Path) -> None:
    published = json.loads((data_dir / "splits" / "cifar100" / "cifar_fs.json").read_text())
    assert sum(len(names) for names in published["splits"].values()) == 100
    for part, key in PARTS.items():
        names = published["splits"][key]
        assert [splits.cifar_fs(name) for name in names] == [part] * len(names)


def test_fc100_is_the_published_split(data_dir: Path) -> None:
    folder = data_dir / "splits" / "cifar100"
    published = json.loads((folder / "fc100.json").read_text())
    for part, key in PARTS.items():
        names = published["superclasses"][key]
        assert [splits.fc100(name) for name in names] == [part] * len(names)
    superclass_of = json.loads((folder / "superclass_of.json").read_text())
    for part, key in PARTS.items():
        for name in published["splits"][key]:
            assert splits.fc100(superclass_of[name]) == part


def test_numbers_of_classes() -> None:
    assert len(splits.CIFAR_FS_VALIDATION) == 16
    assert len(splits.CIFAR_FS_TEST) == 20
    assert len(splits.FC100_VALIDATION) == len(splits.FC100_TEST) == 4
    fates = splits.random_characters([str(c) for c in range(1623)])
    assert [fates.count(part) for part in PARTS] == [1100, 100, 423]


def test_background_set() -> None:
    assert splits.background("Greek", 963) == "train"
    assert splits.background("Hebrew", 500) == "validation"
    assert splits.background("Tengwar", 964) == "test"


def test_shuffled_is_what_it_was() -> None:
    names = ["alpha", "beta", "gamma", "delta", "epsilon"]
    assert splits.shuffled(names) == [3, 1, 0, 4, 2]
    assert splits.shuffled(names, seed=1) == [3, 2, 4, 1, 0]
    # Without one name, the others keep their order.
    order = [names[i] for i in splits.shuffled(names)]
    order.remove("beta")
    fewer = [name for name in names if name != "beta"]
    assert [fewer[i] for i in splits.shuffled(fewer)] == order
