"""Heads that are trained, on support sets or over episodes, against twins in NumPy and Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.algorithms.test_heads import (
    HEADS,
    INPUTS,
    LABELS,
    SIZE,
    TARGETS,
    WAYS,
    compiled,
    dense,
    identity,
)
from tfmeta.task_model import TaskModel


def tasks():
    """Return the support examples, their labels and the queries of each task."""
    return zip(*INPUTS.values(), strict=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def class_means(x, y):
    return np.stack([x[y == k].mean(0) for k in range(WAYS)])


RULES = {
    "SGD": (tfmeta.inner_optimizers.SGD(0.3), keras.optimizers.SGD(0.3)),
    "momentum": (tfmeta.inner_optimizers.SGD(0.1, 0.9), keras.optimizers.SGD(0.1, 0.9)),
    "Adam": (tfmeta.inner_optimizers.Adam(0.05), keras.optimizers.Adam(0.05)),
}


@pytest.mark.parametrize("name", RULES)
def test_baseline_takes_the_steps_of_keras(name):
    """The same start, loss and optimizer, with Keras's own training of a variable."""
    ours, theirs = RULES[name]
    logits = tfmeta.BaselinePlusPlus(
        identity(), 6, scale=4.0, inner_optimizer=ours
    ).predict_on_batch(INPUTS)
    for (x, y, q), found in zip(tasks(), logits, strict=True):
        optimizer = type(theirs).from_config(theirs.get_config())
        weights = keras.Variable(unit(class_means(unit(x), y)))

        def of(z, weights=weights):
            return -4.0 * keras.losses.cosine_similarity(z[:, None], weights[None])

        for _ in range(6):
            with tf.GradientTape() as tape:
                losses = keras.losses.sparse_categorical_crossentropy(y, of(x), from_logits=True)
                loss = tf.reduce_mean(losses)
            optimizer.apply([tape.gradient(loss, weights.value)], [weights])
        np.testing.assert_allclose(found, of(q), rtol=1e-4, atol=1e-4)


def test_baseline_takes_the_rate_of_each_step():
    sgd = tfmeta.inner_optimizers.SGD
    by_step, constant, first = (
        tfmeta.BaselinePlusPlus(identity(), steps, inner_optimizer=rule).predict_on_batch(INPUTS)
        for steps, rule in ((3, sgd([0.5, 1e-9, 1e-9])), (3, sgd(0.5)), (1, sgd(0.5)))
    )
    np.testing.assert_allclose(by_step, first, atol=1e-5)
    assert np.max(np.abs(constant - first)) > 0.1


def test_baseline_learns_the_support_set():
    inputs = {**INPUTS, "query_x": INPUTS["support_x"]}
    few, many = (
        keras.losses.sparse_categorical_crossentropy(
            LABELS,
            tfmeta.BaselinePlusPlus(identity(), steps).predict_on_batch(inputs),
            from_logits=True,
        )
        for steps in (1, 100)
    )
    assert np.mean(many) < np.mean(few)


def test_baseline_is_an_ordinary_model_for_a_task():
    adapted = tfmeta.BaselinePlusPlus(identity(), 2).adapt(INPUTS["support_x"][0], LABELS[0])
    assert not isinstance(adapted, TaskModel)


def test_attention_to_the_support_set():
    logits = tfmeta.MatchingNetwork(identity(), temperature=1.0).predict_on_batch(INPUTS)
    for (x, y, q), found in zip(tasks(), logits, strict=True):
        attention = softmax(unit(q) @ unit(x).T)
        np.testing.assert_allclose(found, np.log(attention @ np.eye(WAYS)[y]), atol=1e-5)
        np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, rtol=1e-5)


