"""SavedModels of adapted models and learners: the same numbers, where there is TensorFlow alone."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.cbook import get_sample_data
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

import tfmeta
from tests.environments import python_with
from tests.learners import plain
from tests.rows import rows
from tfmeta.data import ClassDataset, EpisodeSampler
from tfmeta.data.images import prepare
from tfmeta.export import Preprocessing, saved_model

WAYS, SHOTS, QUERIES = 5, 2, 3
NAMES = ["alpha", "beta", "gamma", "delta", "epsilon"]
ENDPOINTS = {"serving_default", "adapt_and_predict", "adapt", "predict"}


class NearestMean(tfmeta.MetaLearner):
    """A user's own learner, as in the docstring of `MetaLearner`."""

    def adapt_task(self, support_x: Any, support_y: Any, *, training: bool) -> Any:
        z = self.model(support_x, training=training)
        return tfmeta.ops.prototypes(z[None], support_y[None], ways=WAYS)

    def predict_task(self, state: Any, query_x: Any, *, training: bool) -> Any:
        z = self.model(query_x, training=training)
        return -tfmeta.ops.squared_euclidean(z[None], state)[0]


def network(outputs: int | None = WAYS) -> keras.Model:
    """Two blocks of what conv4 has four of, which is traced in half the time."""
    blocks = [
        layer
        for _ in range(2)
        for layer in (
            keras.layers.Conv2D(4, 3, 2, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        )
    ]
    head = [] if outputs is None else [keras.layers.Dense(outputs)]
    return keras.Sequential([keras.Input((28, 28, 1)), *blocks, keras.layers.Flatten(), *head])


def maml(batch_norm: str) -> Callable[[], tfmeta.MetaLearner]:
    return lambda: tfmeta.MAML(network(), 0.1, 1, batch_norm=batch_norm)  # type: ignore[arg-type]


LEARNERS: dict[str, Callable[[], tfmeta.MetaLearner]] = {
    **plain(network),
    "MAML-support": maml("support"),
    "MAML-with-support": maml("with_support"),
    "MAML-running": maml("running"),
    "NearestMean": lambda: NearestMean(network(None)),
}
# Kin of one that is exported each time; test_copies.py exports each learner's adapted model.
SLOW = {
    *("FOMAML", "MAMLPlusPlus", "MetaSGD", "MetaCurvature", "ImplicitMAML", "Reptile"),
    *("AmortizedBayesianMAML", "BayesianMAML", "FineTune", "PrototypicalNetwork-cosine"),
}
# Whose adapted models, all kinds of them, are exported by Keras as well.
KERAS = ("MAML", "MAML-support", "MAML-with-support", "ProtoMAML", "PrototypicalNetwork")

# What a program without tfmeta does with the folders of each learner.
CLIENT = """
import json, pathlib, sys
import numpy as np, tensorflow as tf
try:
    import tfmeta
    raise SystemExit("tfmeta is here")
except ModuleNotFoundError:
    pass
found = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    given = np.load(folder / "task.npz")
    x, y, q = (tf.constant(given[name]) for name in ("x", "y", "q"))
    learner = tf.saved_model.load(folder / "learner")
    adapted = tf.saved_model.load(folder / "adapted").signatures["serving_default"](query_x=q)
    called = learner.signatures
    both = called["serving_default"](support_x=x, support_y=y, query_x=q)
    task = called["adapt"](support_x=x, support_y=y)
    answers = [both, called["predict"](query_x=q, **task), adapted]
    predictions = [answer["predictions"].numpy() for answer in answers]
    shape = fewer = None
    if (folder / "keras").exists():
        own = tf.saved_model.load(folder / "keras").signatures["serving_default"]
        ((name, spec),) = own.structured_input_signature[1].items()
        predictions.append(next(iter(own(**{name: q}).values())).numpy())
        shape = list(spec.shape)
        # As a method with arrays, too, and for as many examples as one likes.
        fewer = learner.adapt_and_predict(given["x"][:-1], given["y"][:-1], given["q"][:4])
        fewer = list(fewer["predictions"].shape)
    expected = given["expected"]
    scale = max(1.0, abs(expected).max())
    found[folder.name] = {
        "differences": [float(abs(p - expected).max() / scale) for p in predictions],
        "labels": [[s.decode() for s in answer["labels"].numpy()] for answer in answers],
        "endpoints": sorted(called),
        "keras": shape,
        "fewer": fewer,
        "state": sorted(task),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def drawings(data_dir: Path) -> ClassDataset:
    """Characters of five alphabets of Omniglot, 105×105, dark on light."""
    return ClassDataset.from_tfds("omniglot", "small1", data_dir / "tfds", grayscale=True)


def tasks(drawings: ClassDataset) -> Iterator[dict[str, Any]]:
    """Real tasks of images of 105×105, uint8, without a task axis."""
    sampler = EpisodeSampler(drawings, ways=WAYS, shots=SHOTS, queries=QUERIES, seed=0)
    for step in itertools.count():
        task = {name: part[0] for name, part in sampler.batch(step)[0].items()}
        images = {k: np.rint(task[k] * 255).astype(np.uint8) for k in ("support_x", "query_x")}
        yield {**images, "support_y": task["support_y"].astype(np.int64)}


def reduced(task: dict[str, Any]) -> dict[str, Any]:
    """Return a task as the learners were made for: 28×28, ink is 1 on 0."""
    return {
        k: prepare(x, size=28, invert=True) * np.float32(1 / 255) if x.ndim == 4 else x
        for k, x in task.items()
    }


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_with(tmp_path_factory.mktemp("venv"), "tensorflow")


def made(name: str) -> tfmeta.MetaLearner:
    """Return a learner of the table whose weights and statistics are all their own."""
    keras.utils.set_random_seed(0)
    learner = LEARNERS[name]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("adam", loss)
    learner.build({"support_x": (1, WAYS * SHOTS, 28, 28, 1)})
    rng = np.random.default_rng(0)
    for v in learner.model.weights:
        if keras.backend.is_float_dtype(v.dtype):
            v.assign(np.abs(v + 0.1 * rng.random(v.shape)) if "moving" in v.path else v)
    learner.packs = False
    return learner


@pytest.fixture(scope="module")
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, drawings: ClassDataset
) -> Path:
    """A folder for each learner that is asked for: a task, `call`'s predictions, all exports."""
    root = tmp_path_factory.mktemp("exported")
    quick = "not slow" in request.config.getoption("markexpr")
    names = [name for name in LEARNERS if not (quick and name in SLOW)]
    for name, task in zip(names, map(reduced, tasks(drawings)), strict=False):
        learner = made(name)
        before = [np.array(v) for v in learner.variables]
        x, y, q = (task[key] for key in ("support_x", "support_y", "query_x"))
        expected = np.asarray(learner({k: v[None] for k, v in task.items()}))[0]
        learner.export(root / name / "learner", class_names=NAMES)
        adapted = learner.adapt(x, y)
        # In a graph, as exports are: ProtoMAML's logits are differences of large numbers, which
        # operations one by one round otherwise.
        np.testing.assert_allclose(adapted.predict(q, verbose=0), expected, 1e-5, 1e-5)
        saved_model(adapted, root / name / "adapted", class_names=NAMES)
        if name in KERAS:
            adapted.export(root / name / "keras", verbose=False)
        np.savez(root / name / "task.npz", x=x, y=y, q=q, expected=expected)
        for value, variable in zip(before, learner.variables, strict=True):
            np.testing.assert_array_equal(variable, value)
    return root


@pytest.fixture(scope="module")
def found(exported: Path, bare_python: Path) -> Any:
    """What the client without tfmeta found."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [bare_python, "-I", "-W", "ignore", "-c", CLIENT, exported]
    ran = subprocess.run(
        [*map(str, command)], env=variables, cwd=exported, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", rows(LEARNERS, SLOW))
def test_all_agree_where_there_is_tensorflow_alone(name: str, found: Any, exported: Path) -> None:
    """`call`, the exported learner at once and in two steps, and the exported adapted model."""
    facts = found[name]
    assert max(facts["differences"]) < 1e-5
    expected = np.load(exported / name / "task.npz")["expected"].argmax(axis=-1)
    assert facts["labels"] == [[NAMES[i] for i in expected]] * 3
    assert set(facts["endpoints"]) == ENDPOINTS
    assert facts["keras"] == ([None, 28, 28, 1] if name in KERAS else None)
    assert facts["fewer"] == ([4, WAYS] if name in KERAS else None)


def test_adapt_gives_what_differs_between_tasks_and_no_more(found: Any) -> None:
    assert found["PrototypicalNetwork"]["state"] == ["prototypes"]
    assert found["NearestMean"]["state"] == ["state_0"]
    assert len(found["ANIL"]["state"]) == 2
    # two blocks of kernel, bias, γ and β, and a head; and of statistics only where they are used
    assert len(found["MAML"]["state"]) == len(found["MAML-running"]["state"]) == 10
    assert len(found["BOIL"]["state"]) == 8
    assert len(found["MAML-support"]["state"]) == 10 + 4
    assert "support_x" in found["MAML-with-support"]["state"]
    assert {"prototypes_kernel", "prototypes_bias"} < set(found["ProtoMAML"]["state"])


@pytest.mark.parametrize("name", rows(LEARNERS, SLOW))
def test_signatures_have_names_and_types(name: str, exported: Path) -> None:
    graph = meta_graph(exported / name / "learner")
    signature = graph.signature_def["adapt_and_predict"]
    given = {
        k: (v.dtype, [d.size for d in v.tensor_shape.dim]) for k, v in signature.inputs.items()
    }
    images = (tf.float32.as_datatype_enum, [-1, 28, 28, 1])
    labels = (tf.int64.as_datatype_enum, [-1])
    assert given == {"support_x": images, "query_x": images, "support_y": labels}
    assert set(signature.outputs) == {"predictions", "labels"}
    assert signature.outputs["predictions"].tensor_shape.dim[0].size == -1
    assert set(graph.signature_def["serving_default"].inputs) == set(given)


@pytest.mark.parametrize("kind", ["learner", "adapted", "keras"])
def test_graphs_have_tensorflows_own_operations_only(kind: str, exported: Path) -> None:
    for file in exported.glob(f"*/{kind}/saved_model.pb"):
        graph = meta_graph(file.parent).graph_def
        functions = [node for f in graph.library.function for node in f.node_def]
        nodes = {node.op for node in [*graph.node, *functions]}
        assert len(nodes) > 5
        called = {f.signature.name for f in graph.library.function}
        strange = {op for op in nodes - called if not hasattr(tf.raw_ops, op)}
        assert not strange, file
        assert not any("fmeta" in op or op.startswith(("Py", "EagerPy")) for op in nodes)


def meta_graph(folder: Path) -> Any:
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    return proto.meta_graphs[0]


@pytest.mark.parametrize("mode", ["transductive", "support"])
def test_what_is_transductive_is_said(
    mode: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layers = [keras.layers.Dense(2), keras.layers.BatchNormalization()]
    learner = tfmeta.MAML(keras.Sequential([keras.Input((3,)), *layers]), batch_norm=mode)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    adapted = learner.adapt(np.eye(3, dtype=np.float32), np.array([0, 1, 1]))
    assert learner.transductive == (mode == "transductive")
    for write in (learner.export, functools.partial(saved_model, adapted)):
        caplog.clear()
        write(tmp_path / "model", overwrite=True)
        said = "predictions depend on which queries are asked together" in caplog.text
        assert said == (mode == "transductive")


def test_regression_has_float_labels(tmp_path: Path) -> None:
    learner = tfmeta.MAML(tfmeta.models.mlp((1,), 1), 0.01, 2)
    learner.compile("adam", "mse")
    inputs, _ = tfmeta.data.Sinusoids(shots=5, queries=7, seed=0).batch(0)
    expected = np.asarray(learner(inputs))[0]
    learner.export(tmp_path / "sines")
    loaded = tf.saved_model.load(tmp_path / "sines")
    answer = loaded.adapt_and_predict(**{k: v[0] for k, v in inputs.items()})
    assert set(answer) == {"predictions"}
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)


def test_texts_of_any_length_stay_integers(tmp_path: Path) -> None:
    """The encoder's own type and its free sizes are those of the signatures."""
    layers = [keras.layers.Embedding(9, 4), keras.layers.GlobalAveragePooling1D()]
    learner = tfmeta.PrototypicalNetwork(
        keras.Sequential([keras.Input((None,), dtype="int32"), *layers, keras.layers.Dense(3)])
    )
    x, y = np.random.default_rng(0).integers(0, 9, (4, 7), np.int32), np.array([0, 1, 0, 1])
    adapted = learner.adapt(x, y)
    learner.export(tmp_path / "learner")
    loaded = tf.saved_model.load(tmp_path / "learner")
    answer = loaded.predict(query_x=x[:, :5], **loaded.adapt(support_x=x, support_y=y))
    np.testing.assert_allclose(answer["predictions"], adapted(x[:, :5]), atol=1e-6)


def test_reptile_takes_all_of_a_support_set_that_is_smaller_than_its_batch(tmp_path: Path) -> None:
    x, q = np.random.default_rng(0).random((2, 1, 4, 3)).astype(np.float32)
    y = np.array([[0, 1, 0, 1]])
    learner = tfmeta.Reptile(tfmeta.models.mlp((3,), 2), 0.5, 3, inner_batch_size=50)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = learner({"support_x": x, "support_y": y, "query_x": q})[0]
    learner.export(tmp_path / "reptile")
    loaded = tf.saved_model.load(tmp_path / "reptile")
    answer = loaded.adapt_and_predict(x[0], y[0], q[0])
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)


