"""What a layer does besides its call: what it writes is kept as Keras keeps it, and no more."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfmeta
from tfmeta.functional import written_weights

TASKS, SUPPORT, QUERIES = 2, 5, 3
RATE = 0.2


def episodes(dtype="float64", *, classes=False):
    random = np.random.default_rng(0)
    x = random.normal(size=(TASKS, SUPPORT + QUERIES, 4)).astype(dtype)
    y = random.normal(size=(TASKS, SUPPORT + QUERIES, 2)).astype(dtype)
    if classes:
        y = np.tile(np.arange(SUPPORT + QUERIES) % 2, (TASKS, 1))
    inputs = {"support_x": x[:, :SUPPORT], "support_y": y[:, :SUPPORT], "query_x": x[:, SUPPORT:]}
    return inputs, y[:, SUPPORT:]


def spectral():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.SpectralNormalization(layers.Dense(3, "tanh"), 2, name="norm"),
            layers.Dense(2, name="head"),
        ]
    )
    kernel = model.get_layer("norm").layer.kernel
    kernel.assign(3 * kernel)
    return model


def normalised(w, u, iterations=2):
    """What Keras's layer writes: the kernel, and the vector of its power iteration."""

    def unit(x):
        return x / np.sqrt(max(np.sum(x**2), 1e-12))

    for _ in range(iterations):
        v = unit(u @ w.T)
        u = unit(v @ w)
    return w / (v @ w @ u.T), u


class Twin:
    """The model `spectral` and its training in NumPy, variables as Keras has them."""

    def __init__(self, model):
        self.norm, self.head = model.get_layer("norm"), model.get_layer("head")
        self.w, self.b, self.v, self.c = (
            x.numpy()
            for x in (self.norm.layer.kernel, self.norm.layer.bias, *self.head.trainable_variables)
        )
        self.u = self.norm.vector_u.numpy()

    def gradients(self, x, y):
        """Normalise, and return the loss and its gradients at what is written."""
        self.w, self.u = normalised(self.w, self.u)
        z = np.tanh(x @ self.w + self.b)
        e = z @ self.v + self.c - y
        d = 2 * e / e.size
        h = d @ self.v.T * (1 - z**2)
        return np.mean(e**2), [x.T @ h, h.sum(0), z.T @ d, d.sum(0)]

    def weights(self):
        return [self.w, self.b, self.v, self.c]

    def set(self, weights):
        self.w, self.b, self.v, self.c = weights

    def step(self, gradients, rate=RATE):
        self.set([p - rate * g for p, g in zip(self.weights(), gradients, strict=True)])


def assert_are(model, twin):
    w, b, v, c = twin.weights()
    norm, head = model.get_layer("norm"), model.get_layer("head")
    for variable, value in (
        (norm.layer.kernel, w),
        (norm.layer.bias, b),
        (norm.vector_u, twin.u),
        (head.kernel, v),
        (head.bias, c),
    ):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-6, atol=1e-8)


def learner_of(make, model, rate=0.0, **options):
    learner = make(model, RATE, 2, task_axis="loop", **options)
    learner.compile(keras.optimizers.SGD(rate), "mse")
    return learner


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"adapt_layers": "head"}])
def test_first_order_steps_start_from_what_a_layer_writes(options, float64):
    """FOMAML in NumPy: each forward writes, each step starts there, gradients are taken there."""
    model = spectral()
    twin = Twin(model)
    inputs, targets = episodes()
    loss = learner_of(tfmeta.FOMAML, model, 0.5, **options).train_on_batch(inputs, targets)
    losses, outer, kept = [], [], None
    for t in range(TASKS):
        for k in range(2):
            _, gradients = twin.gradients(inputs["support_x"][t], inputs["support_y"][t])
            if k == 0:
                kept = twin.weights()
            if "adapt_layers" in options:
                gradients[:2] = 0, 0
            twin.step(gradients)
        value, gradients = twin.gradients(inputs["query_x"][t], targets[t])
        losses.append(value)
        outer.append(gradients)
        twin.set(kept)
    twin.step([sum(g) / TASKS for g in zip(*outer, strict=True)], 0.5)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    assert_are(model, twin)