def test_attention_at_a_high_temperature_keeps_unlikely_classes_apart():
    """Probabilities of so unlikely classes are zero in single precision, their logarithms not."""
    logits = tfmeta.MatchingNetwork(identity(), temperature=500.0).predict_on_batch(INPUTS)
    for (x, y, q), found in zip(tasks(), logits, strict=True):
        scores = 500.0 * unit(q.astype("float64")) @ unit(x.astype("float64")).T
        parts = [scores[:, y == k] for k in range(WAYS)]
        expected = np.stack([np.logaddexp.reduce(part, -1) for part in parts], -1)
        expected -= np.logaddexp.reduce(scores, -1)[:, None]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
        assert expected.min() < -100


def lstm(x, h, c, weights):
    """Take a step of an LSTM with Keras's weights: kernel, recurrent kernel, bias."""
    kernel, recurrent, bias = weights
    i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, -1)
    i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
    c = f * c + i * np.tanh(g)
    return o * np.tanh(c), c


def read(x, weights):
    """Return the outputs of an LSTM that reads rows in turn."""
    outputs, (h, c) = [], np.zeros((2, x.shape[-1]))
    for row in x:
        h, c = lstm(row, h, c, weights)
        outputs.append(h)
    return np.stack(outputs)


def test_full_context():
    learner = tfmeta.MatchingNetwork(identity(), True, processing_steps=3, temperature=2.0)
    learner.build({k: x.shape for k, x in INPUTS.items()})
    rng = np.random.default_rng(1)
    learner.set_weights([rng.normal(size=w.shape) / 2 for w in learner.get_weights()])
    forwards, backwards = learner.reading.get_weights()[:3], learner.reading.get_weights()[3:]
    attending = learner.attending.get_weights()
    for (x, y, q), found in zip(tasks(), learner.predict_on_batch(INPUTS), strict=True):
        g = x + read(x, forwards) + read(x[::-1], backwards)[::-1]
        h, c = np.zeros_like(q), np.zeros_like(q)
        for _ in range(3):
            r = softmax(h @ g.T) @ g
            h, c = lstm(np.concatenate([q, r], -1), h, c, attending)
            h = h + q
        attention = softmax(2.0 * unit(h) @ unit(g).T)
        np.testing.assert_allclose(found, np.log(attention @ np.eye(WAYS)[y]), atol=1e-4)


def test_full_context_depends_on_the_order_and_no_context_does_not():
    x, y = INPUTS["support_x"][0], LABELS[0]
    query = INPUTS["query_x"][0]
    for full_context in (False, True):
        keras.utils.set_random_seed(0)
        learner = tfmeta.MatchingNetwork(identity(), full_context)
        one, other = (
            np.asarray(learner.adapt(x[i], y[i])(query)) for i in (slice(None), [*range(1, 15), 0])
        )
        assert np.allclose(one, other, atol=1e-5) is not full_context


def by_pairs(learner, embedded):
    """Return scores of each pair of a query and a class, one after another."""
    means = [class_means(x, y) for x, y in zip(embedded["support_x"], LABELS, strict=True)]
    return [
        [
            [float(learner.relation(np.concatenate([c, q], -1)[None])[0, 0]) for c in task]
            for q in qs
        ]
        for task, qs in zip(means, embedded["query_x"], strict=True)
    ]


def test_relations_of_vectors():
    learner = tfmeta.RelationNetwork(identity())
    found = learner.predict_on_batch(INPUTS)
    np.testing.assert_allclose(found, by_pairs(learner, INPUTS), atol=1e-5)


def maps(inputs):
    return {
        k: x if k == "support_y" else x.reshape(*x.shape[:2], 2, 3, 2) for k, x in inputs.items()
    }


def map_encoder():
    return keras.Sequential([keras.Input((2, 3, 2)), keras.layers.Conv2D(3, 1)])


def test_relations_of_maps():
    learner = tfmeta.RelationNetwork(map_encoder())
    inputs = maps(INPUTS)
    found = learner.predict_on_batch(inputs)
    embedded = {
        k: np.reshape(learner.model(x.reshape(-1, 2, 3, 2)), [*x.shape[:2], 2, 3, 3])
        for k, x in inputs.items()
        if k != "support_y"
    }
    np.testing.assert_allclose(found, by_pairs(learner, embedded), atol=1e-5)


