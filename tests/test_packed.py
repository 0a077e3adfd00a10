"""Several tasks at once, against one after another: the same outputs, first and second derivatives.

`functional_call`, which the other tests hold to closed forms and finite differences, is the
reference.
"""

import contextlib
import functools
import logging
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfmeta
from tests.rows import rows
from tfmeta import devices, meta_learner
from tfmeta.algorithms import gradient_based
from tfmeta.foreign import of_tensorflow
from tfmeta.functional import functional_call
from tfmeta.layers import BatchAtHandNormalization, PerStepBatchNormalization
from tfmeta.packed import packed_call, spread_weights, task_axes, tried

IMAGE = {
    "conv": lambda: layers.Conv2D(4, 3, padding="same"),
    "conv-strides": lambda: layers.Conv2D(4, (3, 2), strides=2, activation="relu"),
    "conv-groups": lambda: layers.Conv2D(4, 3, groups=2, padding="same"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, activation="tanh"),
    "depthwise-strides": lambda: layers.DepthwiseConv2D(2, strides=2, padding="same"),
    "separable": lambda: layers.SeparableConv2D(3, 3, padding="same", depth_multiplier=2),
    "max-pool": lambda: layers.MaxPooling2D(2),
    "max-pool-same": lambda: layers.MaxPooling2D(3, strides=2, padding="same"),
    "average-pool": lambda: layers.AveragePooling2D(2, padding="same"),
    "global-max": lambda: layers.GlobalMaxPooling2D(),
    "global-average": lambda: layers.GlobalAveragePooling2D(),
    "global-keepdims": lambda: layers.GlobalAveragePooling2D(keepdims=True),
    "padding": lambda: layers.ZeroPadding2D(1),
    "cropping": lambda: layers.Cropping2D(1),
    "up-sampling": lambda: layers.UpSampling2D(2),
    "up-bilinear": lambda: layers.UpSampling2D(2, interpolation="bilinear"),
    "dense-on-space": lambda: layers.Dense(3, activation="gelu"),
    "flatten": lambda: layers.Flatten(),
    "permute": lambda: layers.Permute((2, 1, 3)),
    "group-norm": lambda: layers.GroupNormalization(2),
    "instance-norm": lambda: layers.GroupNormalization(-1, scale=False),
}
EITHER = {
    "activation": lambda: layers.Activation("swish"),
    "relu": lambda: layers.ReLU(max_value=1.0, negative_slope=0.1),
    "leaky": lambda: layers.LeakyReLU(),
    "elu": lambda: layers.ELU(),
    "prelu": lambda: layers.PReLU(),
    "softmax": lambda: layers.Softmax(),
    "rescaling": lambda: layers.Rescaling(0.5, 0.1),
    "identity": lambda: layers.Identity(),
    "dropout-off": lambda: layers.Dropout(0.0),
    "batch-norm": lambda: layers.BatchNormalization(),
    "batch-norm-plain": lambda: layers.BatchNormalization(center=False, scale=False),
    "batch-norm-frozen": lambda: layers.BatchNormalization(trainable=False),
    "batch-norm-at-hand": lambda: BatchAtHandNormalization(),
    "batch-norm-per-step": lambda: PerStepBatchNormalization(3),
    "layer-norm": lambda: layers.LayerNormalization(),
}
SEQUENCE = {
    "conv1d": lambda: layers.Conv1D(3, 3, strides=2, padding="same"),
    "conv1d-causal": lambda: layers.Conv1D(3, 2, padding="causal", use_bias=False),
    "depthwise1d": lambda: layers.DepthwiseConv1D(3, padding="same"),
    "separable1d": lambda: layers.SeparableConv1D(3, 3, activation="relu"),
    "max-pool1d": lambda: layers.MaxPooling1D(2),
    "average-pool1d": lambda: layers.AveragePooling1D(2),
    "global-max1d": lambda: layers.GlobalMaxPooling1D(),
    "global-average1d": lambda: layers.GlobalAveragePooling1D(),
    "padding1d": lambda: layers.ZeroPadding1D(1),
    "cropping1d": lambda: layers.Cropping1D(1),
    "up-sampling1d": lambda: layers.UpSampling1D(2),
}
VECTOR = {
    "dense": lambda: layers.Dense(3, activation="softmax"),
    "dense-plain": lambda: layers.Dense(3, use_bias=False),
    "repeat": lambda: layers.RepeatVector(2),
    "group-norm-vector": lambda: layers.GroupNormalization(2),
}


@contextlib.contextmanager
def precision(dtype):
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before)
        keras.config.set_dtype_policy(policy)


def in_precision(make):
    """Return a function of a dtype: the model that `make` makes in it."""

    def build(dtype):
        with precision(dtype):
            return make()

    return build


def sequential(make, shape):
    return in_precision(lambda: keras.Sequential([keras.Input(shape), make()]))


def random_weights(model, rng, tasks):
    """Return weights for each task, one list of tensors a task; variances are positive."""

    def draw(v):
        if "var" in v.name:
            return rng.uniform(0.5, 1.5, v.shape)
        # As large as those of a trained network.
        return rng.normal(size=v.shape) / np.sqrt(np.prod(v.shape[:-1]))

    return [[draw(v) for v in model.trainable_variables] for _ in range(tasks)]


