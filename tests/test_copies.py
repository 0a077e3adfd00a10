"""What `adapt` returns and `export` writes give what `predict` gives, whatever a model holds.

Each entry of `MODELS` is a kind of thing that Keras lets stand in a model and that a configuration
may not tell, or tells in a form that cannot be read back.
"""

from __future__ import annotations

import collections
import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfmeta
from tests.rows import rows
from tfmeta.copies import copy_of, remade
from tfmeta.task_model import TaskModel

CE = keras.losses.SparseCategoricalCrossentropy
WORDS = [*"abcdefghijk"]
SCALE = 0.5


def numbers(*shape):
    return lambda r: r.normal(size=(10, *shape)).astype("float32")


def integers(most, *shape):
    return lambda r: r.integers(most, size=(10, *shape)).astype("int64")


def words(*shape):
    return lambda r: r.choice(WORDS, (10, *shape))


def phrases(r):
    return np.array([[" ".join(r.choice(WORDS, 4))] for _ in range(10)])


def tail(*first, shape=(5,), dtype=None):
    """A model of these layers and a dense one behind them."""
    return keras.Sequential([keras.Input(shape, dtype=dtype), *first, layers.Dense(3, name="head")])


def deferred():
    return keras.Sequential([layers.Dense(4, activation="tanh"), layers.Dense(3)])


def deferred_words():
    lookup = layers.StringLookup(vocabulary=WORDS)
    return keras.Sequential([lookup, layers.Embedding(20, 4), layers.Flatten(), layers.Dense(3)])


def frozen_variable():
    model = tail(layers.Dense(4, activation="tanh"))
    model.layers[0].bias.trainable = False
    return model


def low_rank():
    model = tail(layers.Dense(4, activation="tanh"))
    model.layers[0].enable_lora(2)
    model.layers[0].lora_kernel_b.assign(np.ones((2, 4)))
    return model


def partly_frozen():
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(4)], name="inner")
    model = tail(inner)
    inner.layers[1].trainable = False
    return model


def shared_layer():
    both, a = layers.Dense(4, activation="tanh"), keras.Input((4,))
    return keras.Model(a, layers.Dense(3)(both(both(a)) + keras.ops.sin(a)))


def tied():
    embedding = layers.Embedding(6, 4)
    x = keras.Input((3,), dtype="int64")
    h = layers.Dense(4)(layers.GlobalAveragePooling1D()(embedding(x)))
    return keras.Model(x, layers.Lambda(lambda z: z @ keras.ops.transpose(embedding.embeddings))(h))


def cut_from_another():
    x = keras.Input((5,))
    h = layers.Dense(4, activation="tanh")(x)
    outputs = layers.Dense(3)(h)
    keras.Model(x, layers.Dense(100)(h))  # goes on elsewhere
    return keras.Model(x, outputs)


def lookup_pair():
    """Integers looked up, then adapted bins and statistics."""
    x = keras.Input((2,), dtype="int64")
    lookup, onehot = layers.IntegerLookup(output_mode="multi_hot"), layers.Hashing(7)
    lookup.adapt(np.arange(3, 9))
    real = layers.Rescaling(1.0)(x)
    bins, norm = layers.Discretization(num_bins=3), layers.Normalization()
    bins.adapt(np.arange(10.0)), norm.adapt(np.arange(20.0).reshape(10, 2))
    coded = layers.Flatten()(layers.Embedding(8, 2)(layers.Concatenate()([onehot(x), bins(real)])))
    joined = layers.Concatenate()([lookup(x), coded, norm(real)])
    return keras.Model(x, layers.Dense(3)(joined))


def text():
    vectorize = layers.TextVectorization(output_sequence_length=5)
    vectorize.adapt([" ".join(WORDS)])
    first = [vectorize, layers.Embedding(20, 4), layers.GlobalAveragePooling1D()]
    return tail(*first, shape=(1,), dtype="string")


def weighted_text():
    vectorize = layers.TextVectorization(output_mode="tf_idf")
    vectorize.adapt(["a b c", "a b", "d e f g h i j k"])
    return tail(vectorize, shape=(1,), dtype="string")


