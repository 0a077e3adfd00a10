"""LiteRT and ONNX files give what the learner gives, on real tasks and with built-in operations."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfmeta
from tests.rows import rows
from tfmeta.export.builtin_gradients import builtin_gradients
from tfmeta.export.sums import sums_by_axis

WAYS, SHOTS, QUERIES = 5, 2, 3
LITERT = "needs LiteRT: pip install 'tfmeta[lite]'"


def network(outputs=WAYS, downsample="stride"):
    return tfmeta.models.conv4((28, 28, 1), outputs, filters=8, downsample=downsample)


def two_blocks(outputs=WAYS):
    """What `network` has twice as much of, which is converted in half the time."""
    blocks = [
        layer
        for _ in range(2)
        for layer in (
            keras.layers.Conv2D(8, 3, 2, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        )
    ]
    head = [keras.layers.AveragePooling2D(2), keras.layers.Flatten()]
    head += [] if outputs is None else [keras.layers.Dense(outputs)]
    return keras.Sequential([keras.Input((28, 28, 1)), *blocks, *head])


LEARNERS = {
    "MAML": lambda: tfmeta.MAML(network(), 0.1, 2),
    "MAML-pool": lambda: tfmeta.MAML(
        network(downsample="pool"), 0.1, batch_norm="running", task_axis="loop"
    ),
    "MAML-support": lambda: tfmeta.MAML(two_blocks(), 0.1, batch_norm="support"),
    "MAML-with-support": lambda: tfmeta.MAML(
        two_blocks(), 0.1, batch_norm="with_support", task_axis="loop"
    ),
    "MetaSGD": lambda: tfmeta.MetaSGD(two_blocks(), 0.1),
    "MAMLPlusPlus": lambda: tfmeta.MAMLPlusPlus(two_blocks(), 0.1, 2, tolerance=0.0),
    "Reptile": lambda: tfmeta.Reptile(two_blocks(), 0.1, inner_steps=3),
    "ImplicitMAML": lambda: tfmeta.ImplicitMAML(two_blocks(), 0.1, 2),
    "BOIL": lambda: tfmeta.BOIL(two_blocks(), 0.1),
    "FOMAML": lambda: tfmeta.FOMAML(two_blocks(), 0.1),
    "ANIL": lambda: tfmeta.ANIL(network(), 0.1, 2),
    "FineTune": lambda: tfmeta.FineTune(two_blocks(), 3, adapt_layers="dense"),
    "ProtoMAML": lambda: tfmeta.ProtoMAML(two_blocks(None), 0.001),
    "ProtoMAML-head": lambda: tfmeta.ProtoMAML(two_blocks(None), 0.01, 2, adapt_layers=()),
    "PrototypicalNetwork": lambda: tfmeta.PrototypicalNetwork(network(None)),
    "PrototypicalNetwork-cosine": lambda: tfmeta.PrototypicalNetwork(
        two_blocks(None), "cosine", 10.0
    ),
}
# Kin of one that is tested each time; each takes fifteen seconds.
SLOW = {
    "MAML-with-support",
    "MAMLPlusPlus",
    "MAML-pool",
    "MAML-support",
    "MetaSGD",
    "Reptile",
    "ImplicitMAML",
    "BOIL",
    "FOMAML",
    "FineTune",
    "ProtoMAML",
    "PrototypicalNetwork-cosine",
}
# What LiteRT lacks for these: particles are computed in groups, whose gradients are TensorFlow's
# own, and the other draws random numbers.
REFUSED = {
    "BayesianMAML": (
        lambda: tfmeta.BayesianMAML(two_blocks(), 0.1, particles=2),
        "Conv2DBackpropFilter",
    ),
    "AmortizedBayesianMAML": (
        lambda: tfmeta.AmortizedBayesianMAML(two_blocks(), 0.1, samples=2),
        "StatelessRandomNormal",
    ),
    "MetaOptNet": (lambda: tfmeta.MetaOptNet(two_blocks(None)), "converter"),
}
# What passes from `adapt` to `predict` where it is less than all weights.
PASSED = {
    "ANIL": {"dense_kernel", "dense_bias"},
    "FineTune": {"dense_kernel", "dense_bias"},
    "ProtoMAML-head": {"prototypes_kernel", "prototypes_bias"},
    "PrototypicalNetwork": {"prototypes"},
    "PrototypicalNetwork-cosine": {"prototypes"},
}


def made(name):
    keras.backend.clear_session()  # for the names of layers
    keras.utils.set_random_seed(0)
    return compiled(LEARNERS[name]())


def compiled(learner):
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return learner


@pytest.fixture(scope="module")
def omniglot(data_dir):
    _, _, test = tfmeta.data.load("omniglot", data_dir=data_dir / "tfds")
    return tfmeta.data.EpisodeSampler(test, WAYS, SHOTS, QUERIES, seed=0)


@pytest.fixture(scope="module")
def interpreter():
    return pytest.importorskip("ai_edge_litert.interpreter", reason=LITERT).Interpreter


def task(sampler, number=0):
    inputs, targets = sampler.batch(number)
    x, y, query = (inputs[k][0] for k in ("support_x", "support_y", "query_x"))
    return x, y.astype(np.int64), query, targets[0]


def operations(path):
    """Return the codes of a file's operations, and the names of those that are not built in."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason=LITERT)
    model = schema.Model.GetRootAs(path.read_bytes())
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    return {c.BuiltinCode() for c in codes}, [c.CustomCode() for c in codes if c.CustomCode()]