@pytest.mark.slow
def test_relations_of_maps_are_trained_saved_and_exported(tmp_path):
    learner = compiled(tfmeta.RelationNetwork(map_encoder()))
    inputs = maps(INPUTS)
    learner.train_on_batch(inputs, TARGETS)
    expected = learner.predict_on_batch(inputs)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    np.testing.assert_allclose(loaded.predict_on_batch(inputs), expected, atol=1e-5)
    learner.export(tmp_path / "export")
    served = tf.saved_model.load(tmp_path / "export")
    task = served.adapt(inputs["support_x"][1], LABELS[1].astype("int64"))
    assert task["prototypes"].shape == (WAYS, 2, 3, 3)
    found = served.predict(query_x=inputs["query_x"][1], **task)["predictions"]
    np.testing.assert_allclose(found, expected[1], atol=2e-5)


def test_a_relation_sees_neither_padding_nor_absent_classes():
    """By the mean that batch normalisation keeps: it must be that of the pairs that are there."""
    norm = keras.layers.BatchNormalization(momentum=0.0)
    relation = keras.Sequential([keras.Input((2 * SIZE,)), norm, keras.layers.Dense(1)])
    learner = compiled(tfmeta.RelationNetwork(identity(), relation))
    seen, asked = np.array([[3], [5], [2], [5]]) > LABELS, np.array([[3], [5], [2], [4]]) > TARGETS
    inputs = {**INPUTS, "support_y": np.where(seen, LABELS, -1)}
    inputs |= {"support_mask": seen, "query_mask": asked}
    learner.train_on_batch(inputs, np.where(asked, TARGETS, -1))
    pairs = [
        np.concatenate([x[y == k].mean(0), query])
        for i, (x, y, q) in enumerate(tasks())
        for k in np.unique(y[seen[i]])
        for query in q[asked[i]]
    ]
    np.testing.assert_allclose(norm.moving_mean, np.mean(pairs, 0), atol=1e-5)


def test_a_relation_with_batch_normalisation_is_refused_under_xla():
    learner = compiled(tfmeta.RelationNetwork(map_encoder()), jit_compile=True)
    with pytest.raises(ValueError, match="`jit_compile` must be False for a relation with batch"):
        learner.train_on_batch(maps(INPUTS), TARGETS)


@pytest.mark.parametrize(
    ("relation", "message"),
    [
        ([keras.Input((SIZE,)), keras.layers.Dense(1)], r"pairs \[n, 24\].*'mine' that does not"),
        ([keras.layers.Dense(2)], r"score \[n, 1\].*'mine' that returns shape=\(None, 2\)"),
    ],
)
def test_a_relation_that_is_none(relation, message):
    learner = tfmeta.RelationNetwork(identity(), keras.Sequential(relation, name="mine"))
    with pytest.raises(ValueError, match=message):
        learner.adapt(INPUTS["support_x"][0], LABELS[0])


def test_maps_of_any_size_are_refused():
    encoder = keras.Sequential([keras.Input((None, None, 2)), keras.layers.Conv2D(3, 1)])
    with pytest.raises(ValueError, match=r"`encoder` must .* known size.*\(None, None, None, 3\)"):
        tfmeta.RelationNetwork(encoder).predict_on_batch(maps(INPUTS))


def test_the_squared_error_of_the_paper():
    def squared_error(y, scores):
        y = tf.one_hot(tf.cast(y, tf.int32), tf.shape(scores)[-1])
        y = tf.reshape(y, tf.shape(scores))
        return tf.reduce_mean((tf.sigmoid(scores) - y) ** 2, -1)

    learner = tfmeta.RelationNetwork(identity())
    learner.compile(keras.optimizers.Adam(0.01), squared_error)
    before = learner.test_on_batch(INPUTS, TARGETS)
    scores = 1 / (1 + np.exp(-learner.predict_on_batch(INPUTS)))
    assert before == pytest.approx(np.mean((scores - np.eye(WAYS)[TARGETS]) ** 2), rel=1e-5)
    for _ in range(5):
        after = learner.train_on_batch(INPUTS, TARGETS)
    assert after < before