def test_second_order_gradients_are_those_at_what_is_written(float64):
    """A nested tape, in which a weight that is written to has another value and no other slope."""
    model = spectral()
    inputs, targets = ({k: v[:1] for k, v in episodes()[0].items()}, episodes()[1][:1])
    start, u = [v.numpy() for v in model.trainable_variables], Twin(model).u

    def loss(params, u, x, y):
        written, u = normalised(params[0].numpy(), u)
        w = params[0] + tf.constant(written - params[0].numpy())
        z = tf.tanh(x @ w + params[1])
        return tf.reduce_mean((z @ params[2] + params[3] - y) ** 2), [w, *params[1:]], u

    with tf.GradientTape() as outer:
        theta = [tf.constant(x) for x in start]
        outer.watch(theta)
        params = theta
        for k in range(2):
            with tf.GradientTape() as inner:
                inner.watch(params)
                support = inputs["support_x"][0], inputs["support_y"][0]
                value, written, u = loss(params, u, *support)
            slopes = inner.gradient(value, params)
            if k == 0:
                kept = written
            params = [w - RATE * g for w, g in zip(written, slopes, strict=True)]
        value, _, u = loss(params, u, inputs["query_x"][0], targets[0])
    slopes = outer.gradient(value, theta)
    learner_of(tfmeta.MAML, model, 0.5).train_on_batch(inputs, targets)
    for v, w, g in zip(model.trainable_variables, kept, slopes, strict=True):
        np.testing.assert_allclose(v.numpy(), w - 0.5 * g, rtol=1e-6, atol=1e-8)


def test_reptile_moves_to_where_keras_would_train(float64):
    model = spectral()
    twin = Twin(model)
    inputs, targets = ({k: v[:1] for k, v in episodes()[0].items()}, episodes()[1][:1])
    keras_model = spectral()
    keras_model.compile(keras.optimizers.SGD(RATE), "mse")
    for _ in range(2):
        x, y = inputs["support_x"][0], inputs["support_y"][0]
        twin.step(twin.gradients(x, y)[1])
        keras_model.train_on_batch(x, y)
    assert_are(keras_model, twin)
    learner_of(tfmeta.Reptile, model, 1.0).train_on_batch(inputs, targets)
    twin.u = normalised(twin.w, twin.u)[1]  # by the queries
    assert_are(model, twin)


def test_prototypical_networks_write_by_themselves(float64):
    model = spectral()
    twin = Twin(model)
    inputs, targets = episodes(classes=True)
    learner = tfmeta.PrototypicalNetwork(model)
    learner.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    learner.train_on_batch(inputs, targets)
    # All examples of a meta-batch are one batch of Keras's.
    twin.w, twin.u = normalised(twin.w, twin.u)
    assert_are(model, twin)


@pytest.mark.parametrize("make", [tfmeta.MAML, tfmeta.Reptile, tfmeta.ProtoMAML])
def test_what_does_not_train_does_not_write(make, float64):
    inputs, targets = episodes(classes=True)
    model = spectral()
    learner = make(model, RATE, 2, task_axis="loop")
    learner.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    before = model.get_weights()
    learner.test_on_batch(inputs, targets)
    learner.predict_on_batch(inputs)
    learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_layer_of_ones_own_may_write():
    @keras.saving.register_keras_serializable(package="tests")
    class Halving(layers.Dense):
        def call(self, inputs):
            self.bias.assign(self.bias / 2)
            return super().call(inputs)

    model = keras.Sequential([keras.Input((4,)), Halving(2, bias_initializer="ones")])
    example = keras.KerasTensor((None, 4))
    assert written_weights(model, example, training=True) == [False, True]
    ordinary = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(), layers.Dense(2)])
    assert not any(written_weights(ordinary, example, training=True))
    inputs, _ = episodes("float32")
    learner = tfmeta.MAML(model, 1e-9, 3, task_axis="loop")
    learner.compile("sgd", "mse")
    # Each of three steps halves what the one before it left.
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    np.testing.assert_allclose(adapted.layers[0].bias, 1 / 8, rtol=1e-6)
    np.testing.assert_array_equal(model.layers[0].bias, 1)


