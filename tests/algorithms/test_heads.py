"""Heads on embeddings against scikit-learn and closed forms; frozen encoders."""

import keras
import numpy as np
import pytest
import sklearn.linear_model
import sklearn.neighbors
import sklearn.preprocessing
import tensorflow as tf

import tfmeta
from tests.algorithms.test_maml import assert_directional_derivatives
from tests.rows import rows
from tfmeta.algorithms.embedding_learner import EmbeddingLearner

WAYS, SHOTS, QUERIES, SIZE, TASKS = 5, 3, 8, 12, 4
RNG = np.random.default_rng(0)
CENTRES = 1.5 * RNG.normal(size=(TASKS, WAYS, SIZE))
LABELS = np.tile(np.repeat(np.arange(WAYS, dtype="int32"), SHOTS), (TASKS, 1))
TARGETS = RNG.integers(WAYS, size=(TASKS, QUERIES), dtype="int32")


def around(labels):
    return np.take_along_axis(CENTRES, labels[..., None], 1) + RNG.normal(
        size=(*labels.shape, SIZE)
    )


INPUTS = {
    "support_x": around(LABELS).astype("float32"),
    "support_y": LABELS,
    "query_x": around(TARGETS).astype("float32"),
}
HEADS = {
    "SimpleShot": tfmeta.SimpleShot,
    "KNearestNeighbors": lambda encoder: tfmeta.KNearestNeighbors(encoder, 3),
    "LogisticRegression": tfmeta.LogisticRegression,
    "MetaOptNet": tfmeta.MetaOptNet,
    "R2D2": tfmeta.R2D2,
    "PrototypicalNetwork": tfmeta.PrototypicalNetwork,
    "BaselinePlusPlus": lambda encoder: tfmeta.BaselinePlusPlus(encoder, 10),
    "MatchingNetwork": tfmeta.MatchingNetwork,
    "MatchingNetwork-context": lambda encoder: tfmeta.MatchingNetwork(
        encoder, True, processing_steps=2
    ),
    "RelationNetwork": tfmeta.RelationNetwork,
    "FEAT": tfmeta.FEAT,
    "SoftKMeans": tfmeta.SoftKMeans,
    "SoftKMeans-transductive": lambda encoder: tfmeta.SoftKMeans(encoder, 2, transductive=True),
    "LabelPropagation": lambda encoder: tfmeta.LabelPropagation(encoder, 5, 0.9, 0.3),
    "TIM": lambda encoder: tfmeta.TIM(encoder, steps=20, learning_rate=0.001),
}
# The same on other options, whose gradients are taken.
DIFFERENTIATED = {
    "LogisticRegression": tfmeta.LogisticRegression,
    "MetaOptNet": tfmeta.MetaOptNet,
    "R2D2": tfmeta.R2D2,
    "SimpleShot": tfmeta.SimpleShot,
    **{x: HEADS[x] for x in ("BaselinePlusPlus", "MatchingNetwork", "MatchingNetwork-context")},
    "RelationNetwork": tfmeta.RelationNetwork,
    "FEAT": lambda encoder: tfmeta.FEAT(encoder, dropout=0.0),
    "SoftKMeans": lambda encoder: tfmeta.SoftKMeans(
        encoder, 2, transductive=True, distractor_cluster=True, length_scale=2.0
    ),
    "LabelPropagation": lambda encoder: tfmeta.LabelPropagation(encoder, 5, length_scale=0.3),
}
# Heads with weights of their own, which know nothing before `fit`.
LEARNT = {"MatchingNetwork-context", "RelationNetwork", "FEAT"}
# Of which another one goes through the same lines.
KIN = {
    *("SimpleShot", "KNearestNeighbors", "R2D2", "BaselinePlusPlus", "MatchingNetwork"),
    *("SoftKMeans", "SoftKMeans-transductive", "TIM"),
}


def identity():
    """An encoder without weights, for vectors that are embeddings already."""
    return keras.Sequential([keras.Input((SIZE,)), keras.layers.Identity()])


def dense(trainable=True):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(6, "tanh"), keras.layers.BatchNormalization(momentum=0.5)]
    model = keras.Sequential([keras.Input((SIZE,)), *layers])
    model.trainable = trainable
    return model


def compiled(learner, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], **options)
    return learner


def batches():
    return tf.data.Dataset.from_tensors((INPUTS, TARGETS)).repeat()


