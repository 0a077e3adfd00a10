"""Nothing is traced twice: not by steps, nor epochs, nor for validation with other shapes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.rows import rows


def network(outputs: int | None = 4) -> keras.Model:
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(5)(inputs))
    return keras.Model(inputs, x if outputs is None else keras.layers.Dense(outputs)(x))


LEARNERS = {
    "MAML": lambda: tfmeta.MAML(network(), 0.1, 2, task_axis="packed"),
    "MAML-loop": lambda: tfmeta.MAML(network(), 0.1, 2, task_axis="loop"),
    "MAML++": lambda: tfmeta.MAMLPlusPlus(network(), 0.1, 2, multi_step_epochs=2),
    "ProtoMAML": lambda: tfmeta.ProtoMAML(network(None), 0.1, 2),
    "Prototypical": lambda: tfmeta.PrototypicalNetwork(network(None)),
}


def episodes(ways: int, shots: int, queries: int, tasks: int) -> tf.data.Dataset:
    """Return one meta-batch, repeated for ever."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(ways), (tasks, 1))
    inputs = {
        "support_x": rng.normal(size=(tasks, ways * shots, 6)).astype("float32"),
        "support_y": np.tile(labels, (1, shots)),
        "query_x": rng.normal(size=(tasks, ways * queries, 6)).astype("float32"),
    }
    return tf.data.Dataset.from_tensors((inputs, np.tile(labels, (1, queries)))).repeat()


@pytest.mark.parametrize("name", rows(LEARNERS, {"MAML++", "MAML-loop"}))
def test_one_trace_for_each_shape(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = LEARNERS[name]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Both create variables when they are first used.
    learner.compile("adam", loss, metrics=["accuracy"])
    traces: list[str] = []

    def counted(kind: str) -> None:
        step = getattr(learner, kind)

        def with_count(*args: object) -> object:
            traces.append(kind)
            return step(*args)

        monkeypatch.setattr(learner, kind, with_count)

    counted("train_step")
    counted("test_step")
    training, other, third = episodes(4, 1, 2, 3), episodes(3, 2, 1, 2), episodes(2, 3, 4, 2)
    few = {"steps_per_epoch": 3, "verbose": 0}
    learner.fit(training, epochs=3, validation_data=other, validation_steps=2, **few)
    assert traces == ["train_step", "test_step"]
    # MAML++ goes on to another phase of its training.
    learner.fit(training, epochs=2, validation_data=other, validation_steps=2, **few)
    assert traces == ["train_step", "test_step"]
    fourth = episodes(2, 1, 1, 5)
    for _ in range(2):
        for shape in (third, other, fourth):
            learner.evaluate(shape, steps=2, verbose=0)
    # At most one for each shape; TensorFlow leaves sizes open that it has seen to vary.
    assert traces.count("train_step") == 1
    assert traces.count("test_step") <= 3
