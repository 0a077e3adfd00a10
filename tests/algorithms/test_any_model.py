"""MAML takes whatever Keras model a user has, and treats it as Keras's own training would."""

import functools
import warnings
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfmeta
from tests.algorithms.test_maml import assert_directional_derivatives
from tests.rows import rows
from tfmeta.functional import BATCH_NORM_MODES

TASKS, SUPPORT, QUERIES, STEPS, RATE = 2, 4, 3, 2, 0.3
# Made anew for each model, for a loss computes in the precision of the time when it was made.
CLASSES = functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)
ONE_HOT = functools.partial(keras.losses.CategoricalCrossentropy, from_logits=True)
BINARY = functools.partial(keras.losses.BinaryCrossentropy, from_logits=True)


def normal(*shape):
    values = np.random.default_rng(len(shape)).normal(size=(TASKS, SUPPORT + QUERIES, *shape))
    return values.astype(keras.config.floatx())


def integers(count, *shape):
    shape = (TASKS, SUPPORT + QUERIES, *shape)
    return np.random.default_rng(count).integers(count, size=shape, dtype=np.int32)


def sequential(x, *middle, y=None, loss="mse", outputs=2):
    y = normal(outputs) if y is None else y
    first = keras.Input(x.shape[2:], dtype=x.dtype.name)
    return keras.Sequential([first, *middle, layers.Dense(outputs)]), x, y, loss


def vectors(*middle, **kwargs):
    return sequential(normal(5), *middle, **kwargs)


def tokens(*middle):
    return sequential(integers(7, 4), *middle)


def series(*middle):
    return sequential(normal(4, 3), *middle, layers.GlobalAveragePooling1D())


def images(*middle):
    pooled = [*middle, layers.GlobalAveragePooling2D()]
    return sequential(normal(6, 6, 2), *pooled, y=integers(3), loss=CLASSES(), outputs=3)


def functional():
    x = keras.Input((5,))
    both = layers.Concatenate()([x, layers.Dense(4, "tanh")(x)])
    return keras.Model(x, layers.Dense(3)(both)), normal(5), integers(3), CLASSES()


@keras.saving.register_keras_serializable(package="test")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.last = layers.Dense(4, "tanh"), layers.Dense(3)

    def call(self, x):
        return self.last(self.first(x))


def siamese():
    """One layer embeds both halves of a pair."""
    pair = keras.Input((2, 5))
    embed = layers.Dense(4, "tanh")
    product = layers.Multiply()([embed(pair[:, 0]), embed(pair[:, 1])])
    return keras.Model(pair, layers.Dense(1)(product)), normal(2, 5), integers(2), BINARY()


def several_inputs(nest):
    a, b = keras.Input((3,), name="a"), keras.Input((2, 2), name="b")
    joined = layers.Concatenate()([layers.Dense(3, "tanh")(a), layers.Flatten()(b)])
    model = keras.Model(nest(a, b), layers.Dense(2)(joined))
    return model, nest(normal(3), normal(2, 2)), normal(2), "mse"


def several_outputs(nest):
    x = keras.Input((5,))
    hidden = layers.Dense(4, "tanh")(x)
    outputs = nest(layers.Dense(3, name="a")(hidden), layers.Dense(2, name="b")(hidden))
    return keras.Model(x, outputs), normal(5), nest(integers(3), normal(2)), nest(CLASSES(), "mse")


def named_output():
    x = keras.Input((5,))
    return keras.Model(x, {"logits": layers.Dense(3)(x)}), normal(5), integers(3), CLASSES()


def frozen():
    model = Subclassed()
    model.first.trainable = False
    return model, normal(5), integers(3), CLASSES()


def normalization():
    layer = layers.Normalization()
    layer.adapt(3 + 2 * normal(5)[0])
    return vectors(layer)


def in_a_dict(a, b):
    return {"a": a, "b": b}


def in_a_list(*values):
    return list(values)


