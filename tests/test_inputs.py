"""Wrong inputs are refused in words, right ones work, and both the same wherever they come in."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmeta
from tfmeta.agreement import settings
from tfmeta.ends import kind_of_output, makers, readers

SCE = functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)
TASKS, WAYS, SIZE = 2, 3, 10


def encoder(*shape, outputs=WAYS):
    return keras.Sequential(
        [keras.Input(shape or (SIZE, SIZE, 1)), keras.layers.Flatten(), keras.layers.Dense(outputs)]
    )


def reader(outputs=WAYS, **kwargs):
    """A model of three ids, of which it knows 20."""
    return keras.Sequential(
        [
            keras.Input((3,), **kwargs),
            keras.layers.Embedding(20, 2),
            keras.layers.Flatten(),
            keras.layers.Dense(outputs),
        ]
    )


LEARNERS = {
    "packed": lambda model: tfmeta.MAML(model, 0.1),
    "loop": lambda model: tfmeta.MAML(model, 0.1, task_axis="loop"),
    "prototypical": tfmeta.PrototypicalNetwork,
}


def made(name, model, loss=None):
    learner = LEARNERS[name](model)
    learner.compile("adam", loss or SCE(), metrics=["accuracy"])
    return learner


def episodes(*shape, dtype="float32", most=1.0):
    rng = np.random.default_rng(0)
    shape = (TASKS, 2 * WAYS, *(shape or (SIZE, SIZE, 1)))
    x = (most * rng.random(shape)).astype(dtype)
    y = np.tile(np.arange(WAYS), (TASKS, 2))
    return {"support_x": x, "support_y": y, "query_x": x.copy()}, y.copy()


def changed(**parts):
    inputs, targets = episodes()
    targets = parts.pop("targets", targets)
    return {**inputs, **parts}, targets


class Once:
    """A sampler of one meta-batch."""

    def __init__(self, inputs, targets):
        self.pair = inputs, targets

    def batch(self, step, meta_batch_size=1):
        return tf.nest.map_structure(lambda x: x[:meta_batch_size], self.pair)

    def dataset(self, meta_batch_size=1):
        return stream(*self.batch(0, meta_batch_size)).repeat()


def stream(*pair):
    return tf.data.Dataset.from_tensors(pair)


def validated(learner, x, y):
    """Fit on what is right, to come as far as what it is validated on."""
    good = episodes(*learner.model.input_shape[1:])
    return learner.fit(*good, batch_size=TASKS, validation_data=(x, y), verbose=0)


ENTRIES = {
    "fit": lambda learner, x, y: learner.fit(x, y, batch_size=TASKS, verbose=0),
    "fit-stream": lambda learner, x, y: learner.fit(stream(x, y), verbose=0),
    "fit-generator": lambda learner, x, y: learner.fit((b for b in [(x, y)]), verbose=0),
    "fit-sampler": lambda learner, x, y: learner.fit(Once(x, y), steps_per_epoch=1, verbose=0),
    "validation_data": validated,
    "evaluate": lambda learner, x, y: learner.evaluate(x, y, batch_size=TASKS, verbose=0),
    "evaluate-stream": lambda learner, x, y: learner.evaluate(stream(x, y), verbose=0),
    "predict": lambda learner, x, y: learner.predict(x, batch_size=TASKS, verbose=0),
    "predict-stream": lambda learner, x, y: learner.predict(stream(x, y), verbose=0),
    "train_on_batch": lambda learner, x, y: learner.train_on_batch(x, y),
    "test_on_batch": lambda learner, x, y: learner.test_on_batch(x, y),
    "predict_on_batch": lambda learner, x, y: learner.predict_on_batch(x),
    "call": lambda learner, x, y: learner(x),
    "adapt": lambda learner, x, y: learner.adapt(
        *tf.nest.map_structure(lambda part: part[0], (x["support_x"], x["support_y"]))
    ),
    "tfmeta.evaluate": lambda learner, x, y: tfmeta.evaluate(learner, Once(x, y), 1, verbose=False),
    "tfmeta.evaluate-stream": lambda learner, x, y: tfmeta.evaluate(
        learner, stream(x, y), 1, verbose=False
    ),
    "tfmeta.uncertainty": lambda learner, x, y: tfmeta.uncertainty(
        learner, Once(x, y), 1, verbose=False
    ),
}
UNLABELLED = {"predict", "predict-stream", "predict_on_batch", "call", "adapt"}

# What is wrong: the model, the episodes, the error and its words, and whether it is in the labels
# alone, or in the values, which a call within a graph does not see.
IMAGES = encoder
WRONG = {
    "channels": (IMAGES, lambda: episodes(SIZE, SIZE, 4), ValueError, r"4 channels.*for 1"),
    "fewer": (
        lambda: encoder(SIZE, SIZE, 4),
        lambda: episodes(SIZE, SIZE, 2),
        ValueError,
        r"\[(tasks, )?n, 10, 10, 4\] that the model takes. Received: shape=.*2\).*2 channels",
    ),
    "size": (IMAGES, lambda: episodes(9, 9, 1), ValueError, r"10, 10, 1\].*must be resized"),
    "first": (
        lambda: encoder(SIZE, SIZE, 3),
        lambda: episodes(3, SIZE, SIZE),
        ValueError,
        r"`support_x` must have the shape .*np.moveaxis",
    ),
    "grey": (IMAGES, lambda: episodes(SIZE, SIZE), ValueError, r"examples\[..., None\]"),
    "flat": (lambda: encoder(100), episodes, ValueError, r"reshape\(-1, 100\)"),
    "bytes": (
        IMAGES,
        lambda: episodes(SIZE, SIZE, 1, dtype="uint8", most=255),
        TypeError,
        r"`support_x` must be scaled as in training.*dtype=uint8",
    ),
    "integers": (
        IMAGES,
        lambda: episodes(SIZE, SIZE, 1, dtype="int64", most=255),
        TypeError,
        r"must be scaled.*dtype=int64",
    ),
    "byte vectors": (
        lambda: encoder(4),
        lambda: episodes(4, dtype="uint8", most=255),
        TypeError,
        r"must be scaled.*vectors of integers as they are.*astype\('float32'\)",
    ),
    "texts": (
        lambda: encoder(4),
        lambda: changed(**dict.fromkeys(("support_x", "query_x"), np.full((TASKS, 6, 4), "a"))),
        TypeError,
        r"`support_x` must be float32.*Received: string",
    ),
    "nested": (
        IMAGES,
        lambda: changed(**{k: {"a": episodes()[0][k]} for k in ("support_x", "query_x")}),
        ValueError,
        r"`support_x` must be nested as the model's inputs are",
    ),
}
VALUES = {
    "scaled ids": (
        lambda: reader(dtype="int32"),
        lambda: episodes(3),
        TypeError,
        r"`support_x` must be whole numbers.*astype\('int32'\).*float32 with fractions",
    ),
    "scaled float ids": (reader, lambda: episodes(3), TypeError, r"'embedding\w*' takes ids"),
    "large ids": (
        reader,
        lambda: episodes(3, dtype="uint8", most=200),
        ValueError,
        r"`support_x` must have ids from 0 to 19.*of 20 rows. Received: ids from \d+ to 1\d\d",
    ),
    "negative ids": (
        reader,
        lambda: episodes(3, dtype="int32", most=-3),
        ValueError,
        r"ids from -2 to 0",
    ),
    "negative labels": (
        IMAGES,
        lambda: changed(support_y=np.tile([0, 1, -1], (TASKS, 2))),
        ValueError,
        r"^labels must be .*-1",
    ),
    "float labels": (
        IMAGES,
        lambda: changed(support_y=np.tile([0.0, 1.0, 2.0], (TASKS, 2))),
        ValueError,
        r"^labels must be .*integers",
    ),
}
TARGETS = {
    "too large": (
        IMAGES,
        lambda: changed(targets=np.tile([0, 1, 3], (TASKS, 2))),
        ValueError,
        r"`targets` must be the class numbers 0..2. Received: labels from 0 to 3",
    ),
    "too few": (
        IMAGES,
        lambda: changed(targets=np.tile([0, 1, 2], (TASKS, 1))),
        ValueError,
        r"`targets` must be \[tasks, queries, ...\].*6 queries",
    ),
}
CASES = [
    *((name, case) for name, case in WRONG.items()),
    *((name, case) for name, case in VALUES.items()),
    *((name, case) for name, case in TARGETS.items()),
]


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
def test_wrong_inputs_are_refused_wherever_they_come_in(learner, name, case):
    """With one learner, built by none of it, for every way in; and it stays as it was."""
    model, wrong, error, words = case
    made_once = made(learner, model())
    before = [w.copy() for w in made_once.get_weights()]
    for entry, give in ENTRIES.items():
        if (name in TARGETS and entry in UNLABELLED) or (name in VALUES and entry == "call"):
            continue
        if entry == "validation_data" and model is not IMAGES:
            continue
        with pytest.raises(error, match=words):
            give(made_once, *wrong())
    for old, new in zip(before, made_once.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("learner", ["loop", "prototypical"])
def test_after_a_refusal_what_is_right_works(learner):
    """Whatever failed: a check, or the tracing itself, which Keras would never try again."""
    fails = [True]

    def loss(y_true, y_pred):
        if fails[0]:
            raise RuntimeError("not yet")
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    spoilt, whole = made(learner, encoder(), loss), made(learner, encoder(), loss)
    whole.model.set_weights(spoilt.model.get_weights())
    for entry in ("fit", "evaluate", "train_on_batch"):
        for fails[0], pair in ((True, episodes()), (False, episodes(SIZE, SIZE, 4))):
            with pytest.raises((RuntimeError, ValueError), match=r"not yet|4 channels"):
                ENTRIES[entry](spoilt, *pair)
    fails[0] = False
    for fit in (spoilt, whole):
        fit.history_of = fit.fit(*episodes(), batch_size=TASKS, epochs=2, verbose=0).history
    assert spoilt.history_of == whole.history_of
    assert spoilt.evaluate(*episodes(), batch_size=TASKS, verbose=0) == whole.evaluate(
        *episodes(), batch_size=TASKS, verbose=0
    )


def test_a_fit_that_fails_in_validation_leaves_no_data_for_the_next():
    learner = made("loop", encoder())
    inputs, targets = episodes()
    # Only the first meta-batch is looked at beforehand.
    broken = stream(inputs, targets).concatenate(
        stream({**inputs, "support_y": inputs["support_y"] + 1}, targets)
    )
    with pytest.raises(ValueError, match=r"^`ways` must be at most the number of outputs"):
        learner.fit(inputs, targets, batch_size=TASKS, validation_data=broken, verbose=0)
    history = learner.fit(
        *episodes(), batch_size=TASKS, validation_data=stream(*episodes()), verbose=0
    ).history
    expected = learner.evaluate(stream(*episodes()), verbose=0)[0]
    assert history["val_loss"] == [pytest.approx(expected)]


def test_ids_of_a_later_meta_batch():
    learner = made("loop", reader())
    first, second = (episodes(3, dtype="int32", most=most) for most in (19, 300))
    data = stream(*first).concatenate(stream(*second))
    with pytest.raises(ValueError, match=r"^Ids must be from 0 to 19.*20 rows. Received: \d+$"):
        learner.fit(data, verbose=0)


# What is right


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("uint8", "float32"), ("uint8", "int32"), ("int64", "float32"), ("float32", "int32")],
)
def test_ids_stay_what_they_are(dtype, kind):
    """Of any type, into an integer Input or an Embedding: the rows of the table that learn."""
    learner = made("loop", reader(dtype=kind))
    pair = episodes(3, dtype=dtype, most=19)
    if dtype == "float32":
        pair[0].update({k: np.floor(pair[0][k]) for k in ("support_x", "query_x")})
    before = learner.model.get_weights()[0]
    learner.fit(*pair, batch_size=TASKS, verbose=0)
    learnt = np.flatnonzero((learner.model.get_weights()[0] != before).any(axis=1))
    np.testing.assert_array_equal(learnt, np.unique(pair[0]["query_x"]).astype(int))


def test_sampled_bytes_are_images_or_ids():
    """uint8 vectors come as they are; images, with two axes or more, as floats."""
    labels = np.repeat([0, 1], 4)
    for shape, dtype in (((3,), "uint8"), ((8, 8), "float32"), ((8, 8, 1), "float32")):
        examples = np.random.default_rng(0).integers(0, 20, (8, *shape), np.uint8)
        sampler = tfmeta.data.EpisodeSampler(tfmeta.data.ClassDataset(examples, labels), 2, 1, 1)
        drawn = sampler.batch(0)[0]["support_x"][0]
        assert drawn.dtype == dtype
        # In float32, as documented.
        factor = np.float32(1 / 255) if dtype == "float32" else np.uint8(1)
        rows = sampler.draw(0)[0].reshape(-1)
        np.testing.assert_array_equal(drawn, examples[rows].astype(dtype) * factor)


@pytest.mark.parametrize(
    "first",
    [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Normalization(mean=100, variance=100),
        keras.layers.Lambda(lambda x: x / 255),
    ],
    ids=["Rescaling", "Normalization", "Lambda"],
)
def test_a_model_that_scales_takes_bytes(first):
    learner = made("loop", keras.Sequential([keras.Input((SIZE, SIZE, 1)), first, encoder()]))
    inputs, _ = episodes(SIZE, SIZE, 1, dtype="uint8", most=255)
    assert np.isfinite(learner.predict_on_batch(inputs)).all()


def test_operations_before_the_first_layer_may_scale():
    x = keras.Input((SIZE, SIZE, 1))
    learner = made("loop", keras.Model(x, encoder()(x / 255)))
    inputs, _ = episodes(SIZE, SIZE, 1, dtype="uint8", most=255)
    assert np.isfinite(learner.predict_on_batch(inputs)).all()


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_adapted_model_refuses_bytes(learner):
    inputs, _ = episodes()
    adapted = made(learner, encoder()).adapt(inputs["support_x"][0], inputs["support_y"][0])
    images = (255 * inputs["query_x"][0]).astype(np.uint8)
    for call in (adapted, adapted.predict_on_batch):
        with pytest.raises(TypeError, match=r"`inputs` must be scaled.*uint8"):
            call(images)
    assert adapted.predict_on_batch(images / np.float32(255)).shape == (6, WAYS)


def test_support_sets_as_lists():
    inputs, _ = episodes()
    x, y = inputs["support_x"][0], inputs["support_y"][0]
    learner = made("prototypical", encoder())
    expected = learner.adapt(x, y).predict_on_batch(x)
    for support in ((list(x), y.tolist()), (x.tolist(), tuple(y)), (tf.constant(x), list(y))):
        np.testing.assert_allclose(learner.adapt(*support).predict_on_batch(x), expected)
    with pytest.raises(ValueError, match=r"`support_x` must be an array, or a list.*\(4, 10, 1\)"):
        learner.adapt([x[0], x[0][:4]], [0, 1])


@pytest.mark.parametrize("void", [-1, 255])
@pytest.mark.parametrize("axis", ["auto", "loop"])
def test_labels_that_the_loss_ignores(void, axis):
    learner = tfmeta.MAML(encoder(), 0.1, task_axis=axis)
    pair = changed(
        support_y=np.tile([0, 1, void], (TASKS, 2)), targets=np.tile([0, void, 2], (TASKS, 2))
    )
    learner.compile("sgd", SCE())
    with pytest.raises(ValueError, match=r"^labels must be in 0..2"):
        learner.fit(*pair, batch_size=TASKS, verbose=0)
    learner.compile("sgd", SCE(ignore_class=void))
    history = learner.fit(*pair, batch_size=TASKS, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    fit, _ = learner.labels.fit(tf.constant([0, void, 2], tf.int64))
    assert fit
    assert not learner.labels.fit(tf.constant([0, void, 3], tf.int64))[0]


# Forms of episodes


def sampler():
    x = np.random.default_rng(0).random((24, SIZE, SIZE, 1), np.float32)
    dataset = tfmeta.data.ClassDataset(x, np.arange(24) // 4)
    return tfmeta.data.EpisodeSampler(dataset, ways=WAYS, shots=1, queries=2)


def test_samplers_may_be_given():
    """With the numbers of steps, it is the sampler's data set."""
    results = []
    for x, size in ((sampler(), {"batch_size": 4}), (sampler().dataset(4), {})):
        keras.utils.set_random_seed(0)
        learner = made("prototypical", encoder())
        history = learner.fit(
            x,
            **size,
            steps_per_epoch=2,
            validation_data=sampler(),
            validation_steps=2,
            verbose=0,
        ).history
        results.append([history, learner.evaluate(x, **size, steps=2, verbose=0)])
        assert learner.predict(x, **size, steps=2, verbose=0).shape == (8, 6, WAYS)
    assert results[0] == results[1]


