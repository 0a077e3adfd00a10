"""Prototypical Networks against a NumPy twin."""

import logging
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfmeta


def numpy_logits(support, labels, queries, distance, temperature):
    """Return the logits `[q, ways]` of one task, written as in the paper."""
    ways = labels.max() + 1
    logits = np.empty((len(queries), ways))
    for k in range(ways):
        centre = support[labels == k].mean(axis=0)
        for i, z in enumerate(queries):
            if distance == "cosine":
                logits[i, k] = z @ centre / (np.linalg.norm(z) * np.linalg.norm(centre))
            else:
                logits[i, k] = -np.sum((z - centre) ** 2)
    return temperature * logits


@settings(max_examples=25, deadline=None)
@given(
    tasks=st.integers(1, 3),
    shots=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    queries=st.integers(1, 6),
    dim=st.integers(1, 9),
    distance=st.sampled_from(["squared_euclidean", "cosine"]),
    temperature=st.sampled_from([1.0, 0.3, 10.0]),
    seed=st.integers(0, 1000),
)
def test_logits_equal_the_numpy_twin(tasks, shots, queries, dim, distance, temperature, seed):
    """Any number of tasks, ways, unequal shots, queries and features."""
    rng = np.random.default_rng(seed)
    n = sum(shots)
    support = rng.normal(size=(tasks, n, dim)).astype("float32")
    query = rng.normal(size=(tasks, queries, dim)).astype("float32")
    labels = np.repeat(np.arange(len(shots), dtype=np.int32), shots)
    labels = np.stack([rng.permutation(labels) for _ in range(tasks)])
    encoder = keras.Sequential([keras.Input((dim,)), keras.layers.Dense(4)])
    learner = tfmeta.PrototypicalNetwork(encoder, distance, temperature)
    logits = learner({"support_x": support, "support_y": labels, "query_x": query})
    kernel, bias = encoder.get_weights()
    bias[:] = 0
    for t in range(tasks):
        twin = numpy_logits(
            support[t].astype("float64") @ kernel,
            labels[t],
            query[t].astype("float64") @ kernel,
            distance,
            temperature,
        )
        np.testing.assert_allclose(logits[t], twin, rtol=1e-4, atol=1e-4)