def derivatives(call, params, inputs, factors):
    """Return the outputs of `call`, its new state, and two derivatives of a loss made of them.

    The first is a gradient g, the second the gradient of ⟨g, factors⟩.
    """
    watched = [*params, inputs] if inputs.dtype.is_floating else list(params)
    with tf.GradientTape() as outer:
        outer.watch(watched)
        with tf.GradientTape() as inner:
            inner.watch(watched)
            called = call(params, inputs)
            loss = tf.reduce_sum(tf.tanh(called.outputs) * factors[-1])
        first = inner.gradient(loss, watched, unconnected_gradients="zero")
        product = sum(
            tf.reduce_sum(g * f) for g, f in zip(first, factors[: len(first)], strict=True)
        )
    second = outer.gradient(product, watched, unconnected_gradients="zero")
    state = [x for x in called.state if x.dtype.is_floating]
    return [called.outputs, *state, *first, *second]


def both_ways(build, shape, tasks, n, dtype, seed, integers=None):
    """Return outputs, state and derivatives: packed, and of one task after another."""
    model = build(dtype)
    rng = np.random.default_rng(seed)
    params = random_weights(model, rng, tasks)
    if integers is None:
        x = tf.constant(rng.normal(size=(tasks, n, *shape)).astype("float32"), dtype)
    else:
        x = tf.constant(rng.integers(integers, size=(tasks, n, *shape)))
    # The same numbers in both precisions.
    params = [[tf.constant(w.astype("float32"), dtype) for w in p] for p in params]
    state = [tf.convert_to_tensor(v) for v in model.non_trainable_variables]
    how = {"training": True, "statistics": "batch", "step": 1}
    ids = task_axes(model)
    axes = [ids[id(v)] for v in model.trainable_variables]
    spread, packed_state = spread_weights(model, params[0], state, tasks)
    together = [tf.stack(p, axis) for p, axis in zip(zip(*params, strict=True), axes, strict=True)]
    assert [p.shape for p in together] == [p.shape for p in spread]
    width = packed_call(model, together, packed_state, x, **how).outputs.shape
    shapes = [*(p.shape for p in together), *([x.shape] if integers is None else []), width]
    factors = [tf.constant(rng.normal(size=s).astype("float32"), dtype) for s in shapes]
    packed = derivatives(
        lambda p, x: packed_call(model, p, packed_state, x, **how), together, x, factors
    )
    # Which axis of each of them is that of the tasks.
    inputs = [0] if integers is None else []
    statistics = [ids[id(v)] for v in model.non_trainable_variables if "seed" not in v.name]
    where = [0, *statistics, *axes, *inputs, *axes, *inputs]
    assert len(where) == len(packed)
    alone = [
        derivatives(
            lambda p, x: functional_call(model, p, state, x, **how),
            params[t],
            x[t],
            [tf.gather(f, t, axis=a) for f, a in zip(factors, [*axes, *inputs, 0], strict=True)],
        )
        for t in range(tasks)
    ]
    return packed, [
        tf.stack(x, axis) for x, axis in zip(zip(*alone, strict=True), where, strict=True)
    ]