def test_what_is_no_episodes_is_told_what_to_pass():
    learner = made("prototypical", encoder())
    x, y = np.zeros((4, SIZE, SIZE, 1)), np.zeros(4)
    for call in (learner.fit, learner.evaluate):
        with pytest.raises(TypeError, match=r"`x` must be episodes.*EpisodeSampler.*ndarray of sh"):
            call(x, y, verbose=0)
        with pytest.raises(TypeError, match=r"`x` must be episodes.*in two arguments"):
            call(episodes(), verbose=0)
        with pytest.raises(TypeError, match=r"sampler.dataset\(.*Received: x=ClassDataset"):
            call(sampler().source, verbose=0)
        with pytest.raises(ValueError, match=r"The targets must be given"):
            call(episodes()[0], batch_size=TASKS, verbose=0)
        with pytest.raises(ValueError, match=r"must be a dict with the keys.*EagerTensor"):
            call(stream(x, y), verbose=0)
    with pytest.raises(ValueError, match=r"`steps_per_epoch` must be given with a sampler"):
        learner.fit(sampler())
    with pytest.raises(ValueError, match=r"`validation_steps` must be given with a sampler"):
        learner.fit(*episodes(), batch_size=2, validation_data=sampler())
    with pytest.raises(ValueError, match=r"`steps` must be given with a sampler"):
        learner.predict(sampler())