def assert_agree(first, second):
    """1e-5 of the largest logit, at which adaptation in single precision itself stands."""
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5 * max(1, np.abs(second).max()))


@pytest.mark.parametrize("name", rows(REFUSED, ["AmortizedBayesianMAML", "BayesianMAML"]))
def test_learners_that_cannot_adapt_on_a_device(name, omniglot, interpreter, tmp_path):
    make, missing = REFUSED[name]
    keras.utils.set_random_seed(0)
    learner = compiled(make())
    x, y, query, _ = task(omniglot)
    adapted = learner.adapt(x, y)
    with pytest.raises(ValueError, match=f"`model` must be made of.*{missing}"):
        tfmeta.export.lite(learner, tmp_path / "learner.tflite", ways=WAYS, shots=SHOTS)
    assert not list(tmp_path.iterdir())
    if name in ("BayesianMAML", "MetaOptNet"):  # what has adapted is an ordinary model
        tfmeta.export.lite(adapted, tmp_path / "adapted.tflite")
        alone = interpreter(str(tmp_path / "adapted.tflite")).get_signature_runner()
        (predictions,) = alone(**dict.fromkeys(alone.get_input_details(), query)).values()
        assert_agree(predictions, adapted(query).numpy())


@pytest.mark.parametrize("name", rows(LEARNERS, SLOW))
def test_files_agree_with_the_learner(name, omniglot, interpreter, tmp_path):
    learner = made(name)
    called = learner(omniglot.batch(0)[0])[0].numpy()
    x, y, query, _ = task(omniglot)
    adapted = learner.adapt(x, y)
    expected = adapted(query).numpy()
    assert_agree(called, expected)

    tfmeta.export.lite(learner, tmp_path / "learner.tflite", ways=WAYS, shots=SHOTS)
    assert operations(tmp_path / "learner.tflite")[1] == []
    on_device = interpreter(str(tmp_path / "learner.tflite"))
    learnt = on_device.get_signature_runner("adapt")(support_x=x, support_y=y)
    assert set(learnt) == PASSED.get(name, set(learnt))
    predict = on_device.get_signature_runner("predict")
    assert_agree(predict(query_x=query, **learnt)["predictions"], expected)
    # Another task, and any number of queries.
    x, y, query, _ = task(omniglot, 1)
    learnt = on_device.get_signature_runner("adapt")(support_x=x, support_y=y)
    few = query[:4]
    assert_agree(predict(query_x=few, **learnt)["predictions"], learner.adapt(x, y)(few).numpy())

    tfmeta.export.lite(adapted, tmp_path / "adapted.tflite")
    assert operations(tmp_path / "adapted.tflite")[1] == []
    for n in (QUERIES * WAYS, 4):
        query = task(omniglot)[2][:n]
        alone = interpreter(str(tmp_path / "adapted.tflite")).get_signature_runner()
        assert_agree(alone(query_x=query)["predictions"], adapted(query).numpy())