# Preprocessing


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("grayscale", [True, False])
@pytest.mark.parametrize("invert", [True, False])
def test_preprocessing_is_that_of_image_files_to_the_bit(
    channels: int, grayscale: bool, invert: bool
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 14, 16, channels), np.uint8)
    expected = prepare(images, grayscale=grayscale, invert=invert)
    expected = np.broadcast_to(expected, (3, 14, 16, 1 if grayscale else 3))
    for size in (None, (14, 16)):
        made = Preprocessing(size, grayscale, invert)(images)
        np.testing.assert_array_equal(made, expected.astype(np.float32) * np.float32(1 / 255))


@pytest.mark.parametrize("size", [28, 84, (20, 50), 700])
def test_resizing_differs_from_pillow_by_rounding(size: Any, drawings: ClassDataset) -> None:
    """By 2 of 255 at most, in fewer than one number of 1,000."""
    with get_sample_data("grace_hopper.jpg") as file:
        photo = np.asarray(Image.open(file))[None]
    for images in (drawings.examples[::200], photo):
        expected = prepare(images, size=size)
        made = np.rint(Preprocessing(size)(images).numpy() * 255)
        difference = np.abs(made - expected)
        assert difference.max() <= 2
        assert np.mean(difference > 0) < 1e-3


def test_preprocessing_travels_inside(tmp_path: Path, drawings: ClassDataset) -> None:
    learner = made("PrototypicalNetwork")
    task = next(tasks(drawings))
    expected = learner({k: v[None] for k, v in reduced(task).items()})[0]
    preprocessing = Preprocessing(28, grayscale=True, invert=True)
    learner.export(tmp_path / "learner", preprocessing=preprocessing)
    adapted = learner.adapt(reduced(task)["support_x"], task["support_y"])
    saved_model(adapted, tmp_path / "adapted", class_names=NAMES, preprocessing=preprocessing)
    # The queries as files of another size and kind have them.
    coloured = np.repeat(task["query_x"], 3, axis=-1)
    loaded = tf.saved_model.load(tmp_path / "learner")
    answer = loaded.adapt_and_predict(**{**task, "query_x": coloured})["predictions"]
    other = tf.saved_model.load(tmp_path / "adapted").predict(query_x=coloured)
    # One number in 1,000 pixels is rounded otherwise.
    for predictions in (answer, other["predictions"]):
        np.testing.assert_allclose(predictions, expected, rtol=5e-3)
    four = {**task, "query_x": np.zeros((1, 8, 8, 4), np.uint8)}
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`query_x` must be uint8 images .*3"):
        loaded.adapt_and_predict(**four)
    words = r"`support_x` must be uint8 images \[n, height, width, channels\]"
    for shape in [(0,), (3,), (1, 8, 8), (1, 8, 8, 1, 1), (1, 0, 8, 1)]:
        images = tf.zeros(shape, tf.uint8)
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            loaded.signatures["adapt"](support_x=images, support_y=tf.zeros(1, tf.int64))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 0}, ValueError, r"`size` must be a positive integer"),
        ({"size": "big"}, TypeError, r"`size` must be a positive integer or a pair"),
        ({"size": (1, 2, 3)}, ValueError, r"`size` must be a positive integer or a pair"),
        ({"scale": 0}, ValueError, r"`scale` must be positive"),
        ({"scale": "x"}, TypeError, r"`scale` must be a number"),
    ],
)
def test_bad_preprocessing(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Preprocessing(**arguments)


# What is refused when a model is written


def test_a_learner_that_is_not_built(tmp_path: Path) -> None:
    learner = tfmeta.PrototypicalNetwork(network(None))
    with pytest.raises(
        ValueError, match=r"learner that is built: call `fit`, or `adapt`.*Received"
    ):
        learner.export(tmp_path / "learner")
    with pytest.raises(ValueError, match=r"`adapted` must be built"):
        saved_model(keras.Sequential([keras.layers.Dense(3)]), tmp_path / "learner")
    with pytest.raises(TypeError, match=r"`adapted` must be an adapted model.*a learner has"):
        saved_model(learner, tmp_path / "learner")
    uncompiled = tfmeta.MAML(network())
    uncompiled.build({"support_x": (1, 5, 28, 28, 1)})
    with pytest.raises(ValueError, match=r"needs a loss for its inner loop"):
        uncompiled.export(tmp_path / "learner")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_names": NAMES[:4]}, ValueError, r"a name for each output.*\[n, 5\].*4 names"),
        ({"class_names": [*NAMES, "zeta"]}, ValueError, r"for each output.*Received: 6 names"),
        ({"class_names": []}, ValueError, r"different names, at least one. Received: none"),
        ({"class_names": [*NAMES[:4], "beta"]}, ValueError, r"Received: 'beta' 2 times"),
        ({"class_names": "alpha"}, TypeError, r"must be a sequence of strings"),
        ({"class_names": [*NAMES[:4], "\udcff"]}, ValueError, r"text that UTF-8 has.*'\\udcff'"),
        ({"class_names": [0, 1, 2, 3, 4]}, TypeError, r"must be a sequence of strings"),
        ({"preprocessing": Preprocessing(28)}, ValueError, r"28, 28, 1\].*makes \[n, 28, 28, 3\]"),
        ({"preprocessing": "resize"}, TypeError, r"must be a tfmeta.export.Preprocessing"),
    ],
)
def test_bad_options(options: Any, error: Any, message: str, tmp_path: Path) -> None:
    learner = made("ANIL")
    for export in (learner.export, lambda *a, **k: saved_model(learner.model, *a, **k)):
        with pytest.raises(error, match=message):
            export(tmp_path / "model", **options)
    assert not list(tmp_path.iterdir())