def test_evaluation_takes_the_tasks_of_a_data_set_in_turn():
    learner = made("prototypical", encoder())
    x, y = sampler().batch(0, 5)
    alone = [
        tfmeta.evaluate(
            learner, Once(*tf.nest.map_structure(lambda p, i=i: p[i : i + 1], (x, y))), 1, verbose=0
        ).mean
        for i in range(5)
    ]
    data = stream(x, y).unbatch().batch(2)
    result = tfmeta.evaluate(learner, data, episodes=5, verbose=False)
    np.testing.assert_array_equal(result.per_episode, alone)
    assert tfmeta.uncertainty(learner, data, 5, verbose=False).labels.shape == (30,)
    outer = tfmeta.uncertainty(learner, data, 5, support_ways=2, verbose=False)
    assert outer.out_of_task.shape == (10, 2)
    with pytest.raises(ValueError, match=r"`episodes` must be at most.*ends after 5"):
        tfmeta.evaluate(learner, data, episodes=6, verbose=False)
    with pytest.raises(ValueError, match=r"pairs \(inputs, targets\). Received: inputs alone"):
        tfmeta.evaluate(learner, data.map(lambda x, y: x), episodes=1, verbose=False)


# Losses and last activations


def losses_with_logits():
    """Every loss of Keras's that has the argument, in each form that `compile` takes."""
    known = [
        x
        for x in vars(keras.losses).values()
        if callable(x) and "from_logits" in settings_or_none(x)
    ]
    classes = [x for x in known if isinstance(x, type)]
    functions = [x for x in known if not isinstance(x, type)]
    assert len(classes) >= 5
    assert len(functions) >= 5
    for flag in (False, True):
        yield from ((cls(from_logits=flag), flag) for cls in classes)
        yield from ((functools.partial(f, from_logits=flag), flag) for f in functions)
    yield from ((f, False) for f in functions)
    yield from ((f.__name__, False) for f in functions)
    yield from ((cls.__name__, False) for cls in classes)
    yield "bce", False