def attention():
    x = keras.Input((4, 3))
    attended = layers.MultiHeadAttention(2, 3)(x, x)
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(attended)))
    return model, normal(4, 3), normal(2), "mse"


# A name, and what makes a model, x, y and loss.
CASES = {
    "Sequential": lambda: vectors(layers.Dense(4, "tanh")),
    "Functional": functional,
    "subclassed": lambda: (Subclassed(), normal(5), integers(3), CLASSES()),
    "shared layer": siamese,
    "inputs in a dict": lambda: several_inputs(in_a_dict),
    "inputs in a list": lambda: several_inputs(in_a_list),
    "outputs in a dict": lambda: several_outputs(in_a_dict),
    "outputs in a list": lambda: several_outputs(in_a_list),
    "one named output": named_output,
    "one-hot": lambda: vectors(y=np.eye(3)[integers(3)], loss=ONE_HOT(), outputs=3),
    "binary": lambda: vectors(y=integers(2), loss=BINARY(), outputs=1),
    "binary column": lambda: vectors(y=integers(2, 1), loss=BINARY(), outputs=1),
    "frozen Dense": lambda: vectors(layers.Dense(4, "tanh", trainable=False)),
    "frozen BatchNormalization": lambda: vectors(layers.BatchNormalization(trainable=False)),
    "frozen after it was made": frozen,
    "Normalization": normalization,
    "Dropout": lambda: vectors(layers.Dense(9, "tanh"), layers.Dropout(0.5, seed=1)),
    "GaussianNoise": lambda: vectors(layers.GaussianNoise(0.5, seed=1)),
    "SpatialDropout1D": lambda: series(layers.SpatialDropout1D(0.5, seed=1)),
    "LayerNormalization": lambda: vectors(layers.Dense(4), layers.LayerNormalization()),
    "GroupNormalization": lambda: vectors(layers.Dense(4), layers.GroupNormalization(2)),
    "RMSNormalization": lambda: vectors(layers.Dense(4), layers.RMSNormalization()),
    "UnitNormalization": lambda: vectors(layers.Dense(4), layers.UnitNormalization()),
    "Embedding": lambda: tokens(layers.Embedding(7, 3), layers.Flatten()),
    "Embedding of two axes": lambda: sequential(
        integers(7, 2, 2), layers.Embedding(7, 3), layers.Flatten()
    ),
    "masked Embedding": lambda: tokens(
        layers.Embedding(7, 3, mask_zero=True), layers.GlobalAveragePooling1D()
    ),
    "LSTM": lambda: tokens(layers.Embedding(7, 3, mask_zero=True), layers.LSTM(2)),
    "GRU": lambda: sequential(normal(4, 3), layers.GRU(2)),
    "SimpleRNN": lambda: sequential(normal(4, 3), layers.SimpleRNN(2)),
    "Bidirectional": lambda: sequential(
        normal(4, 3), layers.Bidirectional(layers.GRU(2, unroll=True))
    ),
    "MultiHeadAttention": attention,
    "Conv1D": lambda: series(layers.Conv1D(2, 3, activation="tanh")),
    "Conv2D": lambda: images(layers.Conv2D(2, 3, activation="tanh"), layers.MaxPooling2D(2)),
    "DepthwiseConv2D": lambda: images(layers.DepthwiseConv2D(3), layers.AveragePooling2D(2)),
    "SeparableConv2D": lambda: images(layers.SeparableConv2D(2, 3, activation="tanh")),
    "Conv2DTranspose": lambda: images(layers.Conv2DTranspose(2, 3, strides=2, activation="tanh")),
    "kernel_regularizer": lambda: vectors(layers.Dense(4, "tanh", kernel_regularizer="l2")),
    "activity_regularizer": lambda: vectors(layers.Dense(4, "tanh", activity_regularizer="l2")),
}