def test_models_of_several_inputs_are_adapted_first(tmp_path: Path) -> None:
    inputs = {name: keras.Input((3,), name=name) for name in ("a", "b")}
    outputs = keras.layers.Dense(2)(keras.layers.Concatenate()(list(inputs.values())))
    learner = tfmeta.MAML(keras.Model(inputs, outputs), 0.1)
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = {name: np.ones((4, 3), np.float32) for name in inputs}
    adapted = learner.adapt(x, np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"`export` is for models of one input; of others adapt"):
        learner.export(tmp_path / "learner")
    with pytest.raises(ValueError, match=r"one input.*Received: \{'a': \(None, 3\)"):
        saved_model(adapted, tmp_path / "adapted")
    adapted.export(tmp_path / "adapted", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "adapted")
    np.testing.assert_allclose(loaded.serve(x), adapted(x), atol=1e-6)


class Subclassed(keras.Model):
    """A model whose copy Keras does not call built."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.head = keras.layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(x)


def test_a_subclassed_model(tmp_path: Path) -> None:
    learner = tfmeta.MAML(Subclassed(), 0.1)
    learner.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.eye(3, dtype=np.float32)
    adapted = learner.adapt(x, np.array([0, 1, 1]))
    saved_model(adapted, tmp_path / "model")
    loaded = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(loaded.predict(query_x=x)["predictions"], adapted(x), atol=1e-6)


def small() -> keras.Model:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])


def test_what_is_there_is_replaced_only_when_asked_and_only_a_saved_model(tmp_path: Path) -> None:
    path = tmp_path / "above" / "model"
    saved_model(small(), path)
    before = contents(path)
    with pytest.raises(FileExistsError, match=r"overwrite=True replaces the SavedModel.*model'"):
        saved_model(small(), path)
    assert contents(path) == before
    saved_model(small(), path, overwrite=True)
    assert contents(path) != before
    (tmp_path / "empty").mkdir()
    saved_model(small(), tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == ["above", "empty"]


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        ".hidden",
        "variables/notes.txt",
        "variables/variables.index.old",
        "assets/words.txt",
        "assets.extra/tf_serving_warmup_requests",
    ],
)
def test_what_no_export_wrote_is_never_removed(
    at: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is put there while an export is being made."""
    path = tmp_path / "model"
    saved_model(small(), path)
    save = tf.saved_model.save

    def put(*args: Any, **kwargs: Any) -> None:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("mine")
        if args:
            save(*args, **kwargs)

    if at == "start":
        put()
    monkeypatch.setattr(tf.saved_model, "save", put if at == "end" else save)
    with pytest.raises(FileExistsError, match=rf"and nothing else .* with '{name}', which no exp"):
        saved_model(small(), path, overwrite=True)
    assert (path / name).read_text() == "mine"
    assert os.listdir(tmp_path) == ["model"]
    (path / name).unlink()
    monkeypatch.setattr(tf.saved_model, "save", save)
    saved_model(small(), path, overwrite=True)


