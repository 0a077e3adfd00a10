"""One class more or less gives what adapting anew gives, saved and exported too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfmeta
from tests.algorithms.test_heads import HEADS, SIZE, compiled, dense, identity
from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.task_model import TaskModel

RNG = np.random.default_rng(1)
X = RNG.normal(size=(14, SIZE)).astype("float32")
Y = np.array([0, 1, 2, 2, 1, 0, 0, 1, 2, 3, 3, 3, 3, 3])
OLD = Y < 3
QUERIES = RNG.normal(size=(20, SIZE)).astype("float32")
# Heads that can have one class more, by what `test_heads` calls them, and others of their kind.
CAN = {
    **{k: HEADS[k] for k in ("SimpleShot", "KNearestNeighbors", "R2D2", "PrototypicalNetwork")},
    "cosine": lambda encoder: tfmeta.PrototypicalNetwork(encoder, "cosine", 7.0),
    "warm": lambda encoder: tfmeta.PrototypicalNetwork(encoder, temperature=0.3),
}


def same(one: Any, other: Any) -> None:
    expected = np.asarray(other(QUERIES))
    found = np.asarray(one(QUERIES))
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CAN)
@pytest.mark.parametrize("make", [dense, pytest.param(identity, marks=pytest.mark.slow)])
def test_one_class_more_or_less_is_adapting_anew(name: str, make: Any) -> None:
    learner = CAN[name](make())
    old, everything = learner.adapt(X[OLD], Y[OLD]), learner.adapt(X, Y)
    before = np.asarray(old(QUERIES))
    more = tfmeta.add_class(old, X[~OLD])
    same(more, everything)
    same(tfmeta.remove_class(everything, 3), old)
    stays = Y != 1
    without = learner.adapt(X[stays], np.array([0, -1, 1, 2])[Y[stays]])
    same(tfmeta.remove_class(more, 1), without)
    np.testing.assert_array_equal(old(QUERIES), before)


@pytest.mark.parametrize(
    "name", [n if n == "R2D2" else pytest.param(n, marks=pytest.mark.slow) for n in CAN]
)
def test_what_was_saved_can_be_changed_and_what_was_changed_saved(
    name: str, tmp_path: Path
) -> None:
    learner = CAN[name](dense())
    old, everything = learner.adapt(X[OLD], Y[OLD]), learner.adapt(X, Y)
    old.save(tmp_path / "old.keras")
    loaded = tfmeta.add_class(keras.models.load_model(tmp_path / "old.keras"), X[~OLD])
    loaded.save(tmp_path / "more.keras")
    same(keras.models.load_model(tmp_path / "more.keras"), everything)
    tfmeta.export.saved_model(loaded, tmp_path / "more", class_names=list("abcd"))
    served = tf.saved_model.load(tmp_path / "more")
    same(lambda x: served.predict(query_x=x)["predictions"], everything)


def test_what_becomes_of_the_learner_reaches_no_model() -> None:
    learner = tfmeta.R2D2(dense())
    old, everything = learner.adapt(X[OLD], Y[OLD]), learner.adapt(X, Y)
    expected = np.asarray(everything(QUERIES))
    for variable in learner.variables:
        variable.assign(variable + 1)
    more = tfmeta.add_class(old, X[~OLD])
    np.testing.assert_allclose(more(QUERIES), expected, atol=1e-6)
    for variable in more.variables:
        variable.assign(variable * 0)
    np.testing.assert_allclose(everything(QUERIES), expected)


def test_an_encoder_that_cannot_be_copied() -> None:
    model = keras.Sequential([keras.Input((SIZE,)), keras.layers.Lambda(lambda x: x - 1)])
    learner = tfmeta.PrototypicalNetwork(model)
    same(tfmeta.add_class(learner.adapt(X[OLD], Y[OLD]), X[~OLD]), learner.adapt(X, Y))


def test_centred_embeddings_far_from_the_origin() -> None:
    learner = tfmeta.PrototypicalNetwork(identity())
    x = X + 1000
    more = tfmeta.add_class(learner.adapt(x[OLD], Y[OLD]), x[~OLD])
    expected = learner.adapt(x, Y)(QUERIES + 1000)
    np.testing.assert_allclose(more(QUERIES + 1000), expected, rtol=1e-3)


def test_under_xla_too() -> None:
    learner = compiled(tfmeta.SimpleShot(identity()), jit_compile=True)
    more = tfmeta.add_class(learner.adapt(X[OLD], Y[OLD]), X[~OLD])
    found, expected = more(QUERIES), learner.adapt(X, Y)(QUERIES)
    np.testing.assert_allclose(found, expected[:, :4], atol=1e-6)


def others() -> list[tuple[str, keras.Model]]:
    """What the error calls models whose heads cannot have one class more, and those."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(3)])
    heads = [head(identity()) for name, head in HEADS.items() if name not in CAN]
    learners = [tfmeta.MAML(network, 0.1, 1), tfmeta.ProtoMAML(dense(), 0.1, 1), *heads]
    for learner in learners:
        learner.compile(loss=loss)
    adapted = [learner.adapt(X[OLD], Y[OLD]) for learner in learners]
    # A model of Keras's own layers does not say whose it is.
    names = [type(x.by() if isinstance(x, TaskModel) else x).__name__ for x in adapted]
    return [*zip(names, adapted, strict=True), ("MAML", learners[0])]


