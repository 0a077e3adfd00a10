"""Tasks that differ in size: the same as each by itself, whatever fills up the meta-batch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.rows import rows
from tfmeta.types import Episodes

# Ways, shots and queries of each task.
SIZES = [(3, 2, 2), (2, 1, 3), (3, 1, 1)]
WAYS, SHOTS, QUERIES = (max(sizes) for sizes in zip(*SIZES, strict=True))


def tasks() -> list[Episodes]:
    """Each task as a meta-batch of its own, without padding."""
    random = np.random.default_rng(0)
    made = []
    for ways, shots, queries in SIZES:
        x = [
            random.normal(size=(1, ways * n, 8, 8, 1)).astype(np.float32) for n in (shots, queries)
        ]
        y = [np.repeat(np.arange(ways, dtype=np.int32), n)[None] for n in (shots, queries)]
        made.append(({"support_x": x[0], "support_y": y[0], "query_x": x[1]}, y[1]))
    return made


def padded() -> Episodes:
    """All tasks in one meta-batch, with NaN where there is nothing."""

    def filled(parts: list[Any], length: int, value: Any) -> Any:
        whole = np.full((len(parts), length, *parts[0].shape[2:]), value, parts[0].dtype)
        for row, part in zip(whole, parts, strict=True):
            row[: part.shape[1]] = part[0]
        return whole

    alone = tasks()
    lengths = {"support": WAYS * SHOTS, "query": WAYS * QUERIES}
    inputs = {
        f"{name}_x": filled([x[f"{name}_x"] for x, _ in alone], lengths[name], np.nan)
        for name in lengths
    }
    inputs["support_y"] = filled([x["support_y"] for x, _ in alone], lengths["support"], -1)
    targets = filled([y for _, y in alone], lengths["query"], -1)
    inputs["support_mask"], inputs["query_mask"] = inputs["support_y"] >= 0, targets >= 0
    return inputs, targets


def encoder(outputs: int | None, *, normalise: bool = True) -> keras.Model:
    """One block of conv4."""
    keras.utils.set_random_seed(1)
    layers: list[Any] = [keras.layers.Conv2D(4, 3, 2)]
    layers += [keras.layers.BatchNormalization()] if normalise else []
    layers += [keras.layers.ReLU(), keras.layers.Flatten()]
    layers += [] if outputs is None else [keras.layers.Dense(outputs)]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


LEARNERS: dict[str, Any] = {
    "MAML": lambda: tfmeta.MAML(encoder(WAYS), 0.1, 2),
    "MAML++": lambda: tfmeta.MAMLPlusPlus(encoder(WAYS), 0.1, 2, multi_step_loss="discounted"),
    "MAML-running": lambda: tfmeta.MAML(encoder(WAYS), 0.1, 1, batch_norm="running"),
    "ProtoMAML": lambda: tfmeta.ProtoMAML(encoder(None), 0.1, 1),
    "ImplicitMAML": lambda: tfmeta.ImplicitMAML(encoder(WAYS), 0.1, 2),
    "Reptile": lambda: tfmeta.Reptile(encoder(WAYS), 0.1, 2),
    # Its tasks share the statistics of a batch, so alone they would be normalised otherwise.
    "Prototypical": lambda: tfmeta.PrototypicalNetwork(encoder(None, normalise=False)),
    "Prototypical-cosine": lambda: tfmeta.PrototypicalNetwork(
        encoder(None, normalise=False), distance="cosine"
    ),
}


def compiled(name: str, **options: Any) -> Any:
    learner = LEARNERS[name]()
    learner.compile(
        keras.optimizers.SGD(1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return learner


@pytest.mark.parametrize("name", rows(LEARNERS, {"MAML-running", "MAML++", "Prototypical-cosine"}))
def test_predictions_are_those_of_each_task_alone(name: str) -> None:
    learner = compiled(name)
    inputs, _ = padded()
    predictions = learner.predict_on_batch(inputs)
    for row, (alone, _) in zip(predictions, tasks(), strict=True):
        expected = learner.predict_on_batch(alone)[0]
        n, outputs = expected.shape
        np.testing.assert_allclose(row[:n, :outputs], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    rows(["MAML", "Reptile", "Prototypical", "MAML++", "ProtoMAML"], ["MAML++", "ProtoMAML"]),
)
def test_an_outer_step_is_the_mean_of_each_tasks_own(name: str) -> None:
    def step(meta_batch: Episodes) -> tuple[list[Any], dict[str, Any]]:
        learner = compiled(name)
        learner.check_inputs(meta_batch[0])
        before = [v.numpy() for v in learner.trainable_variables]
        logs = learner.fit(tf.data.Dataset.from_tensors(meta_batch), verbose=0).history
        after = [v.numpy() for v in learner.trainable_variables]
        return [b - a for b, a in zip(before, after, strict=True)], logs

    whole, logs = step(padded())
    alone = [step(task) for task in tasks()]
    queries = np.array([ways * n for ways, _, n in SIZES])
    for i, change in enumerate(whole):
        expected = sum(parts[i] for parts, _ in alone) / len(alone)
        np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-5)
    accuracy = sum(n * x["accuracy"][0] for n, (_, x) in zip(queries, alone, strict=True))
    assert logs["accuracy"][0] == pytest.approx(accuracy / queries.sum(), abs=1e-6)
    loss = sum(x["loss"][0] for _, x in alone) / len(alone)
    assert logs["loss"][0] == pytest.approx(loss, rel=1e-4)


def test_validation_and_evaluation_leave_padding_out() -> None:
    learner = compiled("MAML")
    logs = learner.evaluate(tf.data.Dataset.from_tensors(padded()), verbose=0, return_dict=True)
    hits = [(learner.predict_on_batch(x).argmax(-1) == y).ravel() for x, y in tasks()]
    assert logs["accuracy"] == pytest.approx(np.mean(np.concatenate(hits)), abs=1e-6)

    class Sampler:
        def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
            inputs, targets = padded()
            return {name: x[step : step + 1] for name, x in inputs.items()}, targets[step][None]

    scores = tfmeta.evaluate(learner, Sampler(), episodes=3, verbose=False).per_episode
    np.testing.assert_allclose(scores, [np.mean(h) for h in hits])


@pytest.mark.parametrize("name", ["MAML", "Prototypical"])
def test_labels_of_padding_do_not_matter(name: str) -> None:
    learner = compiled(name)
    inputs, _ = padded()
    other = {**inputs, "support_y": np.maximum(inputs["support_y"], 0)}
    np.testing.assert_array_equal(learner.predict_on_batch(other), learner.predict_on_batch(inputs))


def test_xla_cannot_compile_tasks_of_different_sizes() -> None:
    for name in ("MAML", "Prototypical"):
        learner = compiled(name, jit_compile=True)
        with pytest.raises(ValueError, match=r"`jit_compile` must be False.*masks"):
            learner.fit(tf.data.Dataset.from_tensors(padded()), verbose=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_mask": None}, r"both of 'support_mask' and 'query_mask'.*no 'query_mask'"),
        ({"query_mask": np.ones([3, 9], np.int32)}, r"`query_mask` must be bool of shape \(3, 9\)"),
        ({"support_mask": np.arange(18).reshape(3, 6) < 12}, r"`support_mask` .*nowhere in task 2"),
        ({"support_mask": np.ones([3, 5], bool)}, r"`support_mask` .*\(3, 6\).*shape=\(3, 5\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    inputs, _ = padded()
    wrong = {k: v for k, v in {**inputs, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        compiled("MAML").check_inputs(wrong)