def test_distances_do_not_cancel_far_from_the_origin():
    """At distance 1e-3 around a mean of norm 1e3 the expanded form has no right digit."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=64)
    centre *= 1e3 / np.linalg.norm(centre)
    q = (centre + 1e-3 * rng.normal(size=(1, 9, 64))).astype("float32")
    c = (centre + 1e-3 * rng.normal(size=(1, 5, 64))).astype("float32")
    exact = ((q.astype("float64")[:, :, None] - c.astype("float64")[:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(tfmeta.ops.squared_euclidean(q, c), exact, rtol=1e-6)
    expanded = (q**2).sum(-1)[..., None] - 2 * q @ c.swapaxes(1, 2) + (c**2).sum(-1)[:, None]
    assert np.abs(expanded / exact - 1).max() > 1


def test_cosine_of_a_zero_vector_is_zero():
    similarity = tfmeta.ops.cosine_similarity(np.zeros((1, 1, 3)), np.ones((1, 2, 3)))
    np.testing.assert_array_equal(similarity, np.zeros((1, 1, 2)))


def test_trains_with_more_ways_than_it_is_tested_with():
    rng = np.random.default_rng(0)
    learner = tfmeta.PrototypicalNetwork(tfmeta.models.mlp((5,), 4))
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def episode(ways):
        x = rng.normal(size=(2, 2, ways, 5)).astype("float32")
        y = np.tile(np.arange(ways, dtype=np.int32), (2, 1))
        return {"support_x": x[0], "support_y": y, "query_x": x[1]}, y

    learner.train_on_batch(*episode(9))
    assert learner.predict_on_batch(episode(3)[0]).shape == (2, 3, 3)


def test_a_learned_temperature_is_learnt():
    rng = np.random.default_rng(0)
    learner = tfmeta.PrototypicalNetwork(
        tfmeta.models.mlp((5,), 4), "cosine", 10.0, learn_temperature=True
    )
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.arange(3, dtype=np.int32)[None]
    x = rng.normal(size=(2, 1, 3, 5)).astype("float32")
    learner.train_on_batch({"support_x": x[0], "support_y": y, "query_x": x[1]}, y)
    assert float(learner.temperature) != 10.0


def test_a_way_without_support_is_never_predicted():
    learner = tfmeta.PrototypicalNetwork(tfmeta.models.mlp((2,), 2))
    x = np.zeros((1, 2, 2), np.float32)
    logits = learner({"support_x": x, "support_y": np.array([[0, 2]], np.int32), "query_x": x})
    assert np.isfinite(logits).all()
    assert np.argmax(logits, -1).tolist() != [[1, 1]]
    assert (np.asarray(logits)[..., 1] < -1e30).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distance": "euclidean"}, r"`distance` must be 'squared_euclidean' or 'cosine'"),
        ({"temperature": 0.0}, r"`temperature` must be positive.*temperature=0.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfmeta.PrototypicalNetwork(tfmeta.models.mlp((2,), 2), **arguments)


def test_classes_that_are_absent_are_not_in_the_adapted_model():
    """XLA has prototypes of classes that are not there."""
    learner = tfmeta.PrototypicalNetwork(tfmeta.models.mlp((2,), 2))
    learner.compile("sgd", jit_compile=True)
    x = np.array([[10, 0], [10, 1], [0, 10], [1, 10]], np.float32)
    adapted = learner.adapt(x, np.array([0, 0, 1, 1]))
    assert adapted.output_shape == (None, 2)
    learner.compile("sgd", jit_compile=False)
    plain = learner.adapt(x, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(adapted.predict(x), plain.predict(x), rtol=1e-5)


def test_adapted_logits_do_not_cancel_far_from_the_origin():
    encoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    encoder.set_weights([np.eye(3), np.full(3, 3000.0)])
    learner = tfmeta.PrototypicalNetwork(encoder)
    x, q = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    y = np.array([0, 0, 1, 1])
    logits = learner({"support_x": x[None], "support_y": y[None], "query_x": q[None]})[0]
    np.testing.assert_allclose(learner.adapt(x, y).predict(q), logits, atol=5e-3)


@keras.saving.register_keras_serializable(package="test")
class Encoder(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(4)

    def call(self, x):
        return self.dense(x)


def test_a_subclassed_encoder_adapts_after_loading_too(tmp_path):
    learner = tfmeta.PrototypicalNetwork(Encoder())
    x, q = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    y = np.array([0, 0, 1, 1])
    logits = learner({"support_x": x[None], "support_y": y[None], "query_x": q[None]})[0]
    np.testing.assert_allclose(learner.adapt(x, y).predict(q), logits, atol=1e-5)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    np.testing.assert_allclose(loaded.adapt(x, y).predict(q), logits, atol=1e-5)


def test_a_model_without_a_configuration():
    class Sized(keras.Model):
        def __init__(self, size):
            super().__init__()
            self.dense = keras.layers.Dense(size)

        def call(self, x):
            return self.dense(x)

    learner = tfmeta.PrototypicalNetwork(Sized(4))
    x, y = np.random.default_rng(0).normal(size=(2, 3)).astype("float32"), np.array([0, 1])
    logits = learner({"support_x": x[None], "support_y": y[None], "query_x": x[None]})[0]
    np.testing.assert_allclose(learner.adapt(x, y).predict(x), logits, atol=1e-5)


def test_mixed_precision(request):
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    request.addfinalizer(lambda: keras.mixed_precision.set_dtype_policy("float32"))
    learner = tfmeta.PrototypicalNetwork(tfmeta.models.mlp((3,), 4))
    x, q = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    y = np.array([0, 0, 1, 1])
    logits = learner({"support_x": x[None], "support_y": y[None], "query_x": q[None]})[0]
    np.testing.assert_allclose(learner.adapt(x, y).predict(q), logits, atol=2e-2)


def test_labels_of_two_axes():
    learner = tfmeta.PrototypicalNetwork(tfmeta.models.mlp((3,), 4))
    with pytest.raises(ValueError, match=r"`support_y` must have one axis.*\(2, 1\)"):
        learner.adapt(np.ones((2, 3), np.float32), np.array([[0], [1]]))


def test_an_encoder_must_give_vectors():
    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
    learner = tfmeta.PrototypicalNetwork(encoder)
    x, y = np.zeros((4, 8, 8, 1), np.float32), np.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"`encoder` must return one vector .*\(4, 6, 6, 2\)"):
        learner.adapt(x, y)


@pytest.mark.parametrize(("momentum", "left"), [(0.5, 0.125), (0.1, 0.001)])
def test_statistics_that_a_training_was_too_short_for(momentum, left, caplog):
    """Keras's default momentum of 0.99 made 79 % of 97 % after 200 steps, without a word."""
    norm = keras.layers.BatchNormalization(momentum=momentum, name="norm")
    encoder = keras.Sequential([keras.Input([3]), keras.layers.Dense(2), norm])
    learner = tfmeta.PrototypicalNetwork(encoder)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tfmeta.data.ClassDataset(np.eye(12, 3, dtype=np.float32), np.arange(12) // 4)
    episodes = tfmeta.data.EpisodeSampler(data, ways=2, shots=1, queries=1)
    norm.moving_mean.assign([1e6, 1e6])
    with caplog.at_level(logging.WARNING, "tfmeta"):
        learner.fit(episodes.dataset(), steps_per_epoch=3, verbose=0)
    np.testing.assert_allclose(norm.moving_mean, left * 1e6, rtol=1e-3)
    said = "After 3 steps .* still hold 12 % of what .* momentum of layer 'norm' is 0.5"
    assert bool(re.search(said, caplog.text)) == (left > 0.01)
    assert bool(caplog.records) == (left > 0.01)