def probabilities(learner):
    return np.asarray(tf.nn.softmax(learner.predict_on_batch(INPUTS)))


def of_scikit_learn(classifier):
    """Return what a classifier of scikit-learn's says of each task's queries."""
    return np.stack(
        [
            classifier.fit(x.astype("float64"), y).predict_proba(q)
            for x, y, q in zip(*INPUTS.values(), strict=True)
        ]
    )


@pytest.mark.parametrize("l2", [0.01, 1.0, 30.0])
def test_logistic_regression_is_scikit_learns(l2):
    theirs = sklearn.linear_model.LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10000)
    ours = probabilities(tfmeta.LogisticRegression(identity(), l2))
    np.testing.assert_allclose(ours, of_scikit_learn(theirs), atol=1e-4)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_neighbours_are_scikit_learns(k):
    theirs = of_scikit_learn(sklearn.neighbors.KNeighborsClassifier(k))
    learner = tfmeta.KNearestNeighbors(identity(), k)
    np.testing.assert_allclose(probabilities(learner), theirs, atol=1e-6)
    found = np.argmax(learner.predict_on_batch(INPUTS), -1)
    np.testing.assert_array_equal(found, theirs.argmax(-1))


def test_more_neighbours_than_examples_are_all_of_them():
    learner = tfmeta.KNearestNeighbors(identity(), 1000)
    np.testing.assert_allclose(probabilities(learner), 1 / WAYS, rtol=1e-6)


def test_ridge_regression_is_scikit_learns():
    logits = tfmeta.R2D2(identity(), ridge=0.7, scale=2.0).predict_on_batch(INPUTS)
    for x, y, q, found in zip(*INPUTS.values(), logits, strict=True):
        theirs = sklearn.linear_model.Ridge(0.7, fit_intercept=False)
        theirs.fit(x.astype("float64"), np.eye(WAYS)[y])
        np.testing.assert_allclose(found, 2 * theirs.predict(q), atol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_simple_shot_is_nearest_centroids_of_centred_embeddings(normalize):
    learner = compiled(tfmeta.SimpleShot(identity(), normalize=normalize))
    learner.fit(batches(), steps_per_epoch=3, verbose=0)
    every = np.concatenate([INPUTS["support_x"], INPUTS["query_x"]], 1).reshape(-1, SIZE)
    np.testing.assert_allclose(learner.mean, every.mean(0), atol=1e-5)
    change = sklearn.preprocessing.normalize if normalize else np.asarray
    logits = learner.predict_on_batch(INPUTS)
    for x, y, q, found in zip(*INPUTS.values(), logits, strict=True):
        x, q = change(x - every.mean(0)), change(q - every.mean(0))
        means = np.stack([x[y == k].mean(0) for k in range(WAYS)])
        expected = -((q[:, None] - means) ** 2).sum(-1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_outer_gradient_by_finite_differences(float64, name):
    """Through the solutions of all tasks, to the weights of the encoder and of the head."""
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(6, "tanh")])
    learner = DIFFERENTIATED[name](encoder)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.SGD(1.0), loss)
    inputs = {k: x.astype("float64") if x.ndim > 2 else x for k, x in INPUTS.items()}
    learner.build({k: x.shape for k, x in inputs.items()})
    learner.gathers = False
    start = [v.numpy() for v in learner.trainable_variables]
    learner.train_on_batch(inputs, TARGETS)
    gradients = [a - v.numpy() for a, v in zip(start, learner.trainable_variables, strict=True)]
    for value, variable in zip(start, learner.trainable_variables, strict=True):
        variable.assign(value)
    assert_directional_derivatives(
        learner.trainable_variables,
        gradients,
        lambda: loss(TARGETS, learner.predict_on_batch(inputs)),
    )