class Gate(layers.Layer):
    """A layer that nobody registered, whose arguments are layers and whose flag is set later."""

    def __init__(self, inner, others=(), **kwargs):
        super().__init__(**kwargs)
        self.inner, self.others = inner, {"all": list(others)}
        self.factor = 1.0

    def build(self, shape):
        self.own = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        for layer in self.others["all"]:
            x = layer(x)
        return self.own * self.inner(x) * self.factor


def own_layer():
    gate = Gate(layers.Dense(4, activation="tanh"), [layers.Dense(5), Gate(layers.Dense(4))])
    gate.factor = 0.5
    return tail(gate)


@keras.saving.register_keras_serializable(package="test_copies")
class Registered(layers.Layer):
    """A layer that its configuration makes again, unless an attribute is set later."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.factor, self.shift = units, 1.0, np.zeros(units, "float32")
        self.inner, self._power = [layers.Dense(units)], 1.0
        self.initializer = keras.initializers.Ones()

    def build(self, shape):
        self.own = self.add_weight(shape=(), initializer=self.initializer)

    def call(self, x):
        return self.own * self.inner[0](x) ** self._power * self.factor + self.shift

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def set_later(name, value):
    layer = Registered(4)
    setattr(layer, name, value)
    return tail(layer)


def weight_in_an_operation():
    x, first = keras.Input((5,)), layers.Dense(3)
    h = layers.Dense(5, activation="tanh")(x)
    return keras.Model(x, keras.ops.matmul(first(h), keras.ops.ones((3, 3))) + h @ first.kernel)


def words_and_lambda():
    lookup = layers.StringLookup(vocabulary=WORDS)
    first = [lookup, layers.Embedding(20, 4), layers.Flatten(), layers.Lambda(lambda z: SCALE * z)]
    return tail(*first, shape=(2,), dtype="string")


class Net(keras.Model):
    """A subclassed model without `get_config`, with a layer that is called in training only."""

    def __init__(self, first, activation):
        super().__init__()
        self.first, self.activation = first, activation
        self.aside, self.head = layers.Dense(4), layers.Dense(3)
        self.drop = layers.Dropout(0.5, seed=3)

    def call(self, x, training=False):
        h = self.drop(self.activation(self.first(x)), training=training)
        return self.head(h + self.aside(x) if training else h)


class Held(keras.Model):
    """Layers kept in an object that is not Keras's, reached through a function and a partial."""

    def __init__(self):
        super().__init__()
        self.kept = [layers.Dense(4), layers.Dense(3)]
        self.parts = types.SimpleNamespace(rate=SCALE)
        self.step = tf.function(functools.partial(self.apply, self.kept[0]))

    def apply(self, layer, x):
        return keras.ops.tanh(layer(x)) * self.parts.rate

    def call(self, x):
        return self.kept[1](self.step(x))


class Slim:
    """An object with slots and a layer in one."""

    __slots__ = ("layer",)

    def __init__(self, layer):
        self.layer = layer


