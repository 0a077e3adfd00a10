"""Every check that all learners of the table must pass."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tests.learners import LEARNERS, QUERIES, REPORTS, SLOW, TASKS, WAYS, episodes
from tests.rows import rows

# Of the learners whose every step XLA compiles, in ten seconds each, these two stand for the rest;
# test_packed.py, test_heads.py and test_compilations.py have more.
XLA = {"MAML", "PrototypicalNetwork"}


@pytest.fixture(scope="module", params=rows(LEARNERS, SLOW))
def name(request):
    return request.param


@pytest.fixture
def fresh(name):
    """A learner of the table, compiled and not yet built."""
    return compiled(name)


@pytest.fixture(scope="module")
def shared(name):
    """One learner for all tests of a row, so that its steps are traced once, and how it begins."""
    made = compiled(name)
    inputs, _ = episodes()
    made.build({key: x.shape for key, x in inputs.items()})
    made.optimizer.build(made.trainable_variables)
    start = [(v, v.numpy()) for v in (*made.variables, *made.optimizer.variables)]
    return made, start


@pytest.fixture
def learner(shared):
    """That learner, as it was before any test."""
    keras.utils.set_random_seed(0)
    made, start = shared
    for variable, value in start:
        variable.assign(value)
    return made


def compiled(name, **options):
    keras.utils.set_random_seed(0)
    made = LEARNERS[name]()
    made.compile(
        # Of the rules with a state to be saved, the one whose first step is plain descent's: Adam
        # would make much of the rounding of gradients that are zero.
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return made


def train(learner, *batches):
    """Take an outer step on each meta-batch, in `fit`, which all tests of a row have traced."""
    data = [tf.data.Dataset.from_tensors(batch) for batch in batches]
    joined = functools.reduce(lambda one, other: one.concatenate(other), data)
    return learner.fit(joined, verbose=0).history["loss"][0]


def weights(learner):
    return [np.array(w) for w in learner.get_weights()]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_shape_and_dtype(fresh):
    inputs, _ = episodes()
    logits = fresh(inputs)
    assert logits.shape == (TASKS, WAYS * QUERIES, WAYS)
    assert logits.dtype == tf.float32


def test_fit_with_callbacks_and_validation(name, learner, tmp_path):
    """The loss falls, metrics are named as Keras names them, callbacks are called."""
    data = tf.data.Dataset.from_tensors(episodes())
    history = learner.fit(
        data.repeat(),
        steps_per_epoch=10,
        epochs=3,
        validation_data=data,
        callbacks=[
            keras.callbacks.CSVLogger(tmp_path / "history.csv"),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
            keras.callbacks.EarlyStopping(patience=5),
        ],
        verbose=0,
    ).history
    names = {"loss", "accuracy"} | REPORTS.get(name, set())
    # There is no gradient in validation, and no residual of one.
    assert set(history) == names | {f"val_{name}" for name in names - {"cg_residual"}}
    assert history["loss"][-1] < history["loss"][0]
    assert (tmp_path / "best.keras").exists()
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 4


def test_adapt_leaves_the_learner_alone_and_agrees_with_call(learner, monkeypatch):
    inputs, targets = episodes()
    train(learner, (inputs, targets))
    before = weights(learner)
    adapted = learner.adapt(inputs["support_x"][1], inputs["support_y"][1])
    assert_same(before, weights(learner))
    assert isinstance(adapted, keras.Model)
    assert not isinstance(adapted, tfmeta.MetaLearner)
    predictions = adapted.predict(inputs["query_x"][1], verbose=0)
    # In a loop, for tasks side by side are rounded otherwise: test_packed.py compares the two.
    monkeypatch.setattr(learner, "packs", False)
    in_a_loop = tf.function(learner, autograph=False)(inputs)
    monkeypatch.undo()
    np.testing.assert_allclose(predictions, in_a_loop[1], atol=1e-5)
    # any integer type will do for labels
    other = learner.adapt(inputs["support_x"][1], inputs["support_y"][1].astype(np.int64))
    np.testing.assert_allclose(other.predict(inputs["query_x"][1], verbose=0), predictions)
    # and training on does not reach into the adapted model
    train(learner, (inputs, targets))
    np.testing.assert_array_equal(predictions, adapted.predict(inputs["query_x"][1], verbose=0))


def test_adapted_models_are_saved_and_exported(fresh, tmp_path):
    inputs, _ = episodes()
    adapted = fresh.adapt(inputs["support_x"][0], inputs["support_y"][0])
    expected = adapted.predict(inputs["query_x"][0], verbose=0)
    adapted.save(tmp_path / "adapted.keras")
    loaded = keras.models.load_model(tmp_path / "adapted.keras")
    np.testing.assert_allclose(loaded.predict(inputs["query_x"][0], verbose=0), expected, atol=1e-6)
    adapted.export(tmp_path / "saved_model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved_model")
    np.testing.assert_allclose(loaded.serve(inputs["query_x"][0]), expected, atol=1e-6)


def test_keras_file_round_trip(learner, tmp_path):
    """Weights, arguments, loss and optimizer state: training goes on as if nothing happened."""
    batch = inputs, _ = episodes()
    train(learner, batch)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert type(loaded) is type(learner)
    np.testing.assert_array_equal(loaded.predict_on_batch(inputs), learner.predict_on_batch(inputs))
    train(learner, batch)
    train(loaded, batch)
    for a, b in zip(weights(learner), weights(loaded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def assert_the_same_if_compiled(name, learner, **options):
    batch = inputs, _ = episodes()

    def results(learner, loss):
        # Under XLA a Prototypical Network has more columns, for classes that might have been there.
        return [np.array(loss), *weights(learner), learner.predict_on_batch(inputs)[..., :WAYS]]

    start = weights(learner)
    plain = results(learner, train(learner, batch))
    other = compiled(name, **options)
    other.build({key: x.shape for key, x in inputs.items()})
    other.set_weights(start)
    found = results(other, train(other, batch))
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_same_eagerly(name, learner):
    assert_the_same_if_compiled(name, learner, run_eagerly=True)


@pytest.mark.parametrize("name", rows(LEARNERS, LEARNERS.keys() - XLA), scope="module")
def test_the_same_under_xla(name, learner):
    assert_the_same_if_compiled(name, learner, jit_compile=True)


def test_learns(name, learner):
    """A few steps on learnable tasks reach an accuracy that chance does not."""
    if name == "CAVIA":
        pytest.skip("a few context parameters tell no classes apart: test_cavia.py has its tasks")
    train(learner, *map(episodes, range(60)))
    inputs, targets = episodes(seed=1000, tasks=32)
    accuracy = np.mean(learner.predict_on_batch(inputs).argmax(-1) == targets)
    # Chance is 0.33. Running statistics learn least, as their inner loop sees other ones.
    assert accuracy > 0.45


def test_bad_support_sets(fresh):
    x, y = (value[0] for value in (episodes()[0]["support_x"], episodes()[0]["support_y"]))
    spoilt = x.copy()
    spoilt[2, 3] = np.nan
    cases = [
        (x, y[:-1], ValueError, r"same length, at least 1.*\(6, 12, 12, 1\) and \(5,\)"),
        (x[:0], y[:0], ValueError, r"same length, at least 1"),
        (spoilt, y, ValueError, r"`support_x` must be finite"),
        ((x * 255).astype(np.uint8), y, TypeError, r"`support_x` must be scaled.*uint8"),
        ((x * 255).astype(np.int64), y, TypeError, r"`support_x` must be scaled.*int64"),
        (x[:, :10], y, ValueError, r"`support_x` must have the shape \[n, 12, 12, 1\].*10"),
        (x[..., 0], y, ValueError, r"`support_x` must have the shape \[n, 12, 12, 1\]"),
        (x, y + 1, ValueError, r"labels must be .*"),
        (x, y.astype(np.float32), ValueError, r"labels must be .*integers"),
    ]
    for support_x, support_y, error, message in cases:
        with pytest.raises(error, match=message):
            fresh.adapt(support_x, support_y)


def test_bad_inputs(fresh):
    inputs, _ = episodes()
    with pytest.raises(ValueError, match=r"must be a dict with the keys 'support_x'.*query_x"):
        fresh({"support_x": inputs["support_x"], "query_x": inputs["query_x"]})
    with pytest.raises(ValueError, match=r"`query_x` must have the shape \[tasks, n, 12, 12, 1\]"):
        fresh({**inputs, "query_x": inputs["query_x"][0]})
    for other in (
        {"query_x": inputs["query_x"][:1]},
        {"support_y": inputs["support_y"][:, 1:]},
        {name: x[:0] for name, x in inputs.items()},
    ):
        with pytest.raises(ValueError, match=r"one number of tasks, not 0.*Received: shapes="):
            fresh({**inputs, **other})


@pytest.mark.parametrize("make", [tfmeta.MAML, tfmeta.FOMAML, tfmeta.Reptile])
def test_models_that_cannot_learn(make):
    with pytest.raises(ValueError, match=r"`model` must have trainable weights.*'empty'"):
        make(keras.Sequential([keras.Input((3,)), keras.layers.ReLU()], name="empty"))
    with pytest.raises(TypeError, match=r"`model` must be a keras.Model"):
        make(keras.layers.Dense(3))