def test_a_prototypical_network_takes_tasks_of_any_size(omniglot, interpreter, tmp_path):
    learner = made("PrototypicalNetwork")
    x, y, query, _ = task(omniglot)
    learner.adapt(x, y)
    tfmeta.export.lite(learner, tmp_path / "any.tflite")
    on_device = interpreter(str(tmp_path / "any.tflite"))
    for classes in (WAYS, 3):
        some = slice(0, classes * SHOTS)
        learnt = on_device.get_signature_runner("adapt")(support_x=x[some], support_y=y[some])
        predictions = on_device.get_signature_runner("predict")(query_x=query, **learnt)
        assert_agree(predictions["predictions"], learner.adapt(x[some], y[some])(query).numpy())


@pytest.mark.parametrize(
    ("name", "tolerance"),
    # Squared norms, which a Prototypical Network's logits are made of, are coarse in 8 bits.
    rows([("MAML", 0.2), ("MAML-support", 0.05), ("PrototypicalNetwork", 0.3)], [("MAML", 0.2)]),
)
def test_8_bit_integers(name, tolerance, omniglot, interpreter, tmp_path):
    """Logits within a part of their range, and nearly always the same class."""
    x, y, query, _ = task(omniglot)
    adapted = made(name).adapt(x, y)
    path = tmp_path / "adapted.tflite"
    tfmeta.export.lite(adapted, path, representative=x)
    integers = interpreter(str(path)).get_signature_runner()(query_x=query)["predictions"]
    floats = adapted(query).numpy()
    assert np.abs(integers - floats).max() < tolerance * np.ptp(floats)
    assert np.mean(integers.argmax(1) == floats.argmax(1)) > 0.8
    assert 114 in operations(path)[0]  # QUANTIZE


