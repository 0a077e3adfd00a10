"""Examples without labels in episodes: which, what becomes of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import reference
from tfmeta.data import Augmentation, ClassDataset, EpisodeSampler, write_episodes

SIZES = [7, 8, 9, 10, 11, 12, 13]
OWNER = np.repeat(np.arange(len(SIZES)), SIZES)
GROUPS = ["cat"] * 6 + ["dog"]


def vectors() -> ClassDataset:
    """Vectors that tell which example they are; zeros are none."""
    return ClassDataset(np.arange(len(OWNER), dtype=np.float32)[:, None] + 1, OWNER, groups=GROUPS)


OPTIONS: list[dict[str, Any]] = [
    {"ways": 3, "shots": 1, "unlabelled": 3},
    {"ways": 3, "shots": 2, "unlabelled": 2, "distractors": 2},
    {"ways": (2, 4), "shots": 1, "unlabelled": 2, "distractors": 3},
    {"ways": (2, 3), "shots": (1, 4), "unlabelled": 2, "distractors": 1, "balanced": False},
    {"ways": 2, "shots": 1, "unlabelled": 4, "distractors": 1, "class_weights": "examples"},
    {"ways": 2, "shots": 1, "unlabelled": 2, "distractors": 1, "random_rotation": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_they_are_those_of_the_twin(options: dict[str, Any]) -> None:
    images = np.random.default_rng(0).integers(0, 256, [len(OWNER), 4, 4, 1], np.uint8)
    source = ClassDataset(images, OWNER)
    sampler = EpisodeSampler(source, queries=2, seed=11, **options)
    both = [n if isinstance(n, tuple) else (n, n) for n in (options["ways"], options["shots"])]
    for step, tasks in ((0, 20), (2**63 - 1, 3)):
        labelled, unlabelled, turns = reference.sample_unlabelled(
            source.class_offsets, source.class_indices, source.quarter_turns, [[*range(7)]], *both,
            2, options["unlabelled"], options.get("distractors", 0), 11, step, tasks, 0,
            random_rotation=options.get("random_rotation", False),
            balanced=options.get("balanced", True), weighted="class_weights" in options,
        )  # fmt: skip
        support, query, of_labelled = sampler.draw(step, tasks)
        np.testing.assert_array_equal(np.concatenate([support, query], 2), labelled)
        np.testing.assert_array_equal(of_labelled, turns[:, : labelled.shape[1]])
        np.testing.assert_array_equal(sampler.draw_unlabelled(step, tasks), unlabelled)
        inputs, targets = sampler.batch(step, tasks)
        every = np.broadcast_to(turns[..., None], unlabelled.shape)
        drawn = reference.gather(images, unlabelled, every)
        np.testing.assert_array_equal(inputs["unlabelled_x"], drawn.reshape(tasks, -1, 4, 4, 1))
        np.testing.assert_array_equal(targets >= 0, query.reshape(tasks, -1) >= 0)
        if any(isinstance(n, tuple) for n in options.values()):
            there = unlabelled.reshape(tasks, -1) >= 0
            np.testing.assert_array_equal(inputs["unlabelled_mask"], there)
        else:
            assert "unlabelled_mask" not in inputs


@pytest.mark.parametrize("options", OPTIONS[:-1])
def test_none_of_them_is_labelled_and_distractors_are_of_other_classes(
    options: dict[str, Any],
) -> None:
    sampler = EpisodeSampler(vectors(), queries=2, within="group", seed=5, **options)
    inputs, targets = sampler.batch(3, 200)
    more, each = options.get("distractors", 0), options["unlabelled"]
    seen = set()
    for task, labels in enumerate(targets):
        ways = len({label for label in labels if label >= 0})
        seen.add(ways)
        drawn = {
            name: {int(x) - 1 for x in inputs[name][task].ravel() if x > 0}
            for name in ("support_x", "query_x", "unlabelled_x")
        }
        assert len(drawn["unlabelled_x"]) == (ways + more) * each
        assert not drawn["unlabelled_x"] & (drawn["support_x"] | drawn["query_x"])
        classes = {OWNER[i] for i in drawn["query_x"]}
        others = {OWNER[i] for i in drawn["unlabelled_x"]} - classes
        assert (len(classes), len(others)) == (ways, more)
        # All of a task come from one group.
        assert len({GROUPS[c] for c in classes | others}) == 1
    most = options["ways"][-1] if isinstance(options["ways"], tuple) else options["ways"]
    # The largest group has six classes, and so there is no room for more.
    assert max(seen) == min(most, 6 - more)


def test_they_depend_on_seed_step_and_task_alone() -> None:
    def drawn(seed: int, step: int, tasks: int) -> Any:
        sampler = EpisodeSampler(vectors(), 2, 1, 2, seed, unlabelled=2, distractors=1)
        return sampler.batch(step, tasks)[0]["unlabelled_x"]

    whole = drawn(0, 4, 8)
    np.testing.assert_array_equal(drawn(0, 4, 3), whole[:3])
    sampler = EpisodeSampler(vectors(), 2, 1, 2, unlabelled=2, distractors=1).shard(1, 2)
    np.testing.assert_array_equal(sampler.batch(4, 4)[0]["unlabelled_x"], whole[4:])
    for other in (drawn(1, 4, 8), drawn(0, 5, 8)):
        assert (other != whole).any()


@pytest.mark.parametrize("queries", [True, False])
def test_they_are_augmented_as_support_examples_are(queries: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, [len(OWNER), 6, 6, 1], np.uint8)
    change = Augmentation(flip=True, crop=2, queries=queries)
    options: dict[str, Any] = {"unlabelled": 3, "distractors": 2, "augmentation": change}
    sampler = EpisodeSampler(ClassDataset(images, OWNER), 3, 1, 2, seed=7, **options)
    inputs, _ = sampler.batch(1, 4)
    support, query, _ = sampler.draw(1, 4)
    labelled = np.full((4, 5, 3), -1)
    labelled[:, :3] = np.concatenate([support, query], 2)
    indices = np.concatenate([labelled, sampler.draw_unlabelled(1, 4)], 2)
    changes = reference.augmentations(30, 6, 6, 7, 1, 4, flip=True, crop=2).reshape(4, 5, 6)
    for name, ways, part in (
        ("support_x", 3, np.s_[..., :1]),
        ("query_x", 3, np.s_[..., 1:3]),
        ("unlabelled_x", 5, np.s_[..., 3:]),
    ):
        of = indices[:, :ways][part]
        changed = name != "query_x" or queries
        drawn = reference.gather(
            images, of, np.zeros(of.shape, np.uint8), changes[:, :ways][part] if changed else None
        )
        np.testing.assert_array_equal(inputs[name], drawn.reshape(inputs[name].shape))


def test_a_dataset_of_them_has_static_shapes() -> None:
    sampler = EpisodeSampler(vectors(), (2, 3), 1, 2, unlabelled=2, distractors=1)
    inputs, _ = sampler.dataset(4).element_spec
    assert inputs["unlabelled_x"].shape == (4, 8, 1)
    assert inputs["unlabelled_mask"].shape == (4, 8)
    assert "unlabelled=2, distractors=1" in repr(sampler)


def test_a_list_of_episodes_has_no_place_for_them(tmp_path: Path) -> None:
    sampler = EpisodeSampler(vectors(), 2, 1, 2, unlabelled=2)
    with pytest.raises(ValueError, match="`sampler` must have `unlabelled=0`"):
        write_episodes(tmp_path / "list", sampler, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unlabelled": -1}, "`unlabelled` must be at least 0"),
        (
            {"distractors": 1},
            r"`distractors` must be 0 where there are no unlabelled.*unlabelled=0",
        ),
        (
            {"unlabelled": 1, "distractors": 6},
            r"`ways` \+ `distractors` must be at most the number of classes, 7.*distractors=6",
        ),
        (
            {"unlabelled": 1, "distractors": 5, "within": "group"},
            r"`ways` \+ `distractors` must be at most .* of a group.*'cat', has 6",
        ),
        (
            {"unlabelled": 5},
            r"at least `shots` \+ `queries` \+ `unlabelled` = 1 \+ 2 \+ 5 = 8 ex.*: 0 \(7\)\.",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpisodeSampler(vectors(), 2, 1, 2, **options)