@pytest.mark.parametrize("heads", [1, 2])
def test_feat_is_a_transformer_of_prototypes(heads):
    learner = tfmeta.FEAT(identity(), heads, temperature=0.5)
    learner.build({k: x.shape for k, x in INPUTS.items()})
    rng = np.random.default_rng(1)
    for variable in (*learner.attention.weights, *learner.normalization.weights):
        variable.assign(rng.normal(size=variable.shape) / 3)
    weights = learner.attention.get_weights()
    (query, key, value), (out, out_bias) = (
        zip(weights[:6:2], weights[1:6:2], strict=True),
        weights[6:],
    )
    gamma, beta = learner.normalization.get_weights()
    for (x, y, q), found in zip(tasks(), learner.predict_on_batch(INPUTS), strict=True):
        c = class_means(x, y)
        adapted = c + out_bias
        for h in range(heads):
            a, b, v = (c @ w[:, h] + bias[h] for w, bias in (query, key, value))
            adapted = adapted + softmax(a @ b.T / np.sqrt(SIZE)) @ v @ out[h]
        adapted -= adapted.mean(-1, keepdims=True)
        adapted = gamma * adapted / np.sqrt((adapted**2).mean(-1, keepdims=True) + 1e-5) + beta
        expected = -0.5 * ((q[:, None] - adapted) ** 2).sum(-1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_feat_drops_in_training_alone():
    keras.utils.set_random_seed(0)
    learner = compiled(tfmeta.FEAT(dense(False)))
    one, other = (learner(INPUTS, training=True).numpy() for _ in range(2))
    assert np.max(np.abs(one - other)) > 1e-3
    one, other = (learner(INPUTS, training=False).numpy() for _ in range(2))
    np.testing.assert_array_equal(one, other)
    adapted = learner.adapt(INPUTS["support_x"][0], LABELS[0])
    np.testing.assert_allclose(adapted(INPUTS["query_x"][0], training=True), one[0], atol=2e-5)


def test_a_relation_is_not_trained_by_what_an_adapted_model_is_part_of():
    norm = keras.layers.BatchNormalization()
    relation = keras.Sequential([keras.Input((2 * SIZE,)), norm, keras.layers.Dense(1)])
    learner = tfmeta.RelationNetwork(identity(), relation)
    adapted = learner.adapt(INPUTS["support_x"][0], LABELS[0])
    x = keras.Input((SIZE,))
    outer = keras.Model(x, adapted(x))
    query = INPUTS["query_x"][0]
    np.testing.assert_allclose(outer(query, training=True), outer(query), atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "RelationNetwork",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("BaselinePlusPlus", "MatchingNetwork", "MatchingNetwork-context", "FEAT")
        ),
    ],
)
def test_on_a_device(name, tmp_path):
    """With LiteRT's built-in operations alone, for tasks of any size."""
    lite = pytest.importorskip("ai_edge_litert.interpreter", reason="needs LiteRT")
    learner = compiled(HEADS[name](identity()))
    x, y, query = (INPUTS[k][0] for k in INPUTS)
    learner.adapt(x, y)
    tfmeta.export.lite(learner, tmp_path / "any.tflite")
    on_device = lite.Interpreter(str(tmp_path / "any.tflite"))
    adapt, predict = (on_device.get_signature_runner(k) for k in ("adapt", "predict"))
    for some in (y < WAYS, y < 3):
        expected = np.asarray(learner.adapt(x[some], y[some])(query))
        task = adapt(support_x=x[some], support_y=y[some].astype("int64"))
        found = predict(query_x=query, **task)["predictions"]
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
