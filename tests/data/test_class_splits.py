"""The published divisions into classes, against counts and names that other sources have."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tfmeta.data import splits
from tfmeta.data.class_splits import PARTS, _tables, class_lists, plain, published_names, source_of
from tfmeta.named_data import NAMED, in_bytes

# As the papers say them.
PUBLISHED = {
    ("cub", "closer_look"): (100, 50, 50),
    ("cub", "meta_dataset"): (140, 30, 30),
    ("flowers", "meta_dataset"): (71, 15, 16),
    ("dtd", "meta_dataset"): (33, 7, 7),
    ("aircraft", "meta_dataset"): (70, 15, 15),
    ("traffic_signs", "meta_dataset"): (0, 0, 43),
    ("quickdraw", "meta_dataset"): (241, 52, 52),
    ("eurosat", "bscd_fsl"): (0, 0, 10),
    ("plant_village", "bscd_fsl"): (0, 0, 38),
    ("stanford_dogs", "dn4"): (70, 20, 30),
    ("mini_imagenet", "ravi"): (64, 16, 20),
    ("tiered_imagenet", "ren"): (351, 97, 160),
    ("emnist", "closer_look"): (0, 31, 31),
    ("cifar_fs", "published"): (64, 16, 20),
    ("fc100", "published"): (60, 20, 20),
}
OWN = {"pets": (23, 7, 7), "food101": (65, 16, 20), "spoken_digit": (4, 3, 3)}
EVERY = [(name, split) for name, of in _tables().items() for split in of]


def every(lists: dict[str, list[str]]) -> list[str]:
    return list(itertools.chain(*lists.values()))


@pytest.mark.parametrize(("name", "split"), EVERY)
def test_the_parts_have_the_published_sizes_and_nothing_in_common(name: str, split: str) -> None:
    lists = class_lists(name, split)
    sizes = tuple(len(lists[part]) for part in PARTS)
    own = {**OWN, "clinc150": (90, 30, 30)}
    assert sizes == (PUBLISHED.get((name, split)) or own[name])
    assert ("own" in source_of(name, split)) == (name in own)
    names = [plain(one) for one in every(lists)]
    assert len(set(names)) == len(names)
    if name in NAMED and split == NAMED[name].splits[0]:
        assert NAMED[name].classes == sizes


def test_every_table_is_asked_for() -> None:
    asked = {(name, split) for name, named in NAMED.items() for split in named.splits}
    asked.discard(("omniglot_emnist", "closer_look"))
    assert asked | {("emnist", "closer_look")} == set(EVERY)


def test_a_closer_look_takes_each_second_bird_and_each_fourth() -> None:
    lists = class_lists("cub", "closer_look")
    numbers = {part: [int(name[:3]) - 1 for name in lists[part]] for part in PARTS}
    assert numbers["train"] == list(range(0, 200, 2))
    assert numbers["validation"] == list(range(1, 200, 4))
    assert numbers["test"] == list(range(3, 200, 4))
    both = [sorted(every(class_lists("cub", x))) for x in ("closer_look", "meta_dataset")]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("name", "split", "part", "some"),
    [
        # Dalmatian, lion and hourglass; house finch and dugong; goose and meerkat.
        ("mini_imagenet", "ravi", "test", ["n02110341", "n02129165", "n03544143"]),
        ("mini_imagenet", "ravi", "train", ["n01532829", "n02074367"]),
        ("mini_imagenet", "ravi", "validation", ["n01855672", "n02138441"]),
        ("cub", "closer_look", "test", ["004.Groove_billed_Ani", "200.Common_Yellowthroat"]),
        ("cifar_fs", "published", "test", sorted(splits.CIFAR_FS_TEST)),
        ("cifar_fs", "published", "validation", sorted(splits.CIFAR_FS_VALIDATION)),
        ("fc100", "published", "test", ["baby", "bee", "whale"]),
        ("eurosat", "bscd_fsl", "test", ["SeaLake", "AnnualCrop"]),
    ],
)
def test_classes_that_are_known_to_be_there(
    name: str, split: str, part: str, some: list[str]
) -> None:
    assert set(some) <= set(class_lists(name, split)[part])


def test_dogs_keep_their_synsets_and_imagenet_has_nothing_else() -> None:
    for name, split, more in (
        ("stanford_dogs", "dn4", True),
        ("mini_imagenet", "ravi", False),
        ("tiered_imagenet", "ren", False),
    ):
        for one in every(class_lists(name, split)):
            assert one[0] == "n"
            assert one[1:9].isdecimal()
            assert (len(one) > 9) == more


def by_digest(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"0/{name}".encode()).digest())


@pytest.mark.parametrize("name", OWN)
def test_a_split_of_our_own_is_in_the_order_of_digests(name: str) -> None:
    lists = class_lists(name, "own")
    order = by_digest(every(lists))
    first, second = OWN[name][0], sum(OWN[name][:2])
    found = {"train": order[:first], "validation": order[first:second], "test": order[second:]}
    assert {part: sorted(names) for part, names in found.items()} == lists


def test_intents_are_divided_by_domain(data_dir: Path) -> None:
    domains = json.loads((data_dir / "text" / "clinc150" / "domains.json").read_text())
    names = sorted(domains)
    lists = class_lists("clinc150", "domains")
    for part, of in zip(PARTS, (names[:6], names[6:8], names[8:]), strict=True):
        assert lists[part] == sorted(intent for domain in of for intent in domains[domain])


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("001.Black_footed_Albatross", "black-footed albatross"),
        ("Corn_(maize)___Common_rust_", "Corn___Common_rust"),
        ("00042", "42"),
        ("F/A-18", "f_a 18"),
    ],
)
def test_names_that_are_the_same(name: str, same: str) -> None:
    assert plain(name) == plain(same)
    assert plain("737-400") != plain("737-300")
    assert plain("10") != plain("1")


LISTS = {"train": ["One bird", "Two"], "validation": [], "test": ["3"]}


def test_what_a_folder_lacks_is_named() -> None:
    assert published_names(["one_bird", "003", "two", "four"], LISTS, "it") == {
        "one_bird": "One bird",
        "two": "Two",
        "003": "3",
    }
    text = "it must have all 3 classes of the split. Received: 2 are missing, 'Two', '3'; unknown "
    with pytest.raises(ValueError, match=text + "to it are 'five'"):
        published_names(["One bird", "five"], LISTS, "it")
    many = {"train": [f"class {i}" for i in range(50)], "validation": [], "test": []}
    with pytest.raises(ValueError, match=r"50 are missing.*'class 7' and 42 more$"):
        published_names([], many, "it")
    with pytest.raises(ValueError, match=r"once. Received: 'TWO' and 'two', .* both 'Two'"):
        published_names(["TWO", "two", "3", "one bird"], LISTS, "it")


def test_sizes_in_words() -> None:
    assert [in_bytes(x) for x in (262_154, 11_975_353, 1_189_858_222)] == [
        "262 kB",
        "12 MB",
        "1.19 GB",
    ]


def test_the_table_of_the_documents_is_that_of_the_package() -> None:
    text = (Path(__file__).parents[2] / "docs" / "data_sets.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    found = {row[0].strip("| `"): row for row in rows if len(row) == 8}
    assert list(found) == list(NAMED)
    for name, named in NAMED.items():
        row = found[name]
        assert row[2] == " + ".join(map(str, named.classes))
        assert row[5] == (in_bytes(named.download) if named.download else "–")
        assert row[6] == named.licence
        assert row[7] == f"{'real data' if named.tested else 'mock data only'} |"


def test_folders_of_numbered_classes_may_say_what_they_are() -> None:
    lists = class_lists("traffic_signs", NAMED["traffic_signs"].splits[0])
    classes = [name for part in lists.values() for name in part]
    folders = [f"{int(name):02}.Sign number {name} (of 43)" for name in classes]
    assert published_names(folders, lists, "a folder") == dict(zip(folders, classes, strict=True))
    digits = [f"{int(name):05}" for name in classes]
    assert published_names(digits, lists, "a folder") == dict(zip(digits, classes, strict=True))
