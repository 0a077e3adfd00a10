"""Fine-tuning against Keras's own training; low-rank weights, in it and in MAML."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta

SIZE, WAYS, SHOTS, QUERIES, TASKS = 6, 3, 4, 5, 3
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(TASKS, WAYS, SIZE))
LABELS = np.tile(np.repeat(np.arange(WAYS, dtype="int32"), SHOTS), (TASKS, 1))
TARGETS = np.tile(np.repeat(np.arange(WAYS, dtype="int32"), QUERIES), (TASKS, 1))


def around(labels):
    near = np.take_along_axis(CENTRES, labels[..., None], 1)
    return (near + 0.5 * RNG.normal(size=(*labels.shape, SIZE))).astype("float32")


INPUTS = {"support_x": around(LABELS), "support_y": LABELS, "query_x": around(TARGETS)}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SGD = tfmeta.inner_optimizers.SGD
LOW_RANK = ["lora_kernel_a", "lora_kernel_b"]


def network(rank=None):
    keras.utils.set_random_seed(0)
    body = [keras.layers.Dense(8, "tanh", name="body"), keras.layers.BatchNormalization(name="bn")]
    model = keras.Sequential([keras.Input((SIZE,)), *body, keras.layers.Dense(WAYS, name="head")])
    rng = np.random.default_rng(1)
    gamma, beta, mean, variance = (rng.uniform(*ends, 8) for ends in [(0.5, 1.5), (-1, 1)] * 2)
    model.get_layer("bn").set_weights([gamma, beta, mean, variance + 1.1])
    if rank is not None:
        model.get_layer("body").enable_lora(rank)
    return model


def compiled(learner):
    learner.compile(keras.optimizers.SGD(0.1), LOSS, metrics=["accuracy"])
    return learner


def by_keras(model, optimizer, task, steps):
    """Return what Keras's own training makes of a model, batch normalisation as it was."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for layer, old in zip(copy.layers, model.layers, strict=True):
        layer.trainable = old.trainable
    x, y = INPUTS["support_x"][task], LABELS[task]
    variables = copy.trainable_variables
    optimizer.build(variables)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = LOSS(y, copy(x, training=False))
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
    return copy


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(0.1, momentum=0.9), lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
        (None, lambda: keras.optimizers.Adam(0.001)),
    ],
)
def test_it_is_what_kerass_own_training_does(ours, theirs):
    model = network()
    learner = compiled(tfmeta.FineTune(model, 10, ours))
    before = [np.array(v) for v in model.variables]
    found = learner.predict_on_batch(INPUTS)
    for task in range(TASKS):
        expected = by_keras(model, theirs(), task, 10)
        adapted = learner.adapt(INPUTS["support_x"][task], LABELS[task])
        for a, b in zip(adapted.variables, expected.variables, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
        queries = INPUTS["query_x"][task]
        np.testing.assert_allclose(adapted(queries), expected(queries), atol=5e-5)
        np.testing.assert_allclose(found[task], expected(queries), atol=5e-5)
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_steps_fit_the_support_set_better():
    losses = []
    for steps in (1, 10, 60):
        learner = compiled(tfmeta.FineTune(network(), steps, SGD(0.1)))
        adapted = learner.adapt(INPUTS["support_x"][0], LABELS[0])
        losses.append(float(LOSS(LABELS[0], adapted(INPUTS["support_x"][0]))))
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("head", {"head/kernel", "head/bias"}),
        (lambda v: v.path.endswith("bn/gamma"), {"bn/gamma"}),
    ],
)
def test_a_part_of_the_network(part, names):
    model = network()
    learner = compiled(tfmeta.FineTune(model, 3, SGD(0.1), adapt_layers=part))
    adapted = learner.adapt(INPUTS["support_x"][0], LABELS[0])
    changed = {
        "/".join(a.path.split("/")[-2:])
        for a, b in zip(adapted.variables, model.variables, strict=True)
        if np.any(np.array(a) != np.array(b))
    }
    assert changed == names


def test_a_new_head_on_a_frozen_encoder():
    """From a head of zeros the first step of whole descent is the centred class means."""
    encoder = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(4, name="encoder")])
    encoder.trainable = False
    head = keras.layers.Dense(WAYS, kernel_initializer="zeros", name="head")
    learner = compiled(tfmeta.FineTune(keras.Sequential([encoder, head]), 1, SGD(1.0)))
    adapted = learner.adapt(INPUTS["support_x"][0], LABELS[0])
    z = np.asarray(encoder(INPUTS["support_x"][0]))
    expected = z.T @ (np.eye(WAYS)[LABELS[0]] - 1 / WAYS) / len(z)
    np.testing.assert_allclose(adapted.layers[-1].kernel, expected, atol=1e-6)


def test_in_batches_it_sees_each_example_in_turn():
    """Of batches as large as a class or the whole set, and of which seed they are drawn."""
    x, y = INPUTS["support_x"][0], LABELS[0]

    def weights(**options):
        learner = compiled(tfmeta.FineTune(network(), 3, SGD(0.1), **options))
        return np.concatenate([np.ravel(v) for v in learner.adapt(x, y).trainable_variables])

    whole = weights()
    np.testing.assert_array_equal(weights(inner_batch_size=len(x)), whole)
    parts = weights(inner_batch_size=4)
    np.testing.assert_array_equal(weights(inner_batch_size=4), parts)
    for others in (whole, weights(inner_batch_size=4, seed=1)):
        assert np.abs(parts - others).max() > 1e-4