def test_a_saved_model_of_another_program_a_file_or_a_folder_is_not_replaced(
    tmp_path: Path,
) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for path in (tmp_path, tmp_path / "other", tmp_path / "file"):
        with pytest.raises(FileExistsError, match=r"hold a SavedModel and nothing else"):
            saved_model(small(), path, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("target", ["real", "nothing", "file", "empty"])
def test_a_link_is_never_replaced(target: str, tmp_path: Path) -> None:
    saved_model(small(), tmp_path / "real")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(target)
    before = contents(tmp_path)
    for overwrite in (True, False):
        with pytest.raises(FileExistsError, match=rf"`path` must be no link.*a link to '{target}'"):
            saved_model(small(), tmp_path / "link", overwrite=overwrite)
    assert contents(tmp_path) == before
    assert (tmp_path / "link").is_symlink()
    # A folder above may be one, for nothing becomes of that.
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("empty")
    saved_model(small(), tmp_path / "link" / "model")
    assert (tmp_path / "empty" / "model" / "saved_model.pb").exists()


def test_the_list_is_that_of_sha256sum_and_a_damaged_one_does_not_block(tmp_path: Path) -> None:
    saved_model(small(), tmp_path)
    file = tmp_path / "assets.extra" / "SHA256SUMS"
    for line in file.read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    names = {line[66:] for line in file.read_text().splitlines()}
    assert {str(file.relative_to(tmp_path)), *names} == set(contents(tmp_path))
    file.write_bytes(b"\xff")
    saved_model(small(), tmp_path, overwrite=True)


@pytest.mark.parametrize("old", [True, False])
def test_a_failure_in_the_middle_leaves_what_was_there(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        saved_model(small(), tmp_path / "model")
    before = contents(tmp_path)

    def run_out_of_disk(_: Any, folder: str, **__: Any) -> None:
        Path(folder, "saved_model.pb").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", run_out_of_disk)
    with pytest.raises(OSError, match="disk full"):
        saved_model(small(), tmp_path / "model", overwrite=True)
    assert contents(tmp_path) == before


def test_a_path_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError, match=r"`path` must be writable \(.*\)\. Received: path='.*model'"):
        saved_model(small(), tmp_path / "file" / "model")

    def forbid(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", forbid)
        with pytest.raises(PermissionError, match=r"`path` must be writable \(Permission denied\)"):
            saved_model(small(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# What is refused when a model is served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("served")
    for name in ("ANIL", "PrototypicalNetwork", "NearestMean"):
        made(name).export(folder / name, class_names=NAMES)
    return {path.name: tf.saved_model.load(path).signatures for path in folder.iterdir()}


X = tf.zeros((WAYS, 28, 28, 1))
Y = tf.range(WAYS, dtype=tf.int64)


@pytest.mark.parametrize("endpoint", ["adapt", "adapt_and_predict"])
@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        (
            "ANIL",
            {"support_x": X[:, :10]},
            r"`support_x` must have the shape \[n, 28, 28, 1\].*\[5 10 28",
        ),
        (
            "ANIL",
            {"support_x": X[:3]},
            r"must have the same length, at least 1.*lengths\] \[3\].*\[5\]",
        ),
        ("ANIL", {"support_x": X[:0], "support_y": Y[:0]}, r"length, at least 1.*lengths\] \[0\]"),
        (
            "ANIL",
            {"support_y": Y + 1},
            r"numbers 0..4, as the model has 5 outputs.*from\] \[1\].*\[5\]",
        ),
        (
            "ANIL",
            {"support_y": Y - 1},
            r"`support_y` must be the class numbers 0..4.*from\] \[-1\]",
        ),
        (
            "PrototypicalNetwork",
            {"support_y": 2 * Y},
            r"0..ways-1, with at least one example of each",
        ),
        ("ANIL", {"support_x": X[..., 0]}, r"shape \[n, 28, 28, 1\].*\[5 28 28\]"),
        ("ANIL", {"support_y": Y[:, None]}, r"`support_y` must have the shape \[n\].*\[5 1\]"),
        ("ANIL", {"support_y": Y[0]}, r"`support_y` must have the shape \[n\].*shape\] \[\]"),
        ("ANIL", {"support_x": X[0, 0, 0]}, r"`support_x` must have the shape.*\[1\]"),
        ("PrototypicalNetwork", {"support_y": Y + 1}, r"0..ways-1.*from\] \[1\] \[to\] \[5\]"),
        ("NearestMean", {"support_y": Y - 1}, r"0..ways-1.*from\] \[-1\]"),
        ("NearestMean", {"support_y": Y + 1}, r"less than 5, the number of `class_names`.*\[5\]"),
    ],
)
def test_bad_support_sets_are_refused_in_words(
    name: str, changed: Any, message: str, endpoint: str, served: Any
) -> None:
    given = {"support_x": X, "support_y": Y, **changed}
    if endpoint == "adapt_and_predict":
        given["query_x"] = X
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served[name][endpoint](**given)


def floats_of(function: Any) -> list[str]:
    return [k for k, x in function.structured_input_signature[1].items() if x.dtype.is_floating]


@pytest.mark.parametrize("name", ["ANIL", "PrototypicalNetwork", "NearestMean"])
@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
def test_no_number_that_is_none_is_answered(name: str, endpoint: str, served: Any) -> None:
    """Of all inputs that are floats, what was learnt among them, at any place."""
    functions = served[name]
    task = functions["adapt"](support_x=X, support_y=Y)
    given = {"support_x": X, "support_y": Y, "query_x": X, **task}
    function = functions[endpoint]
    given = {k: given[k] for k in function.structured_input_signature[1]}
    function(**given)
    found = floats_of(function)
    assert found
    for key in found:
        for bad in (np.nan, np.inf, -np.inf, 1e38, -1e38):
            if key in task and not np.isnan(bad):
                continue
            for place in (0, -1):
                spoilt = given[key].numpy()
                spoilt.reshape(-1)[place] = bad
                words = rf"NaN in one of .*`{key}`" if key in task else rf"`{key}` must be finite"
                with pytest.raises(tf.errors.InvalidArgumentError, match=words):
                    function(**{**given, key: tf.constant(spoilt)})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e38])