def settings_or_none(x):
    return settings(x() if isinstance(x, type) and issubclass(x, keras.losses.Loss) else x)


def name_of(loss):
    """Return a name that is the same in each process, as an address is not."""
    if isinstance(loss, functools.partial):
        return f"partial-{loss.func.__name__}"
    return getattr(loss, "__name__", getattr(loss, "name", str(loss)))


@pytest.mark.parametrize(("loss", "logits"), [*losses_with_logits()], ids=name_of)
def test_losses_and_what_a_learner_returns(loss, logits):
    linear, soft = encoder(), keras.Sequential([encoder(), keras.layers.Softmax()])
    for learner, words in (
        (tfmeta.PrototypicalNetwork(linear), "PrototypicalNetwork returns logits"),
        (tfmeta.ProtoMAML(linear), "ProtoMAML returns logits"),
        (tfmeta.MAML(linear), "last layer of the model has no activation"),
        (tfmeta.Reptile(linear), "last layer of the model has no activation"),
    ):
        if logits:
            learner.compile("sgd", loss)
        else:
            with pytest.raises(ValueError, match=rf"`loss` must take logits, for .*{words}"):
                learner.compile("sgd", loss)
            assert not learner.compiled
    learner = tfmeta.MAML(soft)
    if logits:
        with pytest.warns(UserWarning, match="takes logits.* returns probabilities"):
            learner.compile("sgd", loss)
    else:
        learner.compile("sgd", loss)


