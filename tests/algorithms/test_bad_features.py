"""What heads are given that is not what they are for: each is an error in words, or NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.algorithms.test_heads import HEADS, KIN, SIZE, compiled, identity
from tests.rows import rows
from tfmeta.data import ClassDataset, features

RNG = np.random.default_rng(0)
LABELS = np.array([0, 0, 1, 1, 2, 2])


def vectors(n: int, size: int = SIZE) -> Any:
    return RNG.uniform(1, 2, (n, size)).astype("float32")


def logarithms() -> keras.Model:
    """An encoder that gives NaN for negative numbers."""
    x = keras.Input((SIZE,))
    return keras.Model(x, keras.ops.log(x))


def one_negative(n: int, at: int) -> Any:
    x = vectors(n)
    x[at, 3] = -1
    return x


def episode(x: Any, q: Any) -> Any:
    return {"support_x": x[None], "support_y": LABELS[None], "query_x": q[None]}, LABELS[None]


class Once:
    """A sampler of one episode."""

    def __init__(self, x: Any, q: Any) -> None:
        self.drawn = episode(x, q)

    def batch(self, step: int, meta_batch_size: int = 1) -> Any:
        return self.drawn


@pytest.mark.parametrize("name", HEADS)
def test_features_of_another_encoder(name: str) -> None:
    """Those of another width are refused, wherever they come."""
    learner = compiled(HEADS[name](identity()))
    inputs, targets = episode(vectors(6, 7), vectors(6, 7))
    message = rf"must have the shape \[.*{SIZE}\] that the model takes. Received: shape=.*7"
    with pytest.raises(ValueError, match=message):
        learner.fit(inputs, targets, verbose=0)
    with pytest.raises(ValueError, match=message):
        learner.adapt(vectors(6, 7), LABELS)
    with pytest.raises(ValueError, match=message):
        tfmeta.evaluate(learner, Once(vectors(6, 7), vectors(6, 7)), 1, verbose=False)


@pytest.mark.parametrize("name", rows(HEADS, KIN))
def test_an_encoder_that_gives_nan(name: str) -> None:
    learner = compiled(HEADS[name](logarithms()))
    good = vectors(6)
    with pytest.raises(
        ValueError, match=r"`encoder` must return finite .* example 4 of `support_x`"
    ):
        learner.adapt(one_negative(6, 4), LABELS)
    for x, q in ((one_negative(6, 2), good), (good, one_negative(6, 2))):
        with pytest.raises(ValueError, match=r"(return|predict|embeddings must be) finite"):
            tfmeta.evaluate(learner, Once(x, q), 1, verbose=False)
    found = np.asarray(learner.adapt(good, LABELS)(one_negative(6, 2)))
    # Queries that are answered together have no answers, with one that is not a number.
    where = np.full(6, True) if learner.transductive else np.arange(6) == 2
    np.testing.assert_array_equal(np.isnan(found).all(1), where)


@pytest.mark.parametrize(
    "name",
    [n if n == "KNearestNeighbors" else pytest.param(n, marks=pytest.mark.slow) for n in HEADS],
)
def test_an_encoder_that_gives_nan_in_an_export(name: str, tmp_path: Path) -> None:
    learner, good = compiled(HEADS[name](logarithms())), vectors(6)
    learner.adapt(good, LABELS)
    learner.export(tmp_path / "learner")
    served = tf.saved_model.load(tmp_path / "learner")
    task = served.adapt(support_x=good, support_y=LABELS)
    found = served.predict(query_x=one_negative(6, 2), **task)["predictions"].numpy()
    where = np.full(6, True) if learner.transductive else np.arange(6) == 2
    np.testing.assert_array_equal(np.isnan(found).all(1), where)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be numbers|Cholesky|be finite"):
        served.adapt_and_predict(support_x=one_negative(6, 2), support_y=LABELS, query_x=good)


def test_one_class_more_with_nan() -> None:
    for name in ("PrototypicalNetwork", "SimpleShot", "KNearestNeighbors", "R2D2"):
        adapted = HEADS[name](logarithms()).adapt(vectors(6), LABELS)
        with pytest.raises(ValueError, match=r"`encoder` must return finite .* 1 of `examples`"):
            tfmeta.add_class(adapted, one_negative(3, 1))


@pytest.mark.parametrize("output", [lambda x: x * np.nan, lambda x: x[..., None, None]])
def test_features_on_disk_of_no_vectors_or_of_nan(output: Any, tmp_path: Path) -> None:
    """What was refused leaves no cache behind that would pass for one."""
    x = keras.Input((SIZE,))
    bad = keras.Model(x, output(x + 0))
    dataset = ClassDataset(vectors(6), LABELS)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"`encoder` must return (finite numbers|one vector)"):
            features(bad, dataset, tmp_path / "features", verbose=False)
    made = features(identity(), dataset, tmp_path / "features", overwrite=True, verbose=False)
    np.testing.assert_allclose(made.examples, dataset.examples[dataset.class_indices])


def test_more_classes_than_there_can_be(tmp_path: Path) -> None:
    """A network has as many as outputs; a head as many as it is shown, and names say how many."""
    network = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(2)])
    maml = compiled(tfmeta.MAML(network, 0.1, 1))
    with pytest.raises(ValueError, match="the model has 2 outputs, and `ways` must not be more"):
        maml.adapt(vectors(6), LABELS)
    learner = compiled(tfmeta.SimpleShot(identity()))
    adapted = learner.adapt(vectors(6), LABELS)
    with pytest.raises(ValueError, match="`class_names` must have a name for each output"):
        tfmeta.export.saved_model(adapted, tmp_path / "adapted", class_names=["a", "b"])
    learner.export(tmp_path / "learner", class_names=["a", "b"])
    served = tf.saved_model.load(tmp_path / "learner")
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be less than 2, the number of"):
        served.adapt(support_x=vectors(6), support_y=LABELS)
    with pytest.raises((ValueError, TypeError), match=str(SIZE)):
        served.adapt(support_x=vectors(6, 7), support_y=LABELS)
