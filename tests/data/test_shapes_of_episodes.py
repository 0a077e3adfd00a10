"""Ranges of ways and shots, pools of classes, shards of workers, and lists of episodes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tfmeta.data import Augmentation, ClassDataset, EpisodeList, EpisodeSampler, write_episodes

SIZES = [3, 4, 5, 6, 7, 8, 9, 10, 40]
GROUPS = ["cat/big", "cat/big", "cat/big", "cat/small", "cat/small", "dog", "dog", "dog", "eel"]


def make_dataset() -> ClassDataset:
    """Vectors that tell which example they are, of classes that differ in size."""
    labels = np.repeat(np.arange(len(SIZES)), SIZES)
    vectors = np.arange(len(labels), dtype=np.float32)[:, None] + 1
    return ClassDataset(vectors, labels, groups=GROUPS)


DATASET = make_dataset()
OWNER = np.repeat(np.arange(len(SIZES)), SIZES)


def classes_of(sampler: EpisodeSampler, tasks: int) -> list[list[int]]:
    _, query, _ = sampler.draw(0, tasks)
    return [[int(OWNER[way[0]]) for way in task if way[0] >= 0] for task in query]


def test_ways_and_shots_vary_within_their_ranges() -> None:
    sampler = EpisodeSampler(DATASET, ways=(2, 4), shots=(1, 5), queries=2)
    support, query, _ = sampler.draw(0, 2000)
    assert support.shape == (2000, 4, 5)
    assert query.shape == (2000, 4, 2)
    ways = (query[:, :, 0] >= 0).sum(1)
    assert set(ways) == {2, 3, 4}
    assert min(Counter(ways.tolist()).values()) > 550
    shots = (support >= 0).sum(2)
    for n, task in zip(ways, shots, strict=True):
        assert len(set(task[:n])) == 1  # balanced
        assert (task[n:] == 0).all()
    # No task has more shots than its smallest class leaves: class 0 has 3 examples.
    drawn = [OWNER[task[:n, 0]] for task, n in zip(query, ways, strict=True)]
    assert all(
        task[0] <= min(5, min(SIZES[c] for c in of) - 2)
        for task, of in zip(shots, drawn, strict=True)
    )
    assert set(shots[:, 0]) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("options", [{}, {"unlabelled": 1, "distractors": 2}])
def test_the_classes_of_each_label_are_told(options: dict[str, Any]) -> None:
    sampler = EpisodeSampler(DATASET, ways=(2, 4), shots=1, queries=1, **options)
    drawn = sampler.draw_classes(3, 50)
    _, query, _ = sampler.draw(3, 50)
    assert drawn.shape == (50, 4)
    np.testing.assert_array_equal(drawn, np.where(query[..., 0] < 0, -1, OWNER[query[..., 0]]))
    assert {2, 3, 4} == set((drawn >= 0).sum(1))


def test_a_rotated_class_is_told_from_the_others_of_its_examples() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), np.uint8)
    turned = ClassDataset(images, np.repeat([0, 1], 6)).with_rotations()
    sampler = EpisodeSampler(turned, ways=5, shots=1, queries=1)
    support, _, turns = sampler.draw(0, 20)
    expected = 4 * (support[..., 0] // 6) + turns
    np.testing.assert_array_equal(sampler.draw_classes(0, 20), expected)


def test_shots_of_each_class() -> None:
    sampler = EpisodeSampler(DATASET, ways=4, shots=(1, 5), queries=2, balanced=False)
    support, query, _ = sampler.draw(0, 300)
    shots = (support >= 0).sum(2)
    assert any(len(set(task)) > 1 for task in shots.tolist())
    assert (shots <= np.minimum(5, np.asarray(SIZES)[OWNER[query[:, :, 0]]] - 2)).all()
    assert shots.min() == 1
    assert shots.max() == 5


def test_padding_has_masks_zeros_and_labels_of_its_own() -> None:
    sampler = EpisodeSampler(DATASET, ways=(2, 4), shots=(1, 3), queries=2)
    inputs, targets = sampler.batch(0, 50)
    for x, y, mask in (
        (inputs["support_x"], inputs["support_y"], inputs["support_mask"]),
        (inputs["query_x"], targets, inputs["query_mask"]),
    ):
        assert mask.dtype == bool
        assert 0 < mask.mean() < 1
        np.testing.assert_array_equal(mask, y >= 0)
        np.testing.assert_array_equal(mask, x[..., 0] > 0)
    for task in range(50):
        labels = inputs["support_y"][task][inputs["support_mask"][task]]
        assert sorted(set(labels.tolist())) == [*range(labels.max() + 1)]
    spec, _ = sampler.dataset(3).element_spec
    assert spec["query_mask"] == tf.TensorSpec([3, 8], tf.bool)


def test_strings_and_integers_are_padded() -> None:
    texts = ClassDataset([f"text {i}" for i in range(sum(SIZES))], OWNER)
    inputs, _ = EpisodeSampler(texts, (2, 4), 1, 1).batch(0, 20)
    assert ((inputs["query_x"] == "") == ~inputs["query_mask"]).all()
    numbers = ClassDataset(np.arange(1, sum(SIZES) + 1)[:, None], OWNER)
    inputs, _ = EpisodeSampler(numbers, (2, 4), 1, 1).batch(0, 20)
    assert ((inputs["query_x"][..., 0] == 0) == ~inputs["query_mask"]).all()


def test_a_range_that_no_class_can_fill_takes_no_room() -> None:
    support, _, _ = EpisodeSampler(DATASET, ways=(2, 99), shots=(1, 99), queries=1).draw(0)
    assert support.shape == (1, len(SIZES), 39)


def test_classes_of_one_group() -> None:
    drawn = classes_of(EpisodeSampler(DATASET, 2, 1, 1, within="group"), 3000)
    assert all(len({GROUPS[c] for c in task}) == 1 for task in drawn)
    # Each group is as likely, whatever its size; "eel" has one class only.
    counts = Counter(GROUPS[task[0]] for task in drawn)
    assert set(counts) == {"cat/big", "cat/small", "dog"}
    assert min(counts.values()) > 900


def test_classes_below_any_node_of_the_tree_of_groups() -> None:
    drawn = classes_of(EpisodeSampler(DATASET, (2, 9), 1, 1, within="hierarchy"), 5000)
    nodes = Counter()
    for task in drawn:
        groups = {GROUPS[c] for c in task}
        tops = {g.split("/")[0] for g in groups}
        nodes[
            "/".join(sorted(groups)) if len(groups) == 1 else "cat" if tops == {"cat"} else ""
        ] += 1
    # Root, cat, cat/big, cat/small and dog; small tasks of a node may lie within one below it.
    assert set(nodes) == {"", "cat", "cat/big", "cat/small", "dog"}
    assert min(nodes.values()) > 700


def test_classes_by_their_number_of_examples() -> None:
    drawn = np.array(classes_of(EpisodeSampler(DATASET, 2, 1, 1, class_weights="examples"), 8000))
    expected = np.asarray(SIZES) / sum(SIZES)
    # The first two of a sequence without replacement, in any order.
    second = [
        sum(expected[a] * expected[b] / (1 - expected[a]) for a in range(9) if a != b)
        for b in range(9)
    ]
    inclusion = expected + second
    for way in (0, 1):
        # A label says nothing of a class's size: each way has half of the occurrences.
        share = np.bincount(drawn[:, way], minlength=9) / len(drawn)
        np.testing.assert_allclose(share, inclusion / 2, atol=0.02)


def test_golden_digest() -> None:
    """Seeds that are written down anywhere must go on giving the same tasks."""
    digest = hashlib.sha256()
    for options in (
        {"ways": (2, 5), "shots": (1, 6)},
        {"ways": 2, "shots": (1, 6), "balanced": False, "class_weights": "examples"},
        {"ways": (2, 4), "shots": 1, "within": "hierarchy"},
    ):
        sampler = EpisodeSampler(DATASET, queries=2, seed=11, **options)  # type: ignore[arg-type]
        for array in sampler.shard(1, 2).draw(7, 20):
            digest.update(array.astype(np.int64).tobytes())
    assert digest.hexdigest() == (
        "b8a7d41ab9bd6d8e7c40e1f07422f4b30bcca2a472927d521527617b80e2cde3"
    )


def test_workers_share_a_meta_batch_out() -> None:
    sampler = EpisodeSampler(DATASET, ways=(2, 4), shots=1, queries=1, seed=3)
    whole, targets = sampler.batch(5, 12)
    for index in range(3):
        part, labels = sampler.shard(index, 3).batch(5, 4)
        rows = slice(4 * index, 4 * index + 4)
        np.testing.assert_array_equal(labels, targets[rows])
        for name, array in part.items():
            np.testing.assert_array_equal(array, whole[name][rows])
    of_both = sampler.shard(1, 2).shard(2, 3).batch(5, 2)[1]
    np.testing.assert_array_equal(of_both, targets[10:])


def test_a_stream_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    sampler = EpisodeSampler(DATASET, ways=(2, 4), shots=1, queries=1)
    iterator = iter(sampler.dataset(2))
    for _ in range(5):
        next(iterator)
    saved = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "at"))
    again = iter(sampler.dataset(2))
    tf.train.Checkpoint(iterator=again).restore(saved).assert_consumed()
    for step in range(5, 9):
        _, expected = sampler.batch(step, 2)
        for stream in (iterator, again):
            np.testing.assert_array_equal(next(stream)[1], expected)


@pytest.mark.parametrize("ways", [3, (2, 4)])
def test_a_list_of_episodes_is_read_as_it_was_written(tmp_path: Path, ways: Any) -> None:
    images = np.random.default_rng(0).integers(1, 256, [sum(SIZES), 4, 4], np.uint8)
    dataset = ClassDataset(images, OWNER).with_rotations()
    sampler = EpisodeSampler(dataset, ways, shots=(1, 2), queries=1, seed=1)
    write_episodes(tmp_path / "list.jsonl", sampler, episodes=7)
    fixed = EpisodeList(dataset, tmp_path / "list.jsonl")
    assert len(fixed) == 7
    for step in (0, 3, 6, 7, 10):
        expected, labels = sampler.batch(step % 7)
        actual, targets = fixed.batch(step)
        real, mask = expected["query_mask"], actual["query_mask"]
        np.testing.assert_array_equal(targets[mask], labels[real])
        np.testing.assert_array_equal(actual["query_x"][mask], expected["query_x"][real])
        real, mask = expected["support_mask"], actual["support_mask"]
        np.testing.assert_array_equal(actual["support_x"][mask], expected["support_x"][real])
    np.testing.assert_array_equal(fixed.batch(1, 3)[1][2], fixed.batch(5)[1][0])
    assert next(iter(fixed.dataset(2, start=1)))[1].shape == fixed.batch(1, 2)[1].shape


GOOD = {"support": [[0], [3]], "query": [[1], [4]]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"must hold episodes.*empty"),
        ([GOOD, '{"support": [[0'], r"Line 2 of .*list\.jsonl': an episode must be in JSON"),
        ([[1]], r"Line 1 .*must have support, query, turns. Received: list"),
        ([{"support": [[0]]}], r"must have support, query, turns. Received: \['support'\]"),
        ([{**GOOD, "more": 1}], r"Received: \['more', 'query', 'support'\]"),
        ([{**GOOD, "query": [[1]]}], r"a list of positions for each class"),
        ([{**GOOD, "query": [[1], []]}], r"none of them empty"),
        ([{**GOOD, "query": [[1], [4.0]]}], r"a list of positions"),
        ([{**GOOD, "query": [[1], [92]]}], r"0 to 91. Received: 92"),
        ([{**GOOD, "query": [[1], [-1]]}], r"Received: -1"),
        ([{**GOOD, "query": [[1], [2]]}], r"Received: several in 1"),
        ([{**GOOD, "query": [[0], [4]]}], r"may come twice"),
        ([{"support": [[0], [1]], "query": [[2], [2]]}], r"may come twice"),
        ([{**GOOD, "support": 3}], r"a list of positions"),
        ([{**GOOD, "turns": 3}], r"`turns` must have a number for each class. Received: 3"),
        ([{**GOOD, "turns": [0, 4]}], r"`turns` must be 0, 1, 2 or 3"),
        ([{**GOOD, "turns": [0, 1]}], r"A list of episodes with turns needs square images"),
    ],
)
def test_names_a_line_that_is_no_episode(tmp_path: Path, lines: list[Any], message: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    with pytest.raises(ValueError, match=message):
        EpisodeList(DATASET, path)


def test_a_list_of_vectors_with_different_ways(tmp_path: Path) -> None:
    sampler = EpisodeSampler(DATASET, (2, 4), 1, 1)
    write_episodes(tmp_path / "list", sampler, 9)
    masks = [EpisodeList(DATASET, tmp_path / "list").batch(i)[0]["query_mask"] for i in range(9)]
    assert {int(mask.sum()) for mask in masks} == {2, 3, 4}


def test_representation() -> None:
    sampler = EpisodeSampler(DATASET, 2, 1, 1, mean=np.array([0.0]), std=[2.0], balanced=False)
    text = repr(sampler.shard(1, 2).shard(0, 3))
    assert text.endswith("balanced=False, mean=array([0.]), std=[2.0]).shard(3, 6)")
    pairs = ClassDataset(np.ones([8, 2], np.float32), np.arange(8) // 2)
    assert "mean=(0, 1)" in repr(EpisodeSampler(pairs, 2, 1, 1, mean=(0, 1)))


def test_what_cannot_be_written_down(tmp_path: Path) -> None:
    turned = ClassDataset(np.ones([40, 4, 4], np.uint8), np.arange(40) // 4).with_rotations()
    with pytest.raises(ValueError, match=r"`sampler` must not have `random_rotation`"):
        write_episodes(tmp_path / "x", EpisodeSampler(turned, 5, 1, 1, random_rotation=True), 3)
    with pytest.raises(TypeError, match=r"`sampler` must be an EpisodeSampler. Received: 'x'"):
        write_episodes(tmp_path / "x", "x", 3)  # type: ignore[arg-type]
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"`path` must be a text in UTF-8.*binary"):
        EpisodeList(DATASET, tmp_path / "binary")


def test_augmentations_of_a_list_depend_on_the_place_in_it(tmp_path: Path) -> None:
    images = ClassDataset(
        np.random.default_rng(0).integers(0, 256, [40, 6, 6], np.uint8), np.arange(40) // 4
    )
    write_episodes(tmp_path / "list", EpisodeSampler(images, 5, 1, 1), 6)
    fixed = EpisodeList(images, tmp_path / "list", augmentation=Augmentation(flip=True, crop=2))
    whole = fixed.batch(0, 6)[0]["query_x"]
    np.testing.assert_array_equal(fixed.batch(4)[0]["query_x"][0], whole[4])
    np.testing.assert_array_equal(fixed.batch(1, 3)[0]["query_x"], whole[3:])


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        EpisodeList(DATASET, tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="`episodes` must be at least 1"):
        write_episodes(tmp_path / "none.jsonl", EpisodeSampler(DATASET, 2, 1, 1), 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": (2, 3, 4)}, r"`ways` must be a number or \(least, most\)"),
        ({"ways": (4, 2)}, r"`ways` must be \(least, most\).*\(4, 2\)"),
        ({"ways": (0, 2)}, r"`ways` must be at least 1"),
        ({"ways": (10, 12)}, r"`ways` must be at most the number of classes, 9.*\(10, 12\)"),
        ({"shots": (3, 5)}, r"`shots` \+ `queries` = 3 \+ 2 = 5.*Received: 0 \(3\), 1 \(4\)"),
        ({"within": "groups"}, r"`within` must be one of None, 'group', 'hierarchy'"),
        ({"within": "group", "ways": 4}, r"of a group.*ways=4; the largest, 'cat/big', has 3"),
        ({"within": np.array(["group"])}, r"`within` must be one of"),
        ({"balanced": "no"}, r"`balanced` must be one of True, False. Received: balanced='no'"),
        ({"mean": 1e30, "std": 1e-30}, r"mean/std are float32 numbers"),
        ({"std": 1e-46}, r"1/std and mean/std are float32"),
        ({"within": "hierarchy", "ways": 10}, r"the largest, 'all', has 9"),
        ({"class_weights": "size"}, r"`class_weights` must be one of 'uniform', 'examples'"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(DATASET, **{"ways": 2, "shots": 1, "queries": 2, **arguments})


def test_refuses_groups_where_there_are_none_and_shards_that_are_none() -> None:
    alone = ClassDataset(DATASET.examples, OWNER)
    with pytest.raises(ValueError, match=r"`within` must be None for a dataset without groups"):
        EpisodeSampler(alone, 2, 1, 1, within="group")
    sampler = EpisodeSampler(alone, 2, 1, 1)
    with pytest.raises(ValueError, match="`index` must be less than 2"):
        sampler.shard(2, 2)
    with pytest.raises(ValueError, match="`count` must be at least 1"):
        sampler.shard(0, 0)