# Kin of a case that is tested each time, and layers of which tests/conformance has a test.
SLOW = {
    *("inputs in a list", "outputs in a list", "binary column", "frozen Dense", "GaussianNoise"),
    *("SpatialDropout1D", "LayerNormalization", "GroupNormalization", "RMSNormalization"),
    *("UnitNormalization", "Embedding", "GRU", "LSTM", "Bidirectional", "Conv1D"),
    *("DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "one-hot", "binary"),
    *("one named output", "frozen after it was made", "Embedding of two axes"),
    "kernel_regularizer",
}
NAMES = rows(CASES, SLOW)


def part(nest, where):
    return keras.tree.map_structure(lambda values: values[where], nest)


def episodes(x, y):
    support, query = np.s_[:, :SUPPORT], np.s_[:, SUPPORT:]
    inputs = {"support_x": part(x, support), "support_y": part(y, support)}
    return {**inputs, "query_x": part(x, query)}, part(y, query)


def by_the_batch(model, support_x, query_x):
    return model(query_x, training=True)


def by_the_support_set(model, support_x, query_x):
    for layer in model.layers:
        layer.momentum = 0.0
    model(support_x, training=True)
    return model(query_x, training=False)


def by_the_support_set_and_a_query(model, support_x, query_x):
    joined = [np.concatenate([support_x, query[None]]) for query in query_x]
    return keras.ops.stack([model(x, training=True)[-1] for x in joined])


QUERY = {
    **dict.fromkeys(BATCH_NORM_MODES, by_the_batch),
    "support": by_the_support_set,
    "with_support": by_the_support_set_and_a_query,
}


def assert_gradient_is_that_of_training(case, batch_norm="transductive", weight=None):
    """Compare MAML's outer gradient with differences of Keras's own `train_on_batch`, K times."""
    keras.utils.set_random_seed(1)
    model, x, y, loss = case()
    inputs, targets = episodes(x, y)
    # Side by side, all tasks draw their masks at once.
    axis = "loop" if any("seed" in v.path for v in model.variables) else "auto"
    learner = tfmeta.MAML(model, RATE, STEPS, batch_norm=batch_norm, task_axis=axis)
    learner.compile(keras.optimizers.SGD(1.0), loss, jit_compile=False)
    learner.build(keras.tree.map_structure(np.shape, inputs))
    model.compile(keras.optimizers.SGD(RATE), loss, jit_compile=False)
    theta, state = model.trainable_variables, model.non_trainable_variables

    def values(variables):
        return [v.numpy() for v in variables]

    def assign(variables, new):
        for variable, value in zip(variables, new, strict=True):
            variable.assign(value)

    start, state_at_start = values(theta), values(state)
    learner.train_on_batch(inputs, targets, weight)
    gradients = [a - b for a, b in zip(start, values(theta), strict=True)]
    assign(theta, start)

    def penalty():
        return sum(float(v.regularizer(v)) for v in theta if v.regularizer)

    def outer_loss():
        initial, total = values(theta), TASKS * penalty()
        # Seeds too: the masks are the learner's.
        assign(state, state_at_start)
        for task in range(TASKS):
            assign(theta, initial)
            support_x, support_y, query_x = (part(value, task) for value in inputs.values())
            for _ in range(STEPS):
                model.train_on_batch(support_x, support_y)
            predictions = QUERY[batch_norm](model, support_x, query_x)
            weights = None if weight is None else weight[task]
            # Keras adds the penalty at φ.
            total += model.compute_loss(None, part(targets, task), predictions, weights) - penalty()
        return total / TASKS

    assert_directional_derivatives(theta, gradients, outer_loss)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_training(float64, name):
    assert_gradient_is_that_of_training(CASES[name])


@pytest.mark.parametrize("mode", BATCH_NORM_MODES)
def test_gradient_through_batch_normalisation(float64, mode):
    assert_gradient_is_that_of_training(
        lambda: vectors(layers.Dense(4), layers.BatchNormalization()), mode
    )


def test_gradient_of_weighted_queries(float64):
    weight = np.random.default_rng(0).random((TASKS, QUERIES))
    assert_gradient_is_that_of_training(CASES["Functional"], weight=weight)


@pytest.mark.parametrize("name", NAMES)
def test_fit_and_adapt(name):
    """`fit` with a metric; the adapted model predicts what the learner does."""
    model, x, y, loss = CASES[name]()
    inputs, targets = episodes(x, y)
    metrics = keras.tree.map_structure(lambda x: "mse" if x == "mse" else "accuracy", loss)
    learner = tfmeta.MAML(model, 0.1)
    learner.compile("sgd", loss, metrics=[metrics] if isinstance(metrics, str) else metrics)
    history = learner.fit(inputs, targets, batch_size=TASKS, verbose=0).history
    assert len(history) == (2 if isinstance(metrics, str) else 5)
    assert np.isfinite(list(history.values())).all()
    adapted = learner.adapt(part(inputs["support_x"], 1), part(inputs["support_y"], 1))
    predictions = adapted(part(inputs["query_x"], 1))
    expected = part(learner.predict_on_batch(inputs), 1)
    keras.tree.assert_same_structure(predictions, expected)
    for a, b in zip(keras.tree.flatten(predictions), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("regularizer", "slope"),
    [
        ("kernel_regularizer", 2.0),
        ("activity_regularizer", 18.0),
    ],
)
def test_penalties_act_on_the_inner_step(regularizer, slope):
    """`(3w − 4)²` has the slope 12 at w = 2; `½ w²` adds w = 2, and `½ (3w)²` adds 9w = 18."""
    dense = layers.Dense(1, use_bias=False, **{regularizer: keras.regularizers.L2(0.5)})
    model = keras.Sequential([keras.Input((1,)), dense])
    model.set_weights([np.array([[2.0]])])
    learner = tfmeta.MAML(model, 0.01)
    learner.compile("sgd", "mse")
    adapted = learner.adapt(np.array([[3.0]], np.float32), np.array([[4.0]], np.float32))
    np.testing.assert_allclose(adapted.get_weights()[0], 2 - 0.01 * (12 + slope), rtol=1e-6)


def test_penalties_count_once_however_the_learner_is_called():
    dense = [layers.Dense(4, "tanh", activity_regularizer="l2") for _ in range(6)]
    model, x, y, loss = vectors(*dense)
    inputs, _ = episodes(x, y)
    learner = tfmeta.MAML(model, 0.5, 4)
    learner.compile("sgd", loss)
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    np.testing.assert_allclose(learner(inputs)[0], adapted(inputs["query_x"][0]), atol=1e-6)


def test_penalties_of_activities_beside_the_support_set(float64):
    """With "with_support" a query's activities are those of the support set and itself."""
    dense = layers.Dense(4, activity_regularizer=keras.regularizers.L2(0.1))
    model, x, y, loss = vectors(dense, layers.BatchNormalization())
    inputs, targets = episodes(x, y)
    learner = tfmeta.MAML(model, 1e-12, batch_norm="with_support")
    learner.compile("sgd", loss)
    error = np.mean((learner.predict_on_batch(inputs) - targets) ** 2)
    activity = (x @ dense.kernel.numpy()) ** 2
    support, query = activity[:, :SUPPORT].sum((1, 2)), activity[:, SUPPORT:].sum(2)
    penalty = 0.1 * np.mean((support[:, None] + query) / (SUPPORT + 1))
    np.testing.assert_allclose(learner.train_on_batch(inputs, targets), error + penalty)


@pytest.mark.parametrize(("axis", "draws"), [("loop", 16 * 3), ("packed", 4 * 3)])
def test_each_task_has_masks_of_its_own(axis, draws):
    """In `fit`, K + 1 draws of each task; in a call, no two of 16 equal tasks predict the same.

    Four tasks side by side draw together.
    """
    dropout = layers.Dropout(0.5, seed=1)
    model = keras.Sequential([keras.Input((32,)), dropout, layers.Dense(1)])
    learner = tfmeta.MAML(model, 0.1, 2, task_axis=axis, task_chunk=4)
    learner.compile("sgd", "mse")
    x, y = np.ones((16, 1, 32), np.float32), np.ones((16, 1, 1), np.float32)
    inputs = {"support_x": x, "support_y": y, "query_x": x}
    learner.build(keras.tree.map_structure(np.shape, inputs))
    before = dropout.seed_generator.state.numpy()
    learner.train_on_batch(inputs, y)
    np.testing.assert_array_equal(dropout.seed_generator.state.numpy() - before, [0, draws])
    predictions = tf.function(learner)(inputs, training=True)
    assert len(np.unique(predictions)) == 16


@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU])
def test_cudnn(layer):
    model, x, y, loss = sequential(normal(4, 3), layer(2, use_cudnn=True, name="recurrent"))
    inputs, targets = episodes(x, y)
    learner = tfmeta.MAML(model, 0.1)
    learner.compile("sgd", loss)
    with pytest.raises(ValueError, match=r"no second derivative. Received: layer 'recurrent' with"):
        learner.train_on_batch(inputs, targets)
    recurrent = model.get_layer("recurrent")
    assert recurrent.use_cudnn is True
    recurrent.use_cudnn = "auto"
    learner.train_on_batch(inputs, targets)
    assert recurrent.use_cudnn == "auto"
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    assert adapted.get_layer("recurrent").use_cudnn == "auto"