def test_adapted_models_and_labels_in_numbers_refuse_the_same(bad: float, tmp_path: Path) -> None:
    """As `adapt` does."""
    learner = tfmeta.MAML(tfmeta.models.mlp((1,), 1), 0.01, 1)
    learner.compile("adam", "mse")
    x, spoilt = tf.ones((3, 1)), tf.constant([[1.0], [bad], [1.0]])
    adapted = learner.adapt(x, x)
    learner.export(tmp_path / "learner")
    saved_model(adapted, tmp_path / "adapted")
    words = (
        r"`{}` must be finite, and so must the sum of its squares. Received: NaN, infinite or too"
    )
    adapt = tf.saved_model.load(tmp_path / "learner").signatures["adapt"]
    given = {"support_x": x, "support_y": x}
    for key in given:
        with pytest.raises(tf.errors.InvalidArgumentError, match=words.format(key)):
            adapt(**{**given, key: spoilt})
        with pytest.raises(ValueError, match=words.format(key)):
            learner.adapt(**{k: v.numpy() for k, v in {**given, key: spoilt}.items()})
    predict = tf.saved_model.load(tmp_path / "adapted").signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=words.format("query_x")):
        predict(query_x=spoilt)


def test_half_precision_has_room_for_what_it_can_write(tmp_path: Path) -> None:
    """Squares are summed in single precision: of 300 that in half precision is infinite."""
    model = keras.Sequential([keras.Input((4,), dtype="float16"), keras.layers.Dense(2)])
    saved_model(model, tmp_path)
    predict = tf.saved_model.load(tmp_path).signatures["serving_default"]
    predict(query_x=tf.fill((3, 4), tf.constant(300, tf.float16)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="`query_x` must be finite"):
        predict(query_x=tf.fill((3, 4), tf.constant(np.inf, tf.float16)))


def test_more_classes_than_names_are_refused(served: Any) -> None:
    six = {"support_x": tf.zeros((6, 28, 28, 1)), "support_y": tf.range(6, dtype=tf.int64)}
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"less than 5, the number of `class"):
        served["PrototypicalNetwork"]["adapt"](**six)
    fewer = served["PrototypicalNetwork"]["adapt_and_predict"](
        support_x=X[:3], support_y=Y[:3], query_x=X
    )
    assert fewer["predictions"].shape == (WAYS, 3)


def test_other_types_and_shapes_of_queries_are_refused(served: Any) -> None:
    adapt, predict = served["ANIL"]["adapt"], served["ANIL"]["predict"]
    task = adapt(support_x=X, support_y=Y)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`query_x` must have the shape"):
        predict(query_x=X[:, :10], **task)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected to be a int64 tensor"):
        adapt(support_x=X, support_y=tf.cast(Y, tf.int32))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"expected to be a float tensor"):
        adapt(support_x=tf.cast(X, tf.uint8), support_y=Y)
