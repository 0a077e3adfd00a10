"""Examples that are dicts of arrays: the same episodes as of each input by itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tfmeta.data import Augmentation, ClassDataset, EpisodeList, EpisodeSampler, write_episodes

rng = np.random.default_rng(0)
LABELS = rng.permutation(np.repeat(np.arange(8), 6))
EXAMPLES: dict[str, Any] = {
    "image": rng.integers(0, 256, (48, 8, 8, 1), np.uint8),
    "numbers": rng.normal(size=(48, 3)).astype(np.float32),
    "text": [f"text {i}" for i in range(48)],
}
BOTH = ClassDataset(EXAMPLES, LABELS)
EACH = {name: ClassDataset(part, LABELS) for name, part in EXAMPLES.items()}


def assert_same(inputs: Any, alone: Any, name: str) -> None:
    for part, value in inputs.items():
        value = value[name] if isinstance(value, dict) else value
        np.testing.assert_array_equal(value, alone[part])
        assert value.dtype == alone[part].dtype


@pytest.mark.parametrize(
    "options",
    [{}, {"unlabelled": 1, "distractors": 1}, {"ways": (2, 4), "shots": (1, 3)}],
    ids=["fixed", "unlabelled", "ranges"],
)
def test_each_input_is_drawn_as_by_itself(options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"ways": 3, "shots": 1, "queries": 2, "seed": 5, **options}
    inputs, targets = EpisodeSampler(BOTH, **given).batch(2, 4)
    assert isinstance(inputs["query_x"], dict)
    for name, dataset in EACH.items():
        alone, expected = EpisodeSampler(dataset, **given).batch(2, 4)
        assert_same(inputs, alone, name)
        np.testing.assert_array_equal(targets, expected)


def test_options_of_each_input() -> None:
    flip = Augmentation(flip=True, crop=1)
    options: dict[str, Any] = {"augmentation": {"image": flip}, "mean": {"numbers": [1, 2, 3]}}
    options["std"] = {"image": 0.5, "numbers": 2.0}
    inputs, _ = EpisodeSampler(BOTH, 3, 1, 2, **options).batch(1, 3)
    image, _ = EpisodeSampler(EACH["image"], 3, 1, 2, augmentation=flip, std=0.5).batch(1, 3)
    assert_same(inputs, image, "image")
    numbers = EpisodeSampler(EACH["numbers"], 3, 1, 2, mean=[1, 2, 3], std=2.0)
    assert_same(inputs, numbers.batch(1, 3)[0], "numbers")


def test_parts_of_the_data_set() -> None:
    train, test = BOTH.split(0.5, 0.5)
    alone, _ = EACH["image"].split(0.5, 0.5)
    assert train.class_names == alone.class_names
    assert not set(train.class_names) & set(test.class_names)
    image = train.input("image")
    assert image.example_shape == (8, 8, 1)
    inputs, _ = EpisodeSampler(train, 3, 1, 1).batch(0)
    assert_same(inputs, EpisodeSampler(image, 3, 1, 1).batch(0)[0], "image")
    again = pickle.loads(pickle.dumps(EpisodeSampler(train, 3, 1, 1)))
    assert_same(again.batch(0)[0], EpisodeSampler(image, 3, 1, 1).batch(0)[0], "image")


def test_the_data_set_of_batches_is_nested() -> None:
    sampler = EpisodeSampler(BOTH, 3, 1, 2)
    for step, (inputs, targets) in zip((4, 5), sampler.dataset(2, start=4), strict=False):
        expected, labels = sampler.batch(step, 2)
        tf.nest.assert_same_structure(inputs, expected)
        assert inputs["support_x"]["image"].shape == (2, 3, 8, 8, 1)
        np.testing.assert_array_equal(inputs["query_x"]["image"], expected["query_x"]["image"])
        texts = inputs["query_x"]["text"].numpy().astype(str)
        np.testing.assert_array_equal(texts, expected["query_x"]["text"].astype(str))
        np.testing.assert_array_equal(targets, labels)


def test_lists_of_episodes(tmp_path: Path) -> None:
    sampler = EpisodeSampler(BOTH, 3, 1, 2)
    write_episodes(tmp_path / "list", sampler, 4)
    inputs, _ = EpisodeList(BOTH, tmp_path / "list").batch(3)
    expected, _ = sampler.batch(3)
    for name in EXAMPLES:
        np.testing.assert_array_equal(inputs["query_x"][name], expected["query_x"][name])
    element = next(iter(EpisodeList(BOTH, tmp_path / "list").dataset(2)))
    assert element[0]["support_x"]["numbers"].shape == (2, 3, 3)


def encoder(outputs: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = {"image": keras.Input((8, 8, 1), name="image")}
    inputs["numbers"] = keras.Input((3,), name="numbers")
    flat = [keras.layers.Flatten()(inputs["image"]), inputs["numbers"]]
    return keras.Model(inputs, keras.layers.Dense(outputs)(keras.layers.Concatenate()(flat)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: tfmeta.PrototypicalNetwork(encoder(4)),
        pytest.param(lambda: tfmeta.MAML(encoder(3), 0.1), marks=pytest.mark.slow),
    ],
    ids=["prototypical", "maml"],
)
def test_learners_are_trained_scored_and_adapted(make: Callable[[], Any]) -> None:
    two = {name: EXAMPLES[name] for name in ("image", "numbers")}
    sampler = EpisodeSampler(ClassDataset(two, LABELS), 3, 2, 2)
    learner = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    before = [w.numpy() for w in learner.trainable_variables]
    learner.fit(sampler.dataset(2), steps_per_epoch=2, verbose=0)
    assert any((w.numpy() != b).any() for w, b in zip(learner.trainable_variables, before))  # noqa: B905
    result = tfmeta.evaluate(learner, sampler, 3, references=True, verbose=False)
    inputs, targets = sampler.batch(0)
    support = {name: part[0] for name, part in inputs["support_x"].items()}
    queries = {name: part[0] for name, part in inputs["query_x"].items()}
    adapted = learner.adapt(support, inputs["support_y"][0])
    logits = adapted.predict(queries, verbose=0)
    np.testing.assert_allclose(logits, learner.predict(inputs, verbose=0)[0], rtol=1e-3, atol=1e-4)
    assert np.mean(logits.argmax(-1) == targets[0]) == result.per_episode[0]


@pytest.mark.parametrize(
    ("attempt", "error", "text"),
    [
        (lambda: EpisodeSampler(BOTH, 3, 1, 1, mean=0.5), TypeError, "`mean` must be a dict"),
        (
            lambda: EpisodeSampler(BOTH, 3, 1, 1, std={"number": 0.5}),
            ValueError,
            "Received: 'number'. Did you mean 'numbers'",
        ),
        (
            lambda: EpisodeSampler(BOTH, 3, 1, 1, mean={"text": 0.5}),
            ValueError,
            "`mean` and `std` need images",
        ),
        (
            lambda: EpisodeSampler(EACH["image"], 3, 1, 1, mean={"image": 0.5}),
            TypeError,
            "`mean` must not be a dict",
        ),
        (
            lambda: EpisodeSampler(BOTH, 3, 1, 1, random_rotation=True),
            ValueError,
            "`random_rotation` needs square images",
        ),
        (
            lambda: tfmeta.data.features(encoder(2), BOTH),
            ValueError,
            r"one input here; `dataset.input\('image'\)` has. Received: the inputs 'image'",
        ),
        (lambda: tfmeta.pretrain(encoder(2), BOTH), ValueError, "one input here"),
    ],
)
def test_refused(attempt: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        attempt()