def error(a, b, least=0.0):
    """Return the greatest difference, relative to the greatest value of `b`, or to `least`."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    assert a.shape == b.shape
    return np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), least, 1e-30)


def greatest(tensors):
    return max(np.abs(x).max(initial=0) for x in tensors)


def compare(build, shape, tasks, n, seed=0, integers=None):
    """Hold packed to the loop: to 1e-12 in double precision, to 1e-5 in single.

    In single precision both are held to the loop in double: where that is further off than 1e-5
    itself, packed may be as far. A gradient that ought to be zero, as that of a bias behind which
    the mean is taken away, is compared with the other ones.
    """
    packed, exact = both_ways(build, shape, tasks, n, "float64", seed, integers)
    least = 0.1 * greatest(exact)
    for ours, theirs in zip(packed, exact, strict=True):
        assert error(ours, theirs, least) <= 1e-12
    packed, loop = both_ways(build, shape, tasks, n, "float32", seed, integers)
    for ours, theirs, best in zip(packed, loop, exact, strict=True):
        assert error(ours, best, least) <= max(1e-5, 2 * error(theirs, best, least))


def assert_all_close(ours, theirs, tolerance=1e-5):
    """Compare gradients, relative to the greatest of them all."""
    for a, b in zip(ours, theirs, strict=True):
        assert error(a, b, greatest(theirs)) <= tolerance


def check(make, shapes):
    @settings(max_examples=4, deadline=None, derandomize=True)
    @given(st.data())
    def run(data):
        shape = data.draw(shapes)
        # Few examples in a batch to normalise would make much of each rounding.
        tasks, n = data.draw(st.integers(1, 3)), data.draw(st.integers(6, 8))
        compare(sequential(make, shape), shape, tasks, n, seed=sum(shape))

    run()


sizes = st.integers(5, 7)
channels = st.sampled_from([4, 6])


class TestEachRule:
    @pytest.mark.parametrize(
        "name",
        rows(
            [*IMAGE, *EITHER],
            {
                *("conv-groups", "depthwise-strides", "max-pool-same", "global-keepdims"),
                *("cropping", "up-bilinear", "permute", "instance-norm", "relu", "elu"),
                *("rescaling", "identity", "softmax", "batch-norm-plain", "batch-norm-frozen"),
            },
        ),
    )
    def test_images(self, name):
        check((IMAGE | EITHER)[name], st.tuples(sizes, sizes, channels))

    @pytest.mark.parametrize("name", SEQUENCE)
    def test_sequences(self, name):
        check(SEQUENCE[name], st.tuples(sizes, channels))

    @pytest.mark.parametrize("name", [*VECTOR, *EITHER])
    def test_vectors(self, name):
        check((VECTOR | EITHER)[name], st.tuples(channels))

    @pytest.mark.parametrize(
        ("make", "shape"),
        [
            (lambda: layers.Conv2D(2, 2, dilation_rate=2, padding="same"), (6, 6, 4)),
            (lambda: layers.Conv1D(3, 2, dilation_rate=2, padding="causal"), (6, 4)),
        ],
    )
    def test_dilation(self, make, shape):
        # TensorFlow has no gradient of a dilated convolution in double precision on a CPU.
        packed, loop = both_ways(sequential(make, shape), shape, 2, 6, "float32", seed=0)
        for ours, theirs in zip(packed, loop, strict=True):
            assert error(ours, theirs) <= 1e-5

    @pytest.mark.parametrize("target", [(12,), (3, 4), (2, 3, 2), (4, 1, 3)])
    @pytest.mark.parametrize("shape", [(12,), (6, 2), (2, 2, 3)])
    def test_reshape(self, shape, target):
        compare(sequential(lambda: layers.Reshape(target), shape), shape, 2, 3)

    @pytest.mark.parametrize(
        "merge",
        [
            layers.Add,
            layers.Subtract,
            layers.Multiply,
            layers.Average,
            layers.Maximum,
            layers.Minimum,
            layers.Concatenate,
        ],
    )
    @pytest.mark.parametrize("shape", [(5, 4, 2), (5, 2), (4,)])
    def test_merging(self, merge, shape):
        def make():
            inputs = keras.Input(shape)
            return keras.Model(inputs, merge()([inputs, layers.Dense(shape[-1])(inputs)]))

        compare(in_precision(make), shape, 2, 3)

    @pytest.mark.parametrize("axis", [1, 2, -2, 3, -1])
    def test_concatenating_along_any_axis(self, axis):
        def make():
            inputs = keras.Input((4, 3, 2))
            return keras.Model(inputs, layers.Concatenate(axis=axis)([inputs, inputs]))

        compare(in_precision(make), (4, 3, 2), 2, 3)

    def test_embedding(self):
        def make():
            inputs = keras.Input((5,), dtype="int32")
            return keras.Model(inputs, layers.Conv1D(2, 2)(layers.Embedding(7, 3)(inputs)))

        compare(in_precision(make), (5,), 2, 3, integers=7)


class TestWholeNetworks:
    @pytest.mark.parametrize("downsample", ["stride", "pool"])
    def test_conv4(self, downsample):
        def make():
            return tfmeta.models.conv4((16, 16, 1), 3, filters=8, downsample=downsample)

        compare(in_precision(make), (16, 16, 1), 3, 12)

    def test_mlp(self):
        compare(in_precision(lambda: tfmeta.models.mlp((3, 2), 2, (8, 8))), (3, 2), 3, 4)

    def test_residual_with_squeeze_and_excitation(self):
        def make():
            inputs = keras.Input((6, 6, 4))
            x = layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
            x = layers.BatchNormalization()(x)
            gate = layers.Dense(4, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
            x = layers.Multiply()([x, layers.Reshape((1, 1, 4))(gate)])
            x = layers.ReLU()(layers.Add()([inputs, x]))
            return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))

        compare(in_precision(make), (6, 6, 4), 2, 6)

    def test_models_within_models(self):
        def make():
            body = keras.Sequential([layers.Conv2D(3, 3), layers.ReLU(), layers.Flatten()])
            head = tfmeta.models.mlp((27,), 2, (4,))
            return keras.Sequential([keras.Input((5, 5, 2)), body, head])

        compare(in_precision(make), (5, 5, 2), 2, 3)

    def test_a_layer_used_twice(self):
        def make():
            inputs = keras.Input((4,))
            twice = layers.Dense(4, activation="tanh")
            return keras.Model(inputs, twice(twice(inputs)))

        compare(in_precision(make), (4,), 3, 2)

    def test_several_inputs_and_outputs(self):
        inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((3, 3, 2), name="b")}
        b = layers.Flatten()(layers.Conv2D(2, 2)(inputs["b"]))
        both = layers.Concatenate()([inputs["a"], b])
        model = keras.Model(inputs, [layers.Dense(2)(both), layers.Dense(3)(b)])
        rng = np.random.default_rng(0)
        params = [tf.convert_to_tensor(v) for v in model.trainable_variables]
        x = {"a": rng.normal(size=(2, 5, 4)), "b": rng.normal(size=(2, 5, 3, 3, 2))}
        x = {k: tf.constant(v, "float32") for k, v in x.items()}
        how = {"training": True, "statistics": "batch"}
        packed = packed_call(model, spread_weights(model, params, [], 2)[0], [], x, **how)
        for t in range(2):
            alone = functional_call(model, params, [], {k: v[t] for k, v in x.items()}, **how)
            for ours, theirs in zip(packed.outputs, alone.outputs, strict=True):
                assert error(ours[t], theirs) < 1e-6


def test_dropout_draws_a_mask_of_its_own_for_each_task_and_goes_on():
    model = sequential(lambda: layers.Dropout(0.5, seed=3), (4, 4, 8))("float32")
    seeds = [tf.convert_to_tensor(v) for v in model.non_trainable_variables]
    x = tf.ones((3, 5, 4, 4, 8))
    how = {"training": True, "statistics": "batch"}
    called = packed_call(model, [], seeds, x, **how)
    a, b, c = called.outputs.numpy()
    assert set(np.unique(a)) == {0.0, 2.0}
    assert 0.4 < (a != b).mean() < 0.6
    assert 0.4 < (b != c).mean() < 0.6
    again = packed_call(model, [], called.state, x, **how)
    assert 0.4 < (again.outputs.numpy()[0] != a).mean() < 0.6
    np.testing.assert_array_equal(packed_call(model, [], seeds, x, **how).outputs[0], a)
    off = packed_call(model, [], seeds, x, training=False, statistics="batch")
    np.testing.assert_array_equal(off.outputs, x)


def test_spatial_dropout_drops_whole_maps():
    model = sequential(lambda: layers.SpatialDropout2D(0.5, seed=3), (4, 4, 8))("float32")
    seeds = [tf.convert_to_tensor(v) for v in model.non_trainable_variables]
    x = tf.ones((3, 5, 4, 4, 8))
    y = packed_call(model, [], seeds, x, training=True, statistics="batch").outputs.numpy()
    assert (y == y[:, :, :1, :1]).all()
    assert 0.3 < (y[:, :, 0, 0] == 0).mean() < 0.7


class Own(layers.Layer):
    def call(self, x):
        return x


class Callable:
    def __call__(self, x):
        return x


class Doubled(layers.Dense):
    def call(self, x):
        return 2 * super().call(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Own(name="mine"), "layer 'mine' (Own) has no rule"),
        (lambda: Doubled(3, name="twice"), "layer 'twice' (Doubled) has no rule"),
        (lambda: layers.Conv3D(2, 1, name="c"), "layer 'c' (Conv3D) has no rule"),
        (
            lambda: layers.Dense(2, kernel_regularizer="l2", name="d"),
            "layer 'd' (Dense) with kernel_regularizer='L2' has no rule",
        ),
        (
            lambda: layers.Dense(2, activity_regularizer="l2", name="d"),
            "layer 'd' (Dense) with activity_regularizer='L2' has no rule",
        ),
        (
            lambda: layers.Dense(2, activation=lambda x: x / tf.reduce_sum(x), name="d"),
            "layer 'd' (Dense) with activation=",
        ),
        (
            lambda: layers.Dense(2, activation=Callable(), name="d"),
            "layer 'd' (Dense) with arguments that Keras cannot save has no rule",
        ),
        (
            lambda: layers.Dense(2, kernel_constraint="unit_norm", name="d"),
            "layer 'd' (Dense) with kernel_constraint='UnitNorm' has no rule",
        ),
        (
            lambda: layers.BatchNormalization(axis=1, name="b"),
            "layer 'b' (BatchNormalization) with axis=1",
        ),
        (
            lambda: layers.LayerNormalization(axis=(1, 2), name="l"),
            "layer 'l' (LayerNormalization) with axis=",
        ),
        (lambda: layers.Softmax(axis=1, name="s"), "layer 's' (Softmax) with axis=1"),
        (
            lambda: layers.Dropout(0.5, noise_shape=(None, 1, 1, 4), name="n"),
            "layer 'n' (Dropout) with noise_shape=",
        ),
    ],
)
def test_what_has_no_rule_is_named(make, words):
    shape = (4, 4, 4, 2) if isinstance(make(), layers.Conv3D) else (4, 4, 4)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, make()(inputs))
    reason = tried(model, inputs).obstacle
    assert reason is not None
    assert words in reason


def test_weights_and_whole_numbers_are_left_to_keras():
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, layers.Dense(2, name="d")(inputs))
    assert tried(model, inputs).obstacle == (
        "layer 'd' (Dense) with inputs of dtype int32 has no rule"
    )


@pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning")
def test_a_nested_model_that_is_called_with_a_mask_is_named():
    inner = keras.Sequential([keras.Input((4, 2)), layers.Dense(2)], name="inner")
    inputs, mask = keras.Input((4, 2)), keras.Input((4,), dtype="bool")
    model = keras.Model([inputs, mask], inner(inputs, mask=mask))
    assert tried(model, model.inputs).obstacle == (
        "layer 'inner' (Sequential) with arguments in its call has no rule"
    )


@pytest.mark.parametrize("inner", [(4, 1), (4,)])
def test_a_nested_model_gets_what_its_input_declares(inner):
    def make():
        body = keras.Sequential(
            [keras.Input(inner, dtype="float32"), layers.Flatten(), layers.Dense(3)]
        )
        inputs = keras.Input((4,))
        return keras.Model(inputs, body(inputs))

    packed, alone = both_ways(in_precision(make), (4,), 2, 3, "float64", 0)
    for ours, theirs in zip(packed, alone, strict=True):
        assert error(ours, theirs, 0.1 * greatest(alone)) <= 1e-12


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Dense(3, activation="softmax"),
        lambda: layers.Dense(1, activation="sigmoid"),
        lambda: layers.Softmax(),
        lambda: layers.Activation("softmax"),
        lambda: layers.Conv2D(3, 1, activation="softmax"),
    ],
)
def test_probabilities_know_their_logits(make):
    layer = make()
    shape = (2, 2, 4) if isinstance(layer, layers.Conv2D) else (4,)
    model = keras.Sequential([keras.Input(shape), layer, layers.Identity()])
    params = [tf.convert_to_tensor(v) for v in model.trainable_variables]
    x = tf.random.stateless_normal((2, 3, *shape), (1, 2))
    how = {"training": True, "statistics": "batch"}
    packed = packed_call(model, spread_weights(model, params, [], 2)[0], [], x, **how).outputs
    for t in range(2):
        alone = functional_call(model, params, [], x[t], **how).outputs
        assert error(packed._keras_logits[t], alone._keras_logits) < 1e-6


def test_a_call_of_ones_own_is_named():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__(name="mine")
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Mine()
    model(np.zeros((1, 3)))
    assert tried(model, keras.Input((3,))).obstacle == ("model 'mine' (Mine) has a call of its own")


def episodes(tasks, shape=(6, 6, 1), ways=3, shots=2, queries=2):
    rng = np.random.default_rng(0)
    classes = np.tile(np.arange(ways), (tasks, 1))
    x = {
        "support_x": rng.normal(size=(tasks, ways * shots, *shape)).astype("float32"),
        "support_y": np.tile(classes, (1, shots)),
        "query_x": rng.normal(size=(tasks, ways * queries, *shape)).astype("float32"),
    }
    return x, np.tile(classes, (1, queries))


def network(outputs=3, pool=False, activation=None):
    """Return a network that compiles fast."""
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, 1 if pool else 2, padding="same")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x) if pool else x)
    return keras.Model(inputs, layers.Dense(outputs, activation)(x))


def wide():
    """Return a network with a convolution that has a kernel of our own."""
    x = inputs = keras.Input((6, 6, 1))
    for _ in range(2):
        x = layers.Conv2D(16, 3, 2, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def slow(*values):
    """Return a case that says little that another does not."""
    return pytest.param(*values, marks=pytest.mark.slow)


LEARNERS = {
    "MAML-wide": lambda **kw: tfmeta.MAML(wide(), 0.1, 2, **kw),
    "MAML": lambda **kw: tfmeta.MAML(network(), 0.1, 2, **kw),
    "MAML-pooled": lambda **kw: tfmeta.MAML(network(pool=True), 0.1, 2, **kw),
    "MAML-probabilities": lambda **kw: tfmeta.MAML(network(activation="softmax"), 0.1, 2, **kw),
    "MAML-clipped": lambda **kw: tfmeta.MAML(network(), 0.1, 2, inner_clip_norm=0.5, **kw),
    "MAML-support": lambda **kw: tfmeta.MAML(network(), 0.1, 2, batch_norm="support", **kw),
    "MAML-joint": lambda **kw: tfmeta.MAML(network(), 0.1, 2, joint_weight=0.5, **kw),
    "MAML-momentum": lambda **kw: tfmeta.MAML(
        network(), 0.1, 2, inner_optimizer=tfmeta.inner_optimizers.SGD(0.1, 0.9), **kw
    ),
    "MAML-rates": lambda **kw: tfmeta.MAML(network(), 0.1, 2, learned_rates="tensor_step", **kw),
    "FOMAML": lambda **kw: tfmeta.FOMAML(network(), 0.1, 2, **kw),
    "MetaSGD": lambda **kw: tfmeta.MetaSGD(network(), 0.1, 2, **kw),
    "ANIL": lambda **kw: tfmeta.ANIL(network(), 0.1, 2, **kw),
    "BOIL": lambda **kw: tfmeta.BOIL(network(), 0.1, 2, **kw),
    # One phase of training, for each is traced by itself.
    "MAML++": lambda **kw: tfmeta.MAMLPlusPlus(
        network(), 0.1, 2, **{"multi_step_loss": "discounted", **kw}
    ),
    "MAML++-tolerance": lambda **kw: tfmeta.MAMLPlusPlus(
        network(), 0.1, 3, multi_step_loss="discounted", tolerance=0.3, **kw
    ),
    "ProtoMAML": lambda **kw: tfmeta.ProtoMAML(network(5), 0.1, 2, **kw),
}


def outer_step(
    name, axis, tasks=5, chunk=2, loss=None, sample_weight=None, jit_compile=False, **kw
):
    keras.utils.set_random_seed(2)
    learner = LEARNERS[name](task_axis=axis, task_chunk=chunk, **kw)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.SGD(1.0), loss, metrics=["accuracy"], jit_compile=jit_compile)
    x, y = episodes(tasks)
    learner.check_inputs(x)
    before = [v.numpy() for v in learner.trainable_variables]
    data = (x, y) if sample_weight is None else (x, y, sample_weight)
    history = learner.fit(tf.data.Dataset.from_tensors(data), verbose=0).history
    after = [v.numpy() for v in learner.trainable_variables]
    return [a - b for a, b in zip(before, after, strict=True)], history, learner


@functools.cache
def step_to_compare(name, axis, tasks=5):
    """Return change of weights and history of a step that several tests compare with."""
    return outer_step(name, axis, tasks)[:2]


# Kin of one that is compared each time, and packed by the same lines.
SLOW = {
    *("MAML-clipped", "MAML-joint", "MAML-momentum", "MAML-pooled", "MAML-rates"),
    *("FOMAML", "ANIL", "BOIL", "MetaSGD", "MAML++-tolerance", "MAML-wide", "MAML-support"),
}


@pytest.mark.parametrize(
    "name",
    rows([name for name in LEARNERS if name != "MAML-probabilities"], SLOW),
)
def test_each_learner_takes_the_same_outer_step_packed(name):
    # Five tasks in chunks of two: the last chunk is filled up with a task that does not count.
    loop, loop_history = step_to_compare(name, "loop")
    packed, packed_history, learner = outer_step(name, "packed")
    assert_all_close(packed, loop)
    for key, values in loop_history.items():
        np.testing.assert_allclose(packed_history[key], values, rtol=1e-5)
    x, _ = episodes(3)
    side_by_side = learner.predict_on_batch(x)
    learner.packs = False
    alone = tf.function(learner, autograph=False)(x)
    np.testing.assert_allclose(side_by_side, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("MAML-probabilities", "sparse_categorical_crossentropy"),
        ("MAML", keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")),
        ("MAML", lambda y, p: tf.reduce_mean((p - tf.reshape(y, [-1, 1])) ** 2) + tf.reduce_max(p)),
    ],
    ids=["by-name", "sum", "of-one's-own"],
)
def test_any_loss(name, loss):
    loop, a, _ = outer_step(name, "loop", loss=loss)
    packed, b, _ = outer_step(name, "packed", loss=loss)
    assert_all_close(packed, loop)
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_sample_weights():
    weights = np.random.default_rng(1).uniform(size=(5, 6)).astype("float32")
    loop, _, _ = outer_step("MAML", "loop", sample_weight=weights)
    packed, _, _ = outer_step("MAML", "packed", sample_weight=weights)
    assert_all_close(packed, loop)


@pytest.mark.parametrize("name", [slow("MAML"), "MAML-pooled", slow("MAML++")])
def test_xla(name):
    plain, _ = step_to_compare(name, "packed")
    compiled, _, _ = outer_step(name, "packed", jit_compile=True)
    assert_all_close(plain, compiled, 1e-4)


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("MAML-pooled", "loop"),
        ("MAML++", "packed"),
        slow("ProtoMAML", "packed"),
        slow("ANIL", "loop"),
        slow("MAML-momentum", "packed"),
        slow("MAML-rates", "packed"),
        slow("MAML-pooled", "packed"),
        slow("ANIL", "packed"),
        slow("MAML-momentum", "loop"),
        slow("MAML-rates", "loop"),
        slow("MAML++", "loop"),
        slow("ProtoMAML", "loop"),
    ],
)
def test_recomputing_changes_nothing(name, axis):
    kept, _ = step_to_compare(name, axis)
    again, _, learner = outer_step(name, axis, recompute=True)
    assert learner.recompute
    assert_all_close(again, kept)


@pytest.mark.parametrize("axis", ["packed", slow("loop")])
def test_recomputing_stops_where_the_support_loss_no_longer_falls(axis):
    options = {"tolerance": 0.4, "multi_step_loss": None}
    kept, before, _ = outer_step("MAML++", axis, **options)
    again, history, _ = outer_step("MAML++", axis, recompute=True, **options)
    assert_all_close(again, kept)
    assert 1 < history["inner_steps"][0] < 2
    assert history["inner_steps"] == before["inner_steps"]


@pytest.mark.slow
def test_recomputing_under_xla():
    kept, _ = step_to_compare("MAML-pooled", "packed")
    again, _, _ = outer_step("MAML-pooled", "packed", jit_compile=True, recompute=True)
    assert_all_close(again, kept, 1e-4)


@pytest.mark.parametrize(("tasks", "chunk"), [(1, 8), slow(4, 4), (7, 3), slow(3, 1)])
def test_any_number_of_tasks_and_chunk(tasks, chunk):
    loop, _ = step_to_compare("MAML", "loop", tasks)
    packed, _, _ = outer_step("MAML", "packed", tasks=tasks, chunk=chunk)
    assert_all_close(packed, loop)


@pytest.mark.parametrize(("tasks", "in_flight"), [(1, 8), slow(5, 4), (7, 3), slow(6, 8)])
def test_several_chunks_at_once(tasks, in_flight, monkeypatch):
    loop, _ = step_to_compare("MAML", "loop", tasks)
    monkeypatch.setattr(meta_learner, "chunks_at_once", lambda: 2)
    packed, _, _ = outer_step("MAML", "packed", tasks=tasks, chunk=in_flight)
    assert_all_close(packed, loop)


def test_random_numbers_do_not_depend_on_what_runs_at_once(monkeypatch):
    monkeypatch.setattr(meta_learner, "chunks_at_once", lambda: 2)
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5), layers.Dense(3)])
    learner = tfmeta.MAML(model, 0.1, task_chunk=2, task_axis="packed")
    learner.build({name: x.shape for name, x in episodes(8, shape=(4,))[0].items()})
    assert learner.chunks_at_once() == 1


def test_what_chunks_write_is_not_lost(monkeypatch):
    monkeypatch.setattr(meta_learner, "chunks_at_once", lambda: 2)
    x = inputs = keras.Input((4,))
    model = keras.Model(inputs, {name: layers.Dense(3, name=name)(x) for name in "ab"})
    learner = tfmeta.MAML(model, 0.1, task_chunk=2, task_axis="packed")
    learner.compile("sgd", {"a": "mse", "b": "mse"})
    y = np.random.default_rng(0).normal(size=(16, 2, 3)).astype("float32")
    x = np.ones((16, 2, 4), "float32")
    # Keras adds the losses of several outputs up in metrics of its own.
    logs = learner.train_on_batch(
        {"support_x": x, "support_y": {"a": y, "b": -y}, "query_x": x},
        {"a": y, "b": y},
        return_dict=True,
    )
    assert logs["a_loss"] + logs["b_loss"] == pytest.approx(logs["loss"], rel=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_predictions_can_be_differentiated(compiled, monkeypatch):
    monkeypatch.setattr(meta_learner, "chunks_at_once", lambda: 2)
    x, y = episodes(5)

    def gradients(axis):
        keras.utils.set_random_seed(0)
        learner = tfmeta.MAML(network(), 0.1, 1, task_axis=axis, task_chunk=2)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        learner.compile("sgd", loss)
        learner.train_on_batch(x, y)

        def step():
            with tf.GradientTape() as tape:
                value = loss(y, learner(x, training=True))
            weights = [v.value for v in learner.trainable_variables]
            return tape.gradient(value, weights)

        return (tf.function(step, autograph=False) if compiled else step)()

    assert_all_close(gradients("packed"), gradients("loop"))


@pytest.mark.parametrize(
    ("cores", "filters", "expected"), [(1, 64, 8), (2, 64, 2), (2, 8, 8), (12, 64, 12)]
)
def test_no_more_tasks_are_in_flight_than_keep_each_core_busy(
    cores, filters, expected, monkeypatch
):
    monkeypatch.setattr(meta_learner, "chunks_at_once", lambda: cores)
    learner = tfmeta.MAML(tfmeta.models.conv4((28, 28, 1), 5, filters, "stride"))
    images = np.zeros((4, 5, 28, 28, 1), "float32")
    inputs = {"support_x": images, "support_y": np.zeros((4, 5), "int32"), "query_x": images}
    learner.build({name: x.shape for name, x in inputs.items()})
    assert learner.packs
    assert learner.tasks_in_flight(inputs) == expected


def test_a_gpu_has_as_many_tasks_in_flight_as_its_memory_holds(monkeypatch):
    monkeypatch.setattr(gradient_based, "gpus", lambda: ["GPU"])
    learner = tfmeta.MAML(tfmeta.models.conv4((28, 28, 1), 5, 8, "stride"))
    images = np.zeros((4, 5, 28, 28, 1), "float32")
    inputs = {"support_x": images, "support_y": np.zeros((4, 5), "int32"), "query_x": images}
    learner.build({name: x.shape for name, x in inputs.items()})
    each = 4 * learner.activations * (2 * 5 + 5)
    for held in (1, 40):
        monkeypatch.setattr(gradient_based, "room", lambda held=held: held * each)
        assert learner.tasks_in_flight(inputs) == held


def test_the_room_of_a_gpu_is_half_of_what_tensorflow_may_take(monkeypatch):
    class Device(NamedTuple):
        device_type: str
        memory_limit: int

    found = [Device("CPU", 1), Device("GPU", 80), Device("GPU", 60)]
    monkeypatch.setattr(of_tensorflow.device_lib, "list_local_devices", lambda: found)
    monkeypatch.setattr(devices, "gpus", lambda: ["GPU"] * 2)
    assert devices.room.__wrapped__() == 30


def test_a_number_of_tasks_that_is_not_known_beforehand():
    def train(axis):
        keras.utils.set_random_seed(2)
        learner = tfmeta.MAML(network(), 0.1, 2, task_axis=axis, task_chunk=2)
        learner.compile(
            keras.optimizers.SGD(1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        data = tf.data.Dataset.from_tensor_slices(episodes(5)).batch(3)
        assert data.element_spec[1].shape[0] is None
        learner.fit(data, verbose=0)
        return learner.get_weights()

    for p, q in zip(train("packed"), train("loop"), strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-5)


def test_a_task_without_a_finite_support_loss_is_named():
    learner = LEARNERS["MAML"](task_axis="packed", task_chunk=2)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = episodes(5)
    x["support_x"][3] = np.nan
    with pytest.raises(ValueError, match=r"must be finite.*inner step 0 of task 3"):
        learner.fit(tf.data.Dataset.from_tensors((x, y)), verbose=0)


class TestChoosing:
    def built(self, model, **kw):
        learner = tfmeta.MAML(model, 0.1, **kw)
        learner.build({"support_x": (2, 3, *model.input_shape[1:])})
        return learner

    def test_auto_packs_what_has_rules(self, caplog):
        with caplog.at_level(logging.WARNING, "tfmeta"):
            assert self.built(network()).packs
        assert not caplog.records

    def test_a_layer_without_a_rule_is_said_once_and_computed_in_turn(self, caplog):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layers.Dense(3)(Own(name="mine")(inputs)))
        learner = tfmeta.MAML(model, 0.1)
        learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x, y = episodes(4, shape=(4,))
        with caplog.at_level(logging.WARNING, "tfmeta"):
            learner.fit(tf.data.Dataset.from_tensors((x, y)), epochs=2, verbose=0)
        assert [r.message for r in caplog.records] == [
            "The tasks of a meta-batch are computed one after another: layer 'mine' (Own) has no "
            "rule. task_axis='loop' asks for that without this message."
        ]

    def test_loop_is_silent(self, caplog):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layers.Dense(3)(Own(name="mine")(inputs)))
        with caplog.at_level(logging.WARNING, "tfmeta"):
            assert not self.built(model, task_axis="loop").packs
        assert not caplog.records

    def test_packed_that_cannot_be_is_an_error(self):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layers.Dense(3)(Own(name="mine")(inputs)))
        with pytest.raises(
            ValueError, match=r"`task_axis` must be .*layer 'mine' \(Own\) has no rule"
        ):
            self.built(model, task_axis="packed")

    @pytest.mark.parametrize("batch_norm", ["running", "with_support"])
    def test_batch_norm_that_needs_one_task_after_another(self, batch_norm):
        with pytest.raises(ValueError, match=f"layer '.*' with batch_norm='{batch_norm}'"):
            self.built(network(), task_axis="packed", batch_norm=batch_norm)

    def test_an_unknown_axis(self):
        with pytest.raises(
            ValueError, match=r"`task_axis` must be one of 'auto', 'loop', 'packed'"
        ):
            tfmeta.MAML(network(), 0.1, task_axis="vectorized")

    @pytest.mark.parametrize("cls", [tfmeta.Reptile, tfmeta.ImplicitMAML])
    def test_learners_of_one_task_at_a_time(self, cls, caplog):
        with caplog.at_level(logging.WARNING, "tfmeta"):
            learner = cls(network(), 0.1)
            learner.build({"support_x": (2, 3, 6, 6, 1)})
        assert not learner.packs
        assert not caplog.records
        with pytest.raises(ValueError, match=f"{cls.__name__} computes one task at a time"):
            cls(network(), 0.1, task_axis="packed").build({"support_x": (2, 3, 6, 6, 1)})


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("layer", [layers.Conv1D, layers.Conv2D])
def test_dilated_convolutions_in_double_precision(layer, chunk, float64):
    """TensorFlow's own kernels have no gradient of them on a CPU, with groups or without."""
    shape = (8, 2) if layer is layers.Conv1D else (6, 6, 2)
    model = keras.Sequential(
        [keras.Input(shape), layers.Dense(2), layer(3, 2, dilation_rate=2), layers.Flatten()]
    )
    model.add(layers.Dense(1))
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(2, 2, 3, *shape))
    y = rng.normal(size=(2, 3, 1))
    task = {"support_x": x, "support_y": y, "query_x": q}
    start = [v.numpy() for v in model.trainable_variables]
    ends = []
    for axis in ("packed", "loop"):
        for variable, value in zip(model.trainable_variables, start, strict=True):
            variable.assign(value)
        learner = tfmeta.MAML(model, 0.1, task_axis=axis, task_chunk=chunk)
        learner.compile("sgd", "mse", run_eagerly=True)
        learner.train_on_batch(task, y)
        ends.append(learner.get_weights())
    for packed, in_turn in zip(*ends, strict=True):
        np.testing.assert_allclose(packed, in_turn, rtol=1e-10, atol=1e-12)