@pytest.mark.parametrize("name", rows(HEADS, KIN))
@pytest.mark.parametrize(
    "make", [identity, pytest.param(lambda: dense(False), marks=pytest.mark.slow)]
)
def test_any_encoder_is_evaluated_adapted_saved_and_exported_at_once(name, make, tmp_path):
    learner = compiled(HEADS[name](make()))
    expected = learner.predict_on_batch(INPUTS)
    assert name in LEARNT or np.mean(expected.argmax(-1) == TARGETS) > 0.6
    scores = learner.evaluate(batches(), steps=1, verbose=0, return_dict=True)
    assert scores["accuracy"] == pytest.approx(np.mean(expected.argmax(-1) == TARGETS))
    adapted = learner.adapt(INPUTS["support_x"][1], LABELS[1])
    np.testing.assert_allclose(adapted(INPUTS["query_x"][1]), expected[1], atol=2e-5)
    adapted.save(tmp_path / "adapted.keras")
    loaded = keras.models.load_model(tmp_path / "adapted.keras")
    np.testing.assert_allclose(loaded(INPUTS["query_x"][1]), expected[1], atol=2e-5)
    learner.optimizer.build(learner.trainable_variables)  # else Keras warns when it loads
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    np.testing.assert_allclose(loaded.predict_on_batch(INPUTS), expected, atol=1e-5)
    learner.export(tmp_path / "export")
    served = tf.saved_model.load(tmp_path / "export")
    task = served.adapt(INPUTS["support_x"][1], LABELS[1].astype("int64"))
    found = served.predict(query_x=INPUTS["query_x"][1], **task)["predictions"]
    np.testing.assert_allclose(found, expected[1], atol=2e-5)