def refused():
    def sequential(layer, shape=(4,)):
        return keras.Sequential([keras.Input(shape), layer, layers.Dense(2)])

    norm = layers.SpectralNormalization(layers.Dense(3))
    quantised = sequential(layers.Dense(4))
    quantised.layers[0].quantize("float8")
    stateful = keras.Sequential(
        [keras.Input(batch_shape=(5, 4)), layers.Reshape((2, 2)), layers.GRU(3, stateful=True)]
    )
    return {
        "implicit": (tfmeta.ImplicitMAML, sequential(norm), "kernel', one that a layer writes to"),
        "amortized": (tfmeta.AmortizedBayesianMAML, sequential(norm), "SpectralNormalization"),
        "bayesian": (tfmeta.BayesianMAML, sequential(norm), "SpectralNormalization"),
        "float8": (tfmeta.MAML, quantised, "float8"),
        "stateful": (tfmeta.MAML, stateful, "with stateful=True"),
        "stateful in a prototypical network": (
            lambda model, *_: tfmeta.PrototypicalNetwork(model),
            stateful,
            "with stateful=True",
        ),
        "constrained": (
            tfmeta.ImplicitMAML,
            sequential(layers.Dense(3, kernel_constraint="non_neg")),
            "kernel', one with a constraint",
        ),
        "constrained draws": (
            tfmeta.AmortizedBayesianMAML,
            sequential(layers.Dense(3, kernel_constraint="non_neg")),
            "with NonNeg",
        ),
    }


@pytest.mark.parametrize("name", list(refused()))
def test_what_a_learner_cannot_honour_is_refused_by_name(name):
    make, model, words = refused()[name]
    inputs, targets = episodes("float32", classes=True)
    learner = make(model, RATE, 2)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()
    with pytest.raises(ValueError, match=words):
        learner.train_on_batch(inputs, targets)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch_norm", ["transductive", "support", "with_support"])
def test_batch_renormalisation_is_for_running_statistics(batch_norm):
    try:
        norm = layers.BatchNormalization(renorm=True)
    except (TypeError, ValueError):
        pytest.skip("this Keras has no batch renormalisation")
    model = keras.Sequential([keras.Input((4,)), norm, layers.Dense(2)])
    inputs, targets = episodes("float32")
    learner = learner_of(tfmeta.MAML, model, batch_norm=batch_norm)
    with pytest.raises(ValueError, match="has renorm=True"):
        learner.train_on_batch(inputs, targets)
    learner_of(tfmeta.MAML, model, batch_norm="running").train_on_batch(inputs, targets)


def everything(model):
    """What a model's layers hold beside their weights, and what of TensorFlow is replaced."""
    held = [
        {name: value for name, value in vars(layer).items() if not name.startswith("_")}
        for layer in model._flatten_layers()
    ]
    replaced = tf.nn.moments, tf.nn.max_pool, tf.image.resize, tf.nn.ctc_loss, tf.math.sqrt
    return held, [*replaced, tf.math.reduce_logsumexp]


class Failing(layers.Layer):
    fails = False

    def call(self, x):
        if self.fails:
            raise RuntimeError("a layer that fails")
        return x


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            tfmeta.layers.PerStepBatchNormalization(1),
            layers.BatchNormalization(),
            layers.Reshape((2, 2)),
            layers.GRU(2),
            layers.Dense(2, kernel_constraint="max_norm"),
            Failing(),
        ]
    )
    inputs, targets = episodes("float32")
    learner = tfmeta.MAML(model, RATE, 1, task_axis="loop")
    learner.compile("sgd", "mse")
    learner.build({name: x.shape for name, x in inputs.items()})
    held, replaced = everything(model)
    if training:
        learner.train_on_batch(inputs, targets)
    else:
        learner.test_on_batch(inputs, targets)
        with pytest.raises(ValueError, match="finite"):
            learner.adapt(inputs["support_x"][0], inputs["support_y"][0] * np.inf)
        learner.adapt_task(inputs["support_x"][0], inputs["support_y"][0], training=False)
        learner.export(tmp_path / "exported")
    assert everything(model) == (held, replaced)
    learner.compile("sgd", "mse")  # so that it is traced again
    model.layers[-1].fails = True
    held, _ = everything(model)
    with pytest.raises(RuntimeError, match="a layer that fails"):
        (learner.train_on_batch if training else learner.test_on_batch)(inputs, targets)
    assert everything(model) == (held, replaced)