@pytest.mark.parametrize("made", ["plain", "low rank"])
def test_it_is_evaluated_saved_and_exported_at_once(made, tmp_path):
    rank, part = (2, LOW_RANK) if made == "low rank" else (None, None)
    rule = tfmeta.inner_optimizers.Adam(0.05)
    model = network(rank)
    learner = compiled(
        tfmeta.FineTune(model, 15, rule, adapt_layers=part, inner_batch_size=4, seed=3)
    )
    expected = learner.predict_on_batch(INPUTS)
    scores = learner.evaluate(INPUTS, TARGETS, batch_size=TASKS, verbose=0, return_dict=True)
    assert scores["accuracy"] == pytest.approx(np.mean(expected.argmax(-1) == TARGETS))
    x, queries = INPUTS["support_x"][1], INPUTS["query_x"][1]
    adapted = learner.adapt(x, LABELS[1])
    np.testing.assert_allclose(adapted(queries), expected[1], atol=1e-4)
    adapted.save(tmp_path / "adapted.keras")
    loaded = keras.models.load_model(tmp_path / "adapted.keras")
    np.testing.assert_allclose(loaded(queries), adapted(queries), atol=1e-5)
    learner.optimizer.build(learner.trainable_variables)  # else Keras warns when it loads
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert loaded.inner_steps == 15
    assert loaded.rule.learning_rate == 0.05
    np.testing.assert_allclose(loaded.predict_on_batch(INPUTS), expected, atol=1e-5)
    learner.export(tmp_path / "export")
    served = tf.saved_model.load(tmp_path / "export")
    task = served.adapt(x, LABELS[1].astype("int64"))
    if part is not None:
        assert set(task) == {"body_lora_kernel_a", "body_lora_kernel_b"}
    found = served.predict(query_x=queries, **task)["predictions"]
    np.testing.assert_allclose(found, expected[1], atol=1e-4)


@pytest.mark.parametrize("make", ["MAML", "FineTune"])
def test_low_rank_weights_alone_are_adapted(make):
    model = network(2)
    learner = compiled(
        tfmeta.MAML(model, 0.5, 2, adapt_layers=LOW_RANK, batch_norm="running")
        if make == "MAML"
        else tfmeta.FineTune(model, 2, SGD(0.5), adapt_layers=LOW_RANK)
    )
    before = {v.path: np.array(v) for v in model.variables}
    base = {path for path, v in before.items() if path.endswith("body/kernel")}
    if make == "MAML":
        # The outer loop trains all that is trainable, and the kernel below them is not.
        learner.train_on_batch(INPUTS, TARGETS)
        changed = {v.path for v in model.variables if np.any(np.array(v) != before[v.path])}
        assert {"lora_kernel_a", "lora_kernel_b"} <= {path.split("/")[-1] for path in changed}
        assert not changed & base
        before = {v.path: np.array(v) for v in model.variables}
    adapted = learner.adapt(INPUTS["support_x"][0], LABELS[0])
    assert len(base) == 1
    for new, old in zip(adapted.variables, model.variables, strict=True):
        np.testing.assert_array_equal(old, before[old.path])
        # The first of the two has no slope where the second is still zero, in the first step.
        assert np.any(np.array(new) != np.array(old)) == ("lora" in old.path), old.path


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_low_rank_weights_are_kept_in_files_of_learners(suffix, tmp_path):
    """Keras adds them to the kernel in a file, and would begin with zeros that nothing changes."""

    def made():
        return compiled(
            tfmeta.MAML(network(2), 0.5, 2, adapt_layers=LOW_RANK, batch_norm="running")
        )

    learner = made()
    learner.train_on_batch(INPUTS, TARGETS)
    expected = learner.predict_on_batch(INPUTS)
    path = tmp_path / f"learner{suffix}"
    if suffix == ".keras":
        learner.save(path)
        loaded = keras.models.load_model(path)
    else:
        learner.save_weights(path)
        loaded = made()
        loaded.build({name: x.shape for name, x in INPUTS.items()})
        loaded.load_weights(path)
    for a, b in zip(loaded.model.variables, learner.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(loaded.predict_on_batch(INPUTS), expected, atol=1e-5)


def test_fit_says_what_to_do():
    learner = compiled(tfmeta.FineTune(network(), 2))
    for call in (learner.fit, learner.train_on_batch):
        with pytest.raises(ValueError, match=r"something to train .* FineTune.* tfmeta\.MAML"):
            call(INPUTS, TARGETS)
    with pytest.raises(ValueError, match=r"call compile\(loss=...\) first"):
        tfmeta.FineTune(network(), 2).adapt(INPUTS["support_x"][0], LABELS[0])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0,), {}, ValueError, "`steps` must be at least 1"),
        ((1.5,), {}, TypeError, "`steps` must be an integer"),
        ((1, keras.optimizers.Adam()), {}, TypeError, "`optimizer` must be a rule of tfmeta.inner"),
        ((1,), {"inner_steps": 3}, TypeError, "FineTune has no argument `inner_steps`: it has"),
        ((1,), {"inner_learning_rate": 1.0}, TypeError, "no argument `inner_learning_rate`"),
        ((1,), {"inner_batch_size": 0}, ValueError, "`inner_batch_size` must be at least 1"),
        ((1,), {"seed": -1}, ValueError, "`seed` must be at least 0"),
        ((1,), {"adapt_layers": "tail"}, ValueError, "`adapt_layers` must name layers"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        compiled(tfmeta.FineTune(network(), *arguments, **options)).adapt(
            INPUTS["support_x"][0], LABELS[0]
        )


def test_steps_that_diverge_are_an_error():
    learner = compiled(tfmeta.FineTune(network(), 30, SGD(1e20)))
    with pytest.raises(ValueError, match="The support loss must be finite"):
        learner.adapt(INPUTS["support_x"][0], LABELS[0])