@pytest.fixture
def policy() -> Iterator:
    before = keras.config.dtype_policy()
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy(before)


def classifier(optimizer):
    keras.utils.set_random_seed(1)
    middle = [layers.Dense(8), layers.BatchNormalization(), layers.ReLU()]
    model, x, y, loss = vectors(*middle, y=integers(3), loss=CLASSES(), outputs=3)
    learner = tfmeta.MAML(model, 0.1)
    learner.compile(optimizer, loss)
    return learner, *episodes(x, y)


@pytest.mark.parametrize("precision", rows(["float16", "bfloat16"], ["bfloat16"]))
def test_mixed_precision(policy, precision, tmp_path):
    """The gradient is near that of float32, the weights stay in it, and training works."""
    steps = []
    for name in ("float32", f"mixed_{precision}"):
        policy(name)
        learner, inputs, targets = classifier(keras.optimizers.SGD(1.0))
        learner.build(keras.tree.map_structure(np.shape, inputs))
        before = learner.get_weights()
        learner.train_on_batch(inputs, targets)
        change = [a - b for a, b in zip(learner.get_weights(), before, strict=True)]
        steps.append(np.concatenate([c.ravel() for c in change]))
    exact, mixed = steps
    assert np.linalg.norm(mixed - exact) < 5e-2 * np.linalg.norm(exact)

    learner, inputs, targets = classifier(keras.optimizers.Adam(0.01))
    scaled = isinstance(learner.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (precision == "float16")
    losses = [learner.train_on_batch(inputs, targets) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert {v.dtype for v in learner.trainable_variables} == {"float32"}
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    assert {v.dtype for v in adapted.weights} == {"float32"}
    predictions = learner.predict_on_batch(inputs)
    np.testing.assert_allclose(adapted(inputs["query_x"][0]), predictions[0], atol=1e-2)

    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert loaded.model.compute_dtype == precision
    assert type(loaded.optimizer) is type(learner.optimizer)
    np.testing.assert_allclose(loaded.predict_on_batch(inputs), predictions, atol=1e-3)
    again, loss = (made.train_on_batch(inputs, targets) for made in (loaded, learner))
    np.testing.assert_allclose(again, loss, rtol=1e-3)


@pytest.mark.parametrize("call", ["train_on_batch", "fit"])
def test_a_layer_without_second_derivative(call):
    def learner(make):
        model, x, y, loss = vectors(layers.Dense(4, "softsign"))
        made = make(model, 0.1, 2)
        made.compile("sgd", loss)
        return made, *episodes(x, y)

    made, inputs, targets = learner(tfmeta.MAML)
    # TensorFlow has a SoftsignGrad, and no derivative of it.
    with pytest.raises(ValueError, match=r"operation SoftsignGrad, which.*tfmeta.FOMAML"):
        getattr(made, call)(inputs, targets)
    made, inputs, targets = learner(tfmeta.FOMAML)
    made.build(keras.tree.map_structure(np.shape, inputs))
    before = made.model.layers[0].kernel.numpy()
    getattr(made, call)(inputs, targets)
    assert np.any(made.model.layers[0].kernel.numpy() != before)


def test_bilinear_resizing():
    """The gradient is that through a matrix which does the same."""
    eye = np.eye(16, dtype=np.float32)
    matrix = layers.UpSampling2D(2, interpolation="bilinear")(eye.reshape(16, 4, 4, 1))
    matrix = np.reshape(matrix, (16, 64))
    resized = [layers.UpSampling2D(2, interpolation="bilinear"), layers.Reshape((64, 2))]
    multiplied = [layers.Reshape((16, 2)), Multiplied(matrix)]
    changes = []
    for middle in (resized, multiplied):
        keras.utils.set_random_seed(1)
        last = [layers.Activation("tanh"), layers.Flatten()]
        model, x, y, loss = sequential(normal(6, 6, 2), layers.Conv2D(2, 3), *middle, *last)
        inputs, targets = episodes(x, y)
        learner = tfmeta.MAML(model, 0.01, 3)
        learner.compile(keras.optimizers.SGD(1.0), loss, jit_compile=False)
        before = model.layers[0].kernel.numpy()
        learner.train_on_batch(inputs, targets)
        changes.append(model.layers[0].kernel.numpy() - before)
    np.testing.assert_allclose(changes[0], changes[1], rtol=1e-3, atol=1e-5)


class Multiplied(layers.Layer):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def call(self, x):
        return tf.einsum("nic,io->noc", x, self.matrix)


def test_text():
    """Words become numbers outside of the model."""
    words = np.array(["red", "green", "blue", "black"])
    chosen = np.random.default_rng(0).choice(words, size=(TASKS, SUPPORT + QUERIES, 3))
    numbers = layers.TextVectorization(output_sequence_length=4)
    numbers.adapt(words)
    texts = [" ".join(text) for text in chosen.reshape(-1, 3)]
    x = np.reshape(numbers(texts), (TASKS, SUPPORT + QUERIES, 4))
    y = (chosen == "red").any(-1, keepdims=True).astype(np.int32)
    inputs, targets = episodes(x, y)
    embed = layers.Embedding(numbers.vocabulary_size(), 8, mask_zero=True)
    model, *_ = sequential(x, embed, layers.GlobalAveragePooling1D(), y=y, outputs=1)
    learner = tfmeta.MAML(model, 1.0, 2)
    learner.compile(keras.optimizers.Adam(0.1), BINARY(), metrics=["accuracy"])
    history = learner.fit(inputs, targets, batch_size=TASKS, epochs=30, verbose=0).history
    assert history["accuracy"][-1] == 1
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    new = adapted.predict(numbers(["green red blue", "green black blue"]), verbose=0)
    assert new[0, 0] > 0 > new[1, 0]


def test_unreached_weights_are_warned_about_once():
    x = keras.Input((5,))
    stopped = keras.ops.stop_gradient(layers.Dense(2, name="unreached")(x))
    model = keras.Model(x, layers.Add()([layers.Dense(2)(x), stopped]))
    inputs, targets = episodes(normal(5), normal(2))
    learner = tfmeta.MAML(model, 0.1, 2)
    learner.compile("sgd", "mse")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        learner.train_on_batch(inputs, targets)
        learner.train_on_batch(inputs, targets)
    assert ["unreached/kernel, unreached/bias" in str(w.message) for w in caught] == [True]