@pytest.mark.parametrize("loss", ["kl_divergence", keras.losses.KLDivergence()])
def test_losses_of_probabilities_alone(loss):
    with pytest.raises(ValueError, match=r"SparseCategoricalCrossentropy\(from_logits=True\), say"):
        tfmeta.PrototypicalNetwork(encoder()).compile("sgd", loss)


def ended(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(WAYS)

    def call(self, inputs):
        return keras.ops.softmax(self.dense(inputs))


class OwnDense(keras.layers.Dense):
    pass


def test_what_is_not_known_is_not_refused():
    dense = keras.layers.Dense
    for model in (
        ended(dense(3, activation="softmax")),
        ended(dense(3, activation=tf.nn.softmax)),
        ended(dense(3, activation="relu")),
        ended(dense(3), keras.layers.Activation("sigmoid")),
        ended(dense(3), keras.layers.Softmax(), keras.layers.Reshape((3,))),
        ended(dense(3), keras.layers.Lambda(keras.ops.softmax)),
        ended(OwnDense(3)),
        keras.Sequential([ended(dense(3)), keras.layers.Softmax()]),
        Own(),
    ):
        tfmeta.MAML(model).compile("sgd", "sparse_categorical_crossentropy")
    for loss in ("mse", "hinge", "poisson", lambda y, p: 0.0, {"a": "mse"}, ["mse"], None):
        tfmeta.MAML(ended(dense(3))).compile("sgd", loss)
        tfmeta.PrototypicalNetwork(ended(dense(3))).compile("sgd", loss)


def test_the_ends_of_a_model():
    """Models within models are looked into, and what only moves numbers is looked through."""
    layers = keras.layers
    a, b = keras.Input((4,)), keras.Input((5,), dtype="int32")
    ids = keras.Sequential([keras.Input((5,)), layers.Embedding(9, 2), layers.Flatten()])
    head = keras.Sequential([layers.Dense(3, activation="softmax")])
    first = layers.Dense(2)
    joined = layers.Concatenate()([first(layers.Reshape((4,))(a)), ids(b)])
    linear = layers.Activation("linear")
    model = keras.Model([a, b], [linear(layers.Reshape((3, 1))(head(joined))), first(a)])
    assert readers(model) == [[first, first], [ids.layers[0]]]
    assert [kind_of_output(x) for x in makers(model)] == ["probabilities", "logits"]
    assert readers(Own()) is None
    assert makers(Own()) == [None]
    unbuilt = keras.Sequential([layers.Flatten(), layers.Dense(2), linear])
    assert readers(unbuilt) == [[unbuilt.layers[1]]]
    assert makers(unbuilt) == [unbuilt.layers[1]]


@pytest.mark.parametrize("axis", ["auto", "loop"])
def test_logits_asked_of_a_softmax_are_warned_of_once(axis, recwarn):
    learner = tfmeta.MAML(ended(keras.layers.Dense(3, activation="softmax")), task_axis=axis)
    learner.compile("sgd", SCE())
    learner.fit(*episodes(4), batch_size=TASKS, epochs=2, verbose=0)
    learner.evaluate(*episodes(4), batch_size=TASKS, verbose=0)
    learner.adapt(episodes(4)[0]["support_x"][0], [0, 1, 2] * 2)
    told = [str(w.message) for w in recwarn if "from_logits" in str(w.message)]
    assert len(told) == 1
    assert "Give from_logits=False, or no activation" in told[0]


def test_a_saved_learner_is_loaded_whatever_its_loss(tmp_path):
    """It may have been saved before anybody looked at its loss."""
    learner = made("loop", ended(keras.layers.Dense(3)))
    learner.predict_on_batch(episodes(4)[0])
    learner.save(tmp_path / "learner.keras")
    config = learner.get_compile_config()
    config["loss"] = "sparse_categorical_crossentropy"
    loaded = keras.models.load_model(tmp_path / "learner.keras", compile=False)
    loaded.compile_from_config(config)
    assert loaded.compiled


# Single functions


def test_formats_of_an_export(tmp_path, capsys):
    learner = made("prototypical", encoder())
    learner.predict_on_batch(episodes()[0])
    with pytest.raises(ValueError, match=r"`format` must be 'tf_saved_model'.*lite.*format='onnx'"):
        learner.export(tmp_path / "learner", "onnx")
    learner.export(tmp_path / "learner", format="tf_saved_model", verbose=False)
    assert capsys.readouterr().out == ""
    assert (tmp_path / "learner" / "saved_model.pb").exists()


def test_one_episode_is_printed_without_an_interval():
    assert str(tfmeta.Evaluation(np.array([0.2]), "accuracy")) == "20.00 % (1 episode, no interval)"
    one = tfmeta.Evaluation(np.array([2.0]), "mean squared error")
    assert str(one) == "2.0000 (1 episode, no interval, mean squared error)"
