"""Embeddings that are computed once: those of the encoder, in memory and on disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfmeta
from tests.rows import rows
from tfmeta.data import ClassDataset, features
from tfmeta.data.features import _digest_of_encoder

ROOT = Path(__file__).parents[2]
IMAGES = np.random.default_rng(0).integers(0, 256, [30, 6, 6, 1], np.uint8)
LABELS = np.arange(30) % 5


def encoder(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Conv2D(3, 3), keras.layers.BatchNormalization(), keras.layers.Flatten()]
    return keras.Sequential([keras.Input((6, 6, 1)), *layers, keras.layers.Dense(4)])


def dataset() -> ClassDataset:
    return ClassDataset(IMAGES, LABELS, list("abcde"), list("vvwww"))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("on_disk", [False, True])
def test_each_is_what_the_encoder_gives(tmp_path: Path, batch_size: int, on_disk: bool) -> None:
    path = tmp_path / "features" if on_disk else None
    model = encoder()
    found = features(model, dataset(), path, batch_size, verbose=False)
    order = np.argsort(LABELS, kind="stable")
    expected = model.predict(IMAGES[order].astype("float32") / 255, verbose=0)
    np.testing.assert_allclose(found.examples, expected, rtol=1e-4, atol=1e-5)
    assert (found.class_names, found.groups) == (tuple("abcde"), tuple("vvwww"))
    np.testing.assert_array_equal(found.class_offsets, dataset().class_offsets)
    assert isinstance(found.examples, np.memmap) == on_disk


def test_chosen_and_turned_classes() -> None:
    model = encoder()
    turned = dataset().select([3, 1]).with_rotations()
    found = features(model, turned, verbose=False)
    assert found.class_names == turned.class_names
    sampler = tfmeta.data.EpisodeSampler(turned, ways=8, shots=2, queries=1, seed=1)
    of_features = tfmeta.data.EpisodeSampler(found, ways=8, shots=2, queries=1, seed=1)
    images, vectors = sampler.batch(0)[0], of_features.batch(0)[0]
    expected = model.predict(images["support_x"][0], verbose=0)
    np.testing.assert_allclose(vectors["support_x"][0], expected, rtol=1e-4, atol=1e-5)


def test_a_head_on_features_is_one_on_the_encoder() -> None:
    model = encoder()
    model.trainable = False
    whole = tfmeta.LogisticRegression(model)
    head = keras.Sequential([keras.Input((4,)), keras.layers.Identity()])
    sampler = tfmeta.data.EpisodeSampler(dataset(), ways=3, shots=2, queries=2)
    vectors = features(model, dataset(), verbose=False)
    of_features = tfmeta.data.EpisodeSampler(vectors, ways=3, shots=2, queries=2)
    logits = [
        learner.predict_on_batch(drawn.batch(0, 4)[0])
        for learner, drawn in [(whole, sampler), (tfmeta.LogisticRegression(head), of_features)]
    ]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-4)


class Dying:
    """An encoder that ends a process in its 260th call."""

    def __init__(self, model: keras.Model) -> None:
        self.model, self.weights, self.to_json, self.calls = model, model.weights, model.to_json, 0

    def __call__(self, x: Any, training: bool) -> Any:
        self.calls += 1
        if self.calls == 260:
            raise KeyboardInterrupt
        return self.model(x, training=training)


@pytest.mark.parametrize("batch_size", rows([4, 7], [4]))
def test_interrupted_and_continued_gives_the_same_bytes(tmp_path: Path, batch_size: int) -> None:
    dying = Dying(encoder())
    many = ClassDataset(np.tile(IMAGES, [100, 1, 1, 1]), np.arange(3000) % 5)
    features(dying.model, many, tmp_path / "whole", batch_size, verbose=False)
    with pytest.raises(KeyboardInterrupt):
        features(dying, many, tmp_path / "cut", batch_size, verbose=False)
    assert not (tmp_path / "cut" / "cache.json").exists()
    features(dying, many, tmp_path / "cut", batch_size, verbose=False)
    assert dying.calls < 260 + 3000 // batch_size
    for name in ("examples.npy", "labels.npy"):
        whole, cut = (tmp_path / folder / name for folder in ("whole", "cut"))
        assert whole.read_bytes() == cut.read_bytes()


def test_what_is_there_is_of_this_encoder_and_these_data(tmp_path: Path) -> None:
    path = tmp_path / "features"
    features(encoder(), dataset(), path, verbose=False)
    with pytest.raises(ValueError, match=r"`encoder` must be '\w+' as when the cache"):
        features(encoder(1), dataset(), path, verbose=False)
    other = IMAGES.copy()
    other[3, 0, 0] += 1
    with pytest.raises(ValueError, match="`source` must be"):
        features(encoder(), ClassDataset(other, LABELS), path, verbose=False)
    made = features(encoder(1), dataset(), path, overwrite=True, verbose=False)
    np.testing.assert_array_equal(made.examples, features(encoder(1), dataset()).examples)


@pytest.mark.slow
def test_an_encoder_is_the_same_in_another_process() -> None:
    names = "_digest_of_encoder, encoder"
    program = f"from tests.data.test_features import {names}; "
    program += "print(_digest_of_encoder(encoder()))"
    keras.Sequential([keras.layers.Dense(1)])  # counts the names up
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split()[-1] == _digest_of_encoder(encoder()), done.stderr
    changed = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(3, 3, padding="same")])
    same = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(3, 3)])
    changed.set_weights(same.get_weights())
    assert _digest_of_encoder(changed) != _digest_of_encoder(same)


def bad(output: Any) -> Any:
    return lambda x, training: output(np.asarray(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((bad(lambda x: x), dataset()), ValueError, r"`encoder` must return one vector.*6, 6, 1"),
        (
            (bad(lambda x: np.where(np.arange(len(x)) == 9, np.nan, 1.0)[:, None]), dataset()),
            ValueError,
            "`encoder` must return finite numbers.*example 9,",
        ),
        ((encoder(), IMAGES), TypeError, "`dataset` must be a ClassDataset. Received: ndarray"),
        ((encoder(), ClassDataset(["a", "b"], [0, 1])), TypeError, "`dataset` must hold numbers"),
        ((encoder(), dataset(), None, 0), ValueError, "`batch_size` must be at least 1"),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        features(*arguments, verbose=False)