def test_other_heads_are_refused_in_words() -> None:
    for name, model in others():
        with pytest.raises(ValueError, match=f"`adapted` must .*{name}; adapt anew with"):
            tfmeta.add_class(model, X)
        with pytest.raises(ValueError, match=f"`adapted` must .*{name}; adapt anew with"):
            tfmeta.remove_class(model, 0)
    with pytest.raises(ValueError, match="`adapted` must be what `adapt` returned"):
        tfmeta.add_class("model", X)  # type: ignore[arg-type]


def test_each_head_can_or_is_refused() -> None:
    for name, head in HEADS.items():
        learner = head(identity())
        learner.adapt(X, Y)
        can = bool(learner.of_classes) or type(learner).kept is not EmbeddingLearner.kept
        assert can == (name in CAN), name


@pytest.mark.parametrize("name", CAN)
def test_bad_arguments(name: str) -> None:
    adapted = CAN[name](dense()).adapt(X[OLD], Y[OLD])
    for error, message, examples in [
        (ValueError, r"`examples` must have the shape \[n, 12\]", X[:, :5]),
        (ValueError, "`examples` must be one or more", X[:0]),
        (ValueError, "`examples` must be finite", np.full([1, SIZE], np.nan, "float32")),
        (TypeError, "`examples` must be scaled", X.astype("uint8")),
    ]:
        with pytest.raises(error, match=message):
            tfmeta.add_class(adapted, examples)
    with pytest.raises(ValueError, match=r"`label` must be one of the classes 0\.\.2, and not"):
        tfmeta.remove_class(adapted, 3)
    with pytest.raises(TypeError, match="`label` must be an integer"):
        tfmeta.remove_class(adapted, 1.5)  # type: ignore[arg-type]
    single = tfmeta.remove_class(tfmeta.remove_class(adapted, 0), 0)
    with pytest.raises(ValueError, match="not the only one"):
        tfmeta.remove_class(single, 0)
    with pytest.raises(TypeError, match="must be scaled as in training"):
        tfmeta.add_class(adapted, X)(X.astype("uint8"))


def image_encoder() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(4, 3, 2), keras.layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of each of the classes a, b and c, and one more class elsewhere."""
    for name in ("few/a", "few/b", "few/c", "more/d"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(3):
            pixels = RNG.integers(0, 256, (9, 7, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_a_classifier_with_one_class_more_or_less(folder: Path) -> None:
    learner = tfmeta.SimpleShot(image_encoder())
    files = sorted((folder / "few").rglob("*.png"))
    more = sorted((folder / "more" / "d").iterdir())
    small = tfmeta.Classifier.adapt(learner, folder / "few")
    small.save(folder / "saved")
    large = tfmeta.Classifier.load(folder / "saved").add_class("d", more)
    assert large.class_names == ("a", "b", "c", "d")
    assert small.class_names == ("a", "b", "c")
    (folder / "more" / "d").rename(folder / "few" / "d")
    anew = tfmeta.Classifier.adapt(learner, folder / "few")
    found, expected = large.classify(files), anew.classify(files)
    assert [x for x, _ in found] == [x for x, _ in expected]
    np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], atol=1e-6)
    fewer = large.remove_class("b")
    assert fewer.class_names == ("a", "c", "d")
    fewer.save(folder / "saved")
    again = tfmeta.Classifier.load(folder / "saved").classify(files[:3])
    assert [x for x, _ in again] == [x for x, _ in fewer.classify(files[:3])]
    with pytest.raises(ValueError, match=r"`class_names` must be different names.*'c' 2 times"):
        fewer.add_class("c", files)
    with pytest.raises(ValueError, match=r"`name` must be one of 'a', 'c', 'd'\..*'b'"):
        fewer.remove_class("b")
    with pytest.raises(ValueError, match="`files` must be one or more images"):
        fewer.add_class("e", [])
    read = tfmeta.Classifier(lambda x: x, ("a", "b"), {}, format="saved_model")
    with pytest.raises(ValueError, match="must be a Keras model for its classes to change"):
        read.add_class("e", files)
