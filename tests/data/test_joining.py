"""`tfmeta.data.join`: several data sets as one, whose groups they are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import tfmeta
from tfmeta.data import ClassDataset, EpisodeSampler, Shards, join


def images(classes: int, each: int, first: int, *, side: int = 8) -> ClassDataset:
    """Images whose pixels all say which example they are, counted from `first`."""
    n = classes * each
    numbers = np.arange(first, first + n, dtype=np.uint8)
    pixels = np.ones((n, side, side, 1), np.uint8) * numbers[:, None, None, None]
    # Classes lie interleaved, and names are not in the order of the examples.
    return ClassDataset(pixels, [f"k{classes - 1 - i % classes}" for i in range(n)])


def test_each_class_has_the_examples_that_it_had() -> None:
    one, two = images(3, 4, 0), images(4, 5, 100)
    halves = np.split(two.examples, 2)
    two.examples = Shards(halves)
    both = join({"a": one, "b": two.select(["k3", "k0"]), "again": one})
    assert both.class_names == (
        "a/k0",
        "a/k1",
        "a/k2",
        "b/k3",
        "b/k0",
        "again/k0",
        "again/k1",
        "again/k2",
    )
    assert both.groups == ("a",) * 3 + ("b",) * 2 + ("again",) * 3
    assert len(both) == 12 + 10 + 12
    for c, (source, name) in enumerate(zip(both.groups, both.class_names, strict=True)):
        part = {"a": one, "b": two, "again": one}[source]
        k = part.class_names.index(name.split("/")[1])
        wanted = part.class_indices[part.class_offsets[k] : part.class_offsets[k + 1]]
        here = both.class_indices[both.class_offsets[c] : both.class_offsets[c + 1]]
        np.testing.assert_array_equal(both.examples[here], part.examples[wanted])
    # Nothing is copied.
    assert both.examples.arrays[0] is one.examples
    assert np.shares_memory(both.examples.arrays[1], halves[0])


def test_a_task_is_of_one_source_and_sources_are_alike() -> None:
    """Whatever the number of classes; and the tasks of a meta-batch are of several."""
    both = join({"few": images(3, 5, 0), "many": images(20, 5, 100)})
    sampler = EpisodeSampler(both, 3, 1, 2, within="group")
    drawn = sampler.draw_classes(0, 400)
    sources = [{both.groups[c] for c in task} for task in drawn]
    assert all(len(of) == 1 for of in sources)
    count = Counter(of.pop() for of in sources)
    assert 160 < count["few"] < 240  # half of 400, four standard deviations on each side
    # What is gathered is what was drawn.
    inputs, _ = sampler.batch(0, 400)
    support, _, _ = sampler.draw(0, 400)
    pixels = both.examples[support].reshape(400, 3, 8, 8, 1)
    np.testing.assert_allclose(inputs["support_x"], pixels / 255, atol=1e-6)


def test_classes_that_are_turned_stay_so() -> None:
    one = images(2, 3, 0)
    both = join({"upright": one, "turned": one.with_rotations()})
    assert both.quarter_turns.tolist() == [0, 0, 0, 1, 2, 3, 0, 1, 2, 3]
    assert both.class_names[3] == "turned/k0/rot090"


def test_texts_and_several_inputs() -> None:
    short = ClassDataset(["a", "b"], [0, 1])
    long = ClassDataset(np.array(["a longer one", "another"]), [0, 1])
    assert join({"short": short, "long": long}).examples.tolist() == [
        *("a", "b", "a longer one", "another")
    ]
    numbers = np.arange(4, dtype=np.float32).reshape(2, 2)
    two = ClassDataset({"text": ["a", "b"], "number": numbers}, [0, 1])
    both = join({"one": two, "other": two})
    assert both.input("text").examples.tolist() == ["a", "b", "a", "b"]
    np.testing.assert_array_equal(both.input("number").examples[:], [*numbers, *numbers])


def test_a_learner_trains_on_it_like_on_any_other() -> None:
    both = join({"one": images(4, 6, 0), "two": images(5, 6, 100)})
    encoder = tfmeta.models.conv4((8, 8, 1), filters=4, downsample="stride")
    head = tfmeta.SimpleShot(encoder)
    sampler = EpisodeSampler(both, 2, 1, 2, within="group")
    assert 0 <= tfmeta.evaluate(head, sampler, 4, verbose=False).mean <= 1
    history = tfmeta.pretrain(encoder, both, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_what_cannot_be_joined() -> None:
    one = images(2, 3, 0)
    with pytest.raises(
        TypeError, match=r"must be a dict of names and data sets. Received: sources=l"
    ):
        join([one])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"at least one data set. Received: sources=\{\}"):
        join({})
    with pytest.raises(TypeError, match=r"names for keys and .* Received: 'b': 3"):
        join({"a": one, "b": 3})  # type: ignore[dict-item]
    other = images(2, 3, 0, side=9)
    with pytest.raises(ValueError, match=r"'a' with uint8 \[8, 8, 1\], and 'b' with uint8 \[9, 9"):
        join({"a": one, "b": other})
    nested = ClassDataset(one.examples, ["b/c"] * 6), ClassDataset(one.examples, ["c"] * 6)
    with pytest.raises(ValueError, match=r"tell all classes apart. Received: 'a/b/c' more than"):
        join({"a": nested[0], "a/b": nested[1]})
    both = ClassDataset({"x": one.examples}, [0, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"and 'b' with \{'x': 'uint8 \[8, 8, 1\]'\}"):
        join({"a": one, "b": both})
    with pytest.raises(ValueError, match=r"'a' with uint8 \[8, 8, 1\], and 'b' with texts"):
        join({"a": one, "b": ClassDataset(["a"], [0])})