@pytest.mark.parametrize(
    "name", rows(["MAML", "MAML-with-support", "PrototypicalNetwork"], ["MAML-with-support"])
)
def test_onnx(name, omniglot, tmp_path):
    pytest.importorskip("tf2onnx", reason="needs tf2onnx: pip install 'tfmeta[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    x, y, query, _ = task(omniglot)
    adapted = made(name).adapt(x, y)
    tfmeta.export.onnx(adapted, tmp_path / "adapted.onnx")
    session = runtime.InferenceSession(tmp_path / "adapted.onnx")
    for n in (QUERIES * WAYS, 4):
        (predictions,) = session.run(["predictions"], {"query_x": query[:n]})
        assert_agree(predictions, adapted(query[:n]).numpy())


# Gradients.


def gradients(layer, x, kernel=None):
    """Return the gradients of a layer as TensorFlow has them, and as this package composes them."""
    x = tf.constant(x)
    sources = [x] if kernel is None else [x, tf.constant(kernel)]
    weights = tf.cast(tf.random.stateless_uniform(layer(*sources).shape, (1, 2)), x.dtype)

    @tf.function(autograph=False)
    def both():
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(sources)
            y = layer(*sources)
        plain = tape.gradient(y, sources, weights)
        with builtin_gradients():
            return plain, tape.gradient(y, sources, weights)

    graph = both.get_concrete_function().graph.get_operations()
    return both(), [op.type for op in graph]


windows = st.tuples(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(3, 8),
    st.integers(3, 8),
    st.sampled_from(["SAME", "VALID"]),
)


@settings(max_examples=10, deadline=None)
@given(window=windows, seed=st.integers(0, 99))
def test_gradient_of_a_convolution(window, seed):
    rows, columns, down, right, height, width, padding = window
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=(2, height, width, 3)), rng.normal(size=(rows, columns, 3, 4))
    (plain, ours), kinds = gradients(
        lambda x, k: tf.nn.conv2d(x, k, (down, right), padding), x, kernel
    )
    assert kinds.count("Conv2DBackpropFilter") == 2  # asked for twice, used once
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(window=windows, seed=st.integers(0, 99))
def test_gradients_of_pooling(window, seed):
    rows, columns, down, right, height, width, padding = window
    # Of few numbers, so that many are equal.
    x = np.random.default_rng(seed).integers(0, 3, (2, height, width, 3)).astype(np.float64)
    for pool in (tf.nn.max_pool2d, tf.nn.avg_pool2d):
        (plain, ours), _ = gradients(
            lambda x, pool=pool: pool(x, (rows, columns), (down, right), padding), x
        )
        np.testing.assert_allclose(plain[0], ours[0], rtol=0, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(window=windows, seed=st.integers(0, 99))
def test_gradient_of_a_depthwise_convolution(window, seed):
    rows, columns, stride, _, height, width, padding = window
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=(2, height, width, 3)), rng.normal(size=(rows, columns, 3, 2))
    (plain, ours), _ = gradients(
        lambda x, k: tf.nn.depthwise_conv2d(x, k, (1, stride, stride, 1), padding), x, kernel
    )
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "function",
    [tf.nn.relu, tf.nn.relu6, tf.nn.leaky_relu, tf.nn.elu],
    ids=lambda f: f.__name__,
)
def test_gradients_of_activations(function):
    (plain, ours), kinds = gradients(function, np.linspace(-8, 8, 33).reshape(3, 11))
    np.testing.assert_allclose(plain[0], ours[0], rtol=1e-12)
    assert sum(kind.endswith("Grad") for kind in kinds) == 1  # TensorFlow's alone


def test_sums_by_axis_are_sums():
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    for axis, keepdims in ((None, False), (1, True), ([0, -1], False), (tf.constant([1]), False)):
        expected = tf.reduce_mean(x, axis, keepdims), tf.reduce_sum(x, axis, keepdims)
        with sums_by_axis():
            found = tf.reduce_mean(x, axis, keepdims), tf.reduce_sum(x, axis, keepdims)
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
            assert a.shape == b.shape


# Errors.


def dense(outputs=3, activation=None):
    layers = [keras.layers.Dense(4, activation), keras.layers.Dense(outputs)]
    return keras.Sequential([keras.Input((6,)), *layers])


def small(activation=None):
    learner = compiled(tfmeta.MAML(dense(activation=activation), 0.1))
    learner.build({"support_x": (1, 6, 6)})
    return learner


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({}, "`ways` and `shots` must both be given"),
        ({"ways": 3}, "`ways` and `shots` must both be given"),
        ({"ways": 4, "shots": 1}, "ways=4"),
        ({"ways": 0, "shots": 1}, "`ways` must be at least 1"),
        ({"ways": 3, "shots": -1}, "`shots` must be at least 1"),
        ({"ways": 3, "shots": 1, "representative": np.zeros((4, 6))}, "`representative` must be"),
    ],
)
def test_wrong_sizes_of_tasks(sizes, words, interpreter, tmp_path):
    with pytest.raises(ValueError, match=words):
        tfmeta.export.lite(small(), tmp_path / "learner.tflite", **sizes)
    assert not list(tmp_path.iterdir())


def test_sizes_that_are_no_integers(interpreter, tmp_path):
    with pytest.raises(TypeError, match="`shots` must be an integer"):
        tfmeta.export.lite(small(), tmp_path / "learner.tflite", ways=3, shots=1.5)