@pytest.mark.parametrize("name", HEADS)
def test_padding_changes_nothing(name):
    learner = HEADS[name](identity())
    alone = learner.predict_on_batch(INPUTS)
    extra = np.full((TASKS, 2, SIZE), np.nan, "float32")
    inputs = {k: np.concatenate([x, extra], 1) for k, x in INPUTS.items() if k != "support_y"}
    inputs["support_y"] = np.pad(LABELS, [(0, 0), (0, 2)], constant_values=-1)
    inputs["support_mask"] = inputs["support_y"] >= 0
    inputs["query_mask"] = np.pad(np.ones_like(TARGETS, bool), [(0, 0), (0, 2)])
    found = learner.predict_on_batch(inputs)
    np.testing.assert_allclose(found[:, :QUERIES], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", rows(HEADS, KIN))
def test_tasks_of_different_ways_are_as_each_by_itself(name):
    learner = compiled(HEADS[name](dense()))
    seen, asked = np.ones_like(LABELS, bool), np.ones_like(TARGETS, bool)
    seen[0], asked[0] = LABELS[0] < WAYS - 2, TARGETS[0] < WAYS - 2
    inputs = {k: x.copy() for k, x in INPUTS.items()}
    for x, mask in (("support_x", seen), ("query_x", asked)):
        inputs[x][~mask] = np.nan
    inputs["support_y"][~seen] = -1
    found = learner.predict_on_batch({**inputs, "support_mask": seen, "query_mask": asked})
    for i in range(2):
        x, q = INPUTS["support_x"][i][seen[i]], INPUTS["query_x"][i][asked[i]]
        alone = np.asarray(learner.adapt(x, LABELS[i][seen[i]])(q))
        np.testing.assert_allclose(found[i][asked[i], : alone.shape[1]], alone, atol=2e-5)
        assert np.all(found[i][asked[i], alone.shape[1] :] < -1e30)
    if learner.trains:
        inputs |= {"support_mask": seen, "query_mask": asked}
        assert np.isfinite(learner.train_on_batch(inputs, np.where(asked, TARGETS, -1))).all()
        assert all(np.isfinite(v).all() for v in learner.weights)


@pytest.mark.parametrize("name", rows(HEADS, KIN))
def test_an_encoder_of_two_inputs(name):
    parts = {"a": slice(None, 5), "b": slice(5, None)}
    taken = {k: keras.Input((len(range(SIZE)[part]),), name=k) for k, part in parts.items()}
    joined = keras.layers.Concatenate()([taken["a"], taken["b"]])
    learner, whole = HEADS[name](keras.Model(taken, joined)), HEADS[name](identity())
    inputs = {
        k: x if k == "support_y" else {name: x[..., part] for name, part in parts.items()}
        for k, x in INPUTS.items()
    }
    expected = whole.predict_on_batch(INPUTS)
    learner.predict_on_batch(inputs)
    learner.set_weights(whole.get_weights())
    np.testing.assert_allclose(learner.predict_on_batch(inputs), expected, atol=1e-5)
    adapted = learner.adapt({k: x[0] for k, x in inputs["support_x"].items()}, LABELS[0])
    found = adapted({k: x[0] for k, x in inputs["query_x"].items()})
    np.testing.assert_allclose(found, expected[0], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "jit_compile"),
    [
        ("MetaOptNet", False),
        ("MatchingNetwork-context", False),
        ("RelationNetwork", False),
        ("LogisticRegression", True),
        *(
            pytest.param(name, False, marks=pytest.mark.slow)
            for name in (
                *("SimpleShot", "LogisticRegression", "R2D2", "SoftKMeans-transductive"),
                *("LabelPropagation", "BaselinePlusPlus", "MatchingNetwork", "FEAT"),
            )
        ),
        *(
            pytest.param(name, True, marks=pytest.mark.slow)
            for name in (
                *("R2D2", "BaselinePlusPlus", "MatchingNetwork", *sorted(LEARNT)),
                *("SoftKMeans-transductive", "LabelPropagation", "MetaOptNet"),
            )
        ),
    ],
)
def test_training_an_encoder_lowers_the_loss(name, jit_compile):
    learner = compiled(HEADS[name](dense()), jit_compile=jit_compile)
    history = learner.fit(batches(), steps_per_epoch=2, epochs=2, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize(
    "name",
    [
        *("KNearestNeighbors", "LogisticRegression", "PrototypicalNetwork", "BaselinePlusPlus"),
        *("MatchingNetwork", "SoftKMeans", "TIM"),
    ],
)
def test_fit_says_that_there_is_nothing_to_train(name):
    learner = compiled(HEADS[name](dense(name in ("KNearestNeighbors", "TIM"))))
    with pytest.raises(ValueError, match="must have something to train"):
        learner.fit(batches(), steps_per_epoch=1, verbose=0)


def test_the_head_of_a_frozen_encoder_is_trained():
    learner = compiled(tfmeta.R2D2(dense(False)))
    before = [np.array(v) for v in learner.model.weights]
    learner.fit(batches(), steps_per_epoch=2, verbose=0)
    assert float(learner.alpha) != 1.0
    for a, b in zip(before, learner.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", sorted(LEARNT))
def test_the_layers_of_a_head_of_a_frozen_encoder_are_trained(name):
    learner = compiled(HEADS[name](dense(False)))
    learner.build({k: x.shape for k, x in INPUTS.items()})
    of_encoder, of_head = (
        [np.array(v) for v in weights]
        for weights in (learner.model.weights, learner.trainable_variables)
    )
    learner.train_on_batch(INPUTS, TARGETS)
    for a, b in zip(of_encoder, learner.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(of_head, learner.trainable_variables, strict=True))


def test_an_inner_loop_needs_weights():
    with pytest.raises(ValueError, match="`model` must have trainable weights"):
        tfmeta.MAML(dense(False))


@pytest.mark.parametrize("task_axis", ["auto", "loop"])
@pytest.mark.parametrize("make", [identity, lambda: dense(False)])
def test_a_head_of_an_inner_loop_is_adapted_on_any_encoder(make, task_axis, tmp_path):
    """ProtoMAML's steps against the same ones written down, from its own prototypes."""
    encoder = make()
    learner = compiled(tfmeta.ProtoMAML(encoder, 0.05, 3, task_axis=task_axis))
    found = learner.predict_on_batch(INPUTS)
    for x, y, q, logits in zip(*INPUTS.values(), found, strict=True):
        z, targets = np.asarray(encoder(x), "float64"), np.eye(WAYS)[y]
        means = targets.T @ z / SHOTS
        kernel, bias = 2 * means.T, -(means**2).sum(1)
        for _ in range(3):
            off = np.asarray(tf.nn.softmax(z @ kernel + bias)) - targets
            kernel = kernel - 0.05 * z.T @ off / len(z)
            bias = bias - 0.05 * off.mean(0)
        np.testing.assert_allclose(logits, np.asarray(encoder(q)) @ kernel + bias, atol=1e-4)
    adapted = learner.adapt(INPUTS["support_x"][1], LABELS[1])
    np.testing.assert_allclose(adapted(INPUTS["query_x"][1]), found[1], atol=1e-4)
    learner.export(tmp_path / "export")
    served = tf.saved_model.load(tmp_path / "export")
    task = served.adapt(INPUTS["support_x"][1], LABELS[1].astype("int64"))
    again = served.predict(query_x=INPUTS["query_x"][1], **task)["predictions"]
    np.testing.assert_allclose(again, found[1], atol=1e-4)
    with pytest.raises(ValueError, match=r"ProtoMAML must have something to train.*rates that"):
        learner.fit(batches(), steps_per_epoch=1, verbose=0)


def test_rates_of_a_head_are_learnt_on_a_frozen_encoder():
    learner = compiled(tfmeta.ProtoMAML(dense(False), 0.05, 2, learned_rates="tensor"))
    before = [np.array(v) for v in learner.model.weights]
    history = learner.fit(batches(), steps_per_epoch=2, epochs=2, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert all(float(rate) != np.float32(0.05) for rate in learner.rates)
    for a, b in zip(before, learner.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tfmeta.KNearestNeighbors(identity(), 0), ValueError, "`k` must be at least 1"),
        (lambda: tfmeta.LogisticRegression(identity(), 0.0), ValueError, "`l2` must be positive"),
        (lambda: tfmeta.R2D2(identity(), -1.0), ValueError, "`ridge` must be positive"),
        (lambda: tfmeta.MetaOptNet(identity(), 0), ValueError, "`C` must be positive"),
        (lambda: tfmeta.MetaOptNet(identity(), tolerance=0), ValueError, "`tolerance` must be pos"),
        (lambda: tfmeta.SimpleShot(keras.layers.Dense(2)), TypeError, "`model` must be a keras"),
        (lambda: tfmeta.BaselinePlusPlus(identity(), 0), ValueError, "`steps` must be at least 1"),
        (lambda: tfmeta.BaselinePlusPlus(identity(), scale=0), ValueError, "`scale` must be pos"),
        (
            lambda: tfmeta.BaselinePlusPlus(identity(), inner_optimizer="adam"),
            TypeError,
            "`inner_optimizer` must be a rule of tfmeta.inner_optimizers",
        ),
        (
            lambda: tfmeta.BaselinePlusPlus(
                identity(), 3, inner_optimizer=tfmeta.inner_optimizers.SGD([0.1, 0.2])
            ),
            ValueError,
            "`steps` must be at most the number of rates .* steps=3, 2 rates",
        ),
        (
            lambda: tfmeta.MatchingNetwork(identity(), processing_steps=1.5),
            TypeError,
            "`processing_steps` must be an integer",
        ),
        (
            lambda: tfmeta.MatchingNetwork(identity(), temperature=-1.0),
            ValueError,
            "`temperature` must be positive",
        ),
        (
            lambda: tfmeta.RelationNetwork(identity(), keras.layers.Dense(1)),
            TypeError,
            "`relation` must be a keras.Model. Received: relation=<Dense",
        ),
        (lambda: tfmeta.FEAT(identity(), 0), ValueError, "`heads` must be at least 1"),
        (lambda: tfmeta.FEAT(identity(), dropout=1.0), ValueError, r"`dropout` must be in \[0, 1"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_maps_in_the_place_of_vectors_are_refused():
    encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
    x, y = np.zeros((4, 8, 8, 1), "float32"), np.array([0, 0, 1, 1])
    for name, head in HEADS.items():
        if name == "RelationNetwork":
            continue  # takes them
        with pytest.raises(ValueError, match=r"`encoder` must return one vector .*\(4, 6, 6, 2\)"):
            head(encoder).adapt(x, y)


@pytest.mark.parametrize("name", rows(HEADS, KIN))
def test_mixed_precision(name, request):
    """The encoder computes in half precision, the head in that of the weights."""
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    request.addfinalizer(lambda: keras.mixed_precision.set_dtype_policy("float32"))
    learner = compiled(HEADS[name](dense()))
    logits = learner.predict_on_batch(INPUTS)
    assert logits.dtype == np.float32
    adapted = learner.adapt(INPUTS["support_x"][0], LABELS[0])
    np.testing.assert_allclose(adapted(INPUTS["query_x"][0]), logits[0], rtol=2e-2, atol=2e-2)
    if learner.trains:
        assert np.isfinite(learner.train_on_batch(INPUTS, TARGETS)).all()


def test_each_head_is_here():
    heads = {x for x in vars(tfmeta).values() if isinstance(x, type)}
    names = {x.__name__ for x in heads if issubclass(x, EmbeddingLearner)}
    assert names == {name.partition("-")[0] for name in HEADS}