class Slots(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(4)
        self.slim = Slim(self.first)
        self.order = collections.OrderedDict(head=layers.Dense(3))

    def call(self, x):
        return self.order["head"](keras.ops.tanh(self.slim.layer(x)))


class Functional(keras.Model):
    """A Functional model with a call of its own."""

    def call(self, x, training=None):
        return 2.0 * super().call(x, training=training)


def functional_with_call():
    x = keras.Input((5,))
    return Functional(x, layers.Dense(3)(layers.Dense(4, activation="tanh")(x)))


class IntegersIn(keras.Model):
    """A subclassed model that must not be built with floats."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, x):
        return self.head(keras.ops.take(keras.ops.cast(np.eye(6), "float32"), x[:, 0], axis=0))


class Normalized(keras.Model):
    def __init__(self, size=4, **kwargs):
        super().__init__(**kwargs)
        self.inner, self.norm = layers.Dense(size), layers.BatchNormalization()
        self.head = layers.Dense(3)

    def call(self, x, training=None):
        return self.head(self.norm(self.inner(x), training=training))


class OwnNormalization(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return SCALE + super().call(inputs, training=training, mask=mask)


def mixed():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="float32"),
            layers.Dense(4, activation="tanh", dtype="mixed_bfloat16"),
            layers.Dense(3, dtype="float32"),
        ]
    )


def squash(z):
    return z / (1 + abs(z))


# Each kind: the model, its examples, and whether Keras itself reads back what it saves of it.
MODELS = {
    "Sequential without Input": (deferred, numbers(5), True),
    "Sequential of words without Input": (deferred_words, words(2), True),
    "one frozen variable": (frozen_variable, numbers(5), True),
    "low-rank adaptation": (low_rank, numbers(5), True),
    "a frozen layer in a model within": (partly_frozen, numbers(5), True),
    "a shared layer and operations": (shared_layer, numbers(4), True),
    "a model cut from another": (cut_from_another, numbers(5), True),
    "Lambda of globals": (
        lambda: tail(layers.Lambda(lambda z: SCALE * squash(z))),
        numbers(5),
        False,
    ),
    "Lambda in a wrapper": (
        lambda: tail(
            layers.TimeDistributed(layers.Lambda(lambda z: SCALE * z)),
            layers.Flatten(),
            shape=(2, 5),
        ),
        numbers(2, 5),
        False,
    ),
    "Lambda with a layer's weights": (tied, integers(6, 3), False),
    "an activation that nobody registered": (
        lambda: tail(layers.Dense(4, activation=squash), layers.Dense(4, activation=lambda z: -z)),
        numbers(5),
        False,
    ),
    "TextVectorization": (text, phrases, True),
    "TextVectorization with weights": (weighted_text, phrases, True),
    "StringLookup": (
        lambda: tail(
            layers.StringLookup(vocabulary=WORDS),
            layers.Embedding(20, 4),
            layers.Flatten(),
            shape=(2,),
            dtype="string",
        ),
        words(2),
        True,
    ),
    "IntegerLookup, Hashing, Discretization, Normalization": (lookup_pair, integers(9, 2), True),
    "a layer of one's own": (own_layer, numbers(5), False),
    "a registered layer": (lambda: tail(Registered(4)), numbers(5), True),
    "a registered layer with another array": (
        lambda: set_later("shift", np.eye(4, dtype="float32")[2]),
        numbers(5),
        False,
    ),
    "a registered layer with another exponent": (
        lambda: set_later("_power", 2.0),
        numbers(5),
        False,
    ),
    "a weight in an operation": (weight_in_an_operation, numbers(5), False),
    "words and a lambda": (words_and_lambda, words(2), False),
    "subclassed, with layers as arguments": (
        lambda: Net(layers.Dense(4), lambda z: squash(z)),
        numbers(5),
        False,
    ),
    "layers behind a partial": (Held, numbers(5), False),
    "layers in slots and ordered dicts": (Slots, numbers(5), False),
    "Functional with a call of its own": (functional_with_call, numbers(5), False),
    "subclassed, of integers": (IntegersIn, integers(6, 1), False),
    "subclassed, with batch normalisation": (Normalized, numbers(5), False),
    "batch normalisation of one's own": (
        lambda: tail(layers.Dense(4), OwnNormalization()),
        numbers(5),
        False,
    ),
    "batch normalisation, one variable frozen": (
        lambda: tail(layers.BatchNormalization(), layers.Dense(4, activation="tanh")),
        numbers(5),
        True,
    ),
    "recurrent, both ways": (
        lambda: tail(layers.Bidirectional(layers.SimpleRNN(2, unroll=True)), shape=(2, 3)),
        numbers(2, 3),
        True,
    ),
    "attention": (
        lambda: tail(SelfAttention(), layers.Flatten(), shape=(4, 3)),
        numbers(4, 3),
        False,
    ),
    "mixed precision": (mixed, numbers(5), True),
}


class SelfAttention(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(1, 2, dropout=0.1, seed=0)

    def call(self, x):
        return self.attention(x, x)


def episodes(examples, seed=0):
    """One task: inputs for a learner, with 6 support examples and 4 queries."""
    x = tf.convert_to_tensor(examples(np.random.default_rng(seed)))[None]
    y = np.tile([0, 1, 2], 4)[None, :10]
    return {"support_x": x[:, :6], "support_y": y[:, :6], "query_x": x[:, 6:]}, y[:, 6:]


def close(a, b, tolerance=2e-5):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*does not reach these weights")  # called in training only
@pytest.mark.filterwarnings("ignore:.*includes a lambda")
@pytest.mark.parametrize(
    "kind",
    rows(
        MODELS,
        {
            *("Sequential of words without Input", "a model cut from another"),
            *("Lambda in a wrapper", "TextVectorization with weights", "StringLookup"),
            *("a registered layer with another array", "words and a lambda"),
            *("a registered layer with another exponent", "layers in slots and ordered dicts"),
            *("subclassed, of integers", "batch normalisation, one variable frozen"),
            *("recurrent, both ways", "attention"),
        },
    ),
)
def test_adapted_models_and_exports_give_what_the_learner_gives(kind, tmp_path):
    make, examples, saved = MODELS[kind]
    keras.utils.set_random_seed(0)
    model = make()
    learner = tfmeta.MAML(model, 0.1, 1, task_axis="loop")
    learner.compile("sgd", CE(from_logits=True), jit_compile=False)
    inputs, _ = episodes(examples)
    learner.check_inputs(inputs)
    if "variable frozen" in kind:
        model.layers[0].gamma.trainable = False
        learner = tfmeta.MAML(model, 0.1, 1, task_axis="loop")
        learner.compile("sgd", CE(from_logits=True), jit_compile=False)
    x, y, q = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
    learner.check_inputs(inputs)
    before = [np.array(w) for w in learner.get_weights()]
    expected = learner(inputs)[0]
    check = functools.partial(close, tolerance=2e-2) if kind == "mixed precision" else close

    adapted = learner.adapt(x, y)
    check(adapted(q), expected)
    own = {id(v) for v in learner.variables}
    assert not any(id(v) in own for v in adapted.variables)
    # What Keras reads back is an ordinary model.
    assert isinstance(adapted, TaskModel) != saved
    # The inner loop has done something, and only to what is not frozen.
    assert np.abs(np.asarray(model(q)) - np.asarray(expected)).max() > 1e-4
    for a, b in zip(before, learner.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

    learner.export(tmp_path / "learner")
    few_shot = tf.saved_model.load(str(tmp_path / "learner"))
    check(few_shot.adapt_and_predict(x, tf.constant(y, tf.int64), q)["predictions"], expected)
    tfmeta.export.saved_model(adapted, tmp_path / "adapted")
    loaded = tf.saved_model.load(str(tmp_path / "adapted"))
    check(loaded.predict(query_x=q)["predictions"], expected)
    if saved:
        adapted.save(tmp_path / "adapted.keras")
        check(keras.models.load_model(tmp_path / "adapted.keras")(q), expected)
    # What the learner learns later does not reach the adapted model.
    for variable in learner.trainable_variables:
        variable.assign(variable + 1)
    check(adapted(q), expected)


def test_what_has_adapted_is_not_reached_by_another_loss(tmp_path):
    learner = tfmeta.AmortizedBayesianMAML(tail(layers.Dense(4, activation="tanh")), 0.1)
    learner.compile("sgd", CE(from_logits=True))
    inputs, _ = episodes(numbers(5))
    x, y, q = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
    adapted = learner.adapt(x, y)
    expected = learner(inputs)[0]
    learner.compile("sgd", "mse")
    close(adapted(q), expected)
    adapted.save(tmp_path / "adapted.keras")
    close(keras.models.load_model(tmp_path / "adapted.keras")(q), expected)


def test_an_adapted_model_of_words_is_exported_by_keras_too(tmp_path):
    learner = tfmeta.PrototypicalNetwork(words_and_lambda())
    inputs, _ = episodes(words(2))
    x, y, q = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
    adapted = learner.adapt(x, y)
    taken = [keras.InputSpec(shape=(None, 2), dtype="string")]  # Keras takes it for floats
    adapted.export(tmp_path / "model", input_signature=taken, verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    close(loaded.serve(q), learner(inputs)[0])


@pytest.mark.parametrize("kind", ["text", "own layer", "Lambda"])
def test_prototypes_behind_any_encoder(kind, tmp_path):
    make, examples = {
        "text": (text, phrases),
        "own layer": (own_layer, numbers(5)),
        "Lambda": (lambda: tail(layers.Lambda(lambda z: SCALE * z)), numbers(5)),
    }[kind]
    learner = tfmeta.PrototypicalNetwork(make())
    inputs, _ = episodes(examples)
    expected = learner(inputs)[0]
    x, y, q = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
    close(learner.adapt(x, y)(q), expected)
    learner.export(tmp_path / "learner")
    few_shot = tf.saved_model.load(str(tmp_path / "learner"))
    close(few_shot.adapt_and_predict(x, tf.constant(y, tf.int64), q)["predictions"], expected)


@pytest.mark.parametrize("batch_norm", ["transductive", "support", "with_support", "running"])
def test_batch_normalisation_of_ones_own_in_each_mode(batch_norm):
    for model in (Normalized(), tail(layers.Dense(4), OwnNormalization())):
        learner = tfmeta.MAML(model, 0.1, 1, batch_norm=batch_norm, task_axis="loop")
        learner.compile("sgd", CE(from_logits=True))
        inputs, _ = episodes(numbers(5))
        learner.check_inputs(inputs)
        for variable in model.non_trainable_variables:
            variable.assign(variable + 0.5)
        x, y, q = (inputs[name][0] for name in ("support_x", "support_y", "query_x"))
        close(learner.adapt(x, y)(q), learner(inputs)[0])


def test_a_copy_is_a_model_like_any_other():
    a = keras.Input((4,))
    h = layers.BatchNormalization()(layers.Dense(4, name="frozen", trainable=False)(a))
    model = keras.Model(a, layers.Dense(3)(keras.ops.tanh(h)))
    model.compile("adam", "mse", metrics=["mae"])
    x, y = np.eye(4, dtype="float32"), np.zeros((4, 3), "float32")
    model.fit(x, y, verbose=0)
    copy = copy_of(model)
    assert copy.get_config() == model.get_config()
    assert [v.path for v in copy.variables] == [v.path for v in model.variables]
    assert not copy.compiled
    assert not copy.metrics
    expected = model.get_weights()
    copy.compile("sgd", "mse")
    copy.fit(x, y + 1, verbose=0)
    for a, b in zip(expected, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(copy(x), model(x))
    # Parts of it can be cut out, and built upon.
    part = keras.Model(copy.input, copy.layers[-2].output)
    assert part(x).shape == keras.Model(model.input, model.layers[-2].output)(x).shape
    close(copy_of(copy)(x), copy(x))


def test_seeds_go_on_by_themselves():
    model = keras.Sequential([keras.Input((40,)), layers.Dropout(0.5, seed=1)])
    copy = copy_of(model)
    x = np.ones((1, 40), "float32")
    first = np.asarray(copy(x, training=True))
    np.testing.assert_array_equal(model(x, training=True), first)
    assert not np.array_equal(copy(x, training=True), first)


def test_what_cannot_be_made_again_names_the_layer():
    model = tail(Gate(layers.Dense(4), name="gate"))
    with pytest.raises(ValueError, match=r"(?s)'gate' of class Gate.*get_config.*register_keras"):
        remade(model)


@pytest.mark.parametrize(
    ("learn", "make", "wrong"),
    [
        (tfmeta.FOMAML, deferred, "labels"),
        (tfmeta.FOMAML, deferred, "rank"),
        (tfmeta.FOMAML, deferred, "query labels"),
        (tfmeta.PrototypicalNetwork, lambda: Net(layers.Dense(4), keras.ops.tanh), "rank"),
        (tfmeta.PrototypicalNetwork, lambda: Net(layers.Dense(4), keras.ops.tanh), "query labels"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not reach these weights")
@pytest.mark.filterwarnings("ignore:.*(not able to trace|looks like it has unbuilt state)")
def test_after_a_refused_call_a_right_one_works(learn, wrong, make):
    learner = learn(make())
    learner.compile("adam", CE(from_logits=True), metrics=["accuracy"])
    right, labels = episodes(numbers(5))
    bad, bad_labels = dict(right), labels
    if wrong == "labels":
        bad = {**bad, "support_y": bad["support_y"] + 7}
    elif wrong == "rank":
        bad = {k: v if k == "support_y" else v[:, :, 0] for k, v in bad.items()}
    else:
        bad_labels = np.zeros((1, 4, 3, 2), "float32")
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        learner.fit(bad, bad_labels, verbose=0)
    assert wrong != "rank" or not learner.model.weights
    learner.fit(right, labels, verbose=0)
    assert learner.evaluate(right, labels, verbose=0)[1] <= 1.0


def test_building_leaves_statistics_and_seeds_alone():
    model = keras.Sequential(
        [layers.BatchNormalization(), layers.Dropout(0.5, seed=1), layers.Dense(3)]
    )
    learner = tfmeta.MAML(model, 0.1, 1)
    seed = np.array(model.layers[1].seed_generator.state)
    learner.check_inputs(episodes(numbers(5))[0])
    np.testing.assert_array_equal(model.layers[1].seed_generator.state, seed)
    np.testing.assert_array_equal(model.layers[0].moving_mean, np.zeros(5))
    np.testing.assert_array_equal(model.layers[0].moving_variance, np.ones(5))


STEPS = (4, 3)
# Of each loss: the outputs of the network behind [4, 3], and labels [10, ...].
LABELS = {
    "class numbers by time step": (
        CE(from_logits=True),
        lambda: layers.Dense(3),
        lambda r: r.integers(3, size=(10, 4)),
        ([None, 4], tf.int64),
    ),
    "numbers by time step": (
        "mse",
        lambda: layers.Dense(2),
        lambda r: r.normal(size=(10, 4, 2)),
        ([None, 4, 2], tf.float32),
    ),
    "probabilities by time step": (
        keras.losses.KLDivergence(),
        lambda: layers.Dense(2, activation="softmax"),
        lambda r: np.full((10, 4, 2), 0.5),
        ([None, 4, 2], tf.float32),
    ),
    "half as many as outputs": (
        tfmeta.losses.GaussianNLL(),
        lambda: layers.Dense(2),
        lambda r: r.normal(size=(10, 4, 1)),
        ([None, 4, 1], tf.float32),
    ),
    "a number without an axis": (
        keras.losses.BinaryCrossentropy(from_logits=True),
        lambda: keras.Sequential([layers.Flatten(), layers.Dense(1)]),
        lambda r: r.integers(2, size=10).astype("float32"),
        ([None], tf.float32),
    ),
}


@pytest.mark.parametrize("kind", LABELS)
def test_exports_take_labels_as_the_loss_does(kind, tmp_path):
    loss, last, draw, (shape, dtype) = LABELS[kind]
    r = np.random.default_rng(0)
    model = keras.Sequential([keras.Input(STEPS), layers.Conv1D(4, 2, padding="same"), last()])
    learner = tfmeta.MAML(model, 0.1, 1, task_axis="loop")
    learner.compile("sgd", loss)
    x, y = r.normal(size=(10, *STEPS)).astype("float32"), draw(r)
    y = y if y.dtype.kind == "i" else y.astype("float32")
    inputs = {"support_x": x[None, :6], "support_y": y[None, :6], "query_x": x[None, 6:]}
    learner.check_inputs(inputs)
    spec = learner.labels.spec
    assert (spec.shape.as_list(), spec.dtype) == (shape, dtype)
    learner.export(tmp_path / "learner")
    few_shot = tf.saved_model.load(str(tmp_path / "learner"))
    got = few_shot.adapt_and_predict(x[:6], tf.constant(y[:6], dtype), x[6:])["predictions"]
    close(got, learner(inputs)[0])
    close(learner.adapt(x[:6], y[:6])(x[6:]), got)