def test_a_gradient_that_is_not_built_in(interpreter, tmp_path):
    with pytest.raises(ValueError, match="Received: one that needs SoftsignGrad"):
        tfmeta.export.lite(small("softsign"), tmp_path / "learner.tflite", ways=3, shots=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("representative", "words"),
    [
        (np.zeros((4, 5), np.float32), r"\[n, 6\]. Received: float32 of shape=\(4, 5\)"),
        (np.zeros((0, 6), np.float32), r"\[n, 6\]"),
        (np.zeros((4, 6), np.uint8), "Received: uint8"),
    ],
)
def test_wrong_representatives(representative, words, interpreter, tmp_path):
    with pytest.raises(ValueError, match=words):
        tfmeta.export.lite(dense(), tmp_path / "m.tflite", representative=representative)


def test_a_loop_cannot_be_quantised(interpreter, tmp_path):
    recurrent = keras.Sequential([keras.Input((6, 1)), keras.layers.LSTM(2)])
    with pytest.raises(ValueError, match="with a loop in it"):
        tfmeta.export.lite(
            recurrent, tmp_path / "m.tflite", representative=np.zeros((4, 6, 1), np.float32)
        )


@pytest.mark.parametrize("write", [tfmeta.export.lite, tfmeta.export.onnx], ids=["lite", "onnx"])
def test_what_cannot_be_written(write, tmp_path):
    pytest.importorskip("ai_edge_litert.interpreter", reason=LITERT)
    pytest.importorskip("tf2onnx", reason="needs tf2onnx: pip install 'tfmeta[onnx]'")
    with pytest.raises(ValueError, match="must be built"):
        write(keras.Sequential([keras.layers.Dense(3)]), tmp_path / "m")
    with pytest.raises(TypeError, match="must be a"):
        write("model", tmp_path / "m")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in ("file", "folder"):
        with pytest.raises(FileExistsError, match="`path` must be free"):
            write(dense(), tmp_path / path)
    write(dense(), tmp_path / "own")
    (tmp_path / "link").symlink_to("own")
    (tmp_path / "nowhere").symlink_to("m")
    before = (tmp_path / "own").read_bytes()
    for path in ("file", "folder", "link", "nowhere"):
        with pytest.raises(FileExistsError, match=r"overwrite=True replaces .* and no link"):
            write(dense(), tmp_path / path, overwrite=True)
    with pytest.raises(OSError, match="`path` must lie in a folder"):
        write(dense(), tmp_path / "file" / "m")
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "own").read_bytes() == before
    assert (tmp_path / "link").is_symlink()
    for own in ("own", "empty"):
        (tmp_path / "empty").touch()
        write(dense(), tmp_path / own, overwrite=True)
        assert (tmp_path / own).stat().st_size > 100
    names = {"own", "file", "folder", "link", "nowhere", "empty"}
    assert {x.name for x in tmp_path.iterdir()} == names


def test_a_failed_write_leaves_nothing(interpreter, tmp_path, monkeypatch):
    def full(self, content):
        Path.touch(self)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="`path` must be writable"):
        tfmeta.export.lite(dense(), tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_arguments_that_an_adapted_model_has_not(interpreter, tmp_path):
    with pytest.raises(ValueError, match="`ways` and `shots` must be None"):
        tfmeta.export.lite(dense(), tmp_path / "m.tflite", ways=3, shots=1)
    with pytest.raises(TypeError, match="`adapted` must be an adapted model"):
        tfmeta.export.onnx(small(), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("module", "extra", "write"),
    [
        ("ai_edge_litert.interpreter", "lite", tfmeta.export.lite),
        ("tf2onnx", "onnx", tfmeta.export.onnx),
    ],
)
def test_without_the_extra(module, extra, write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'tfmeta\[{extra}\]'"):
        write(dense(), tmp_path / "m")
    assert not list(tmp_path.iterdir())
