"""From an encoder that Keras saved and a folder of images to a classifier, by one command."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfmeta
from tests.test_unknown import run, write_images

SIDE = 8


def encoder(channels: int = 3, side: int | None = SIDE, maps: bool = False) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers: list[Any] = [keras.layers.Rescaling(2.0, -1.0), keras.layers.Conv2D(4, 3)]
    layers += [] if maps else [keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((side, side, channels)), *layers])
    model.trainable = False
    return model


@pytest.mark.parametrize("channels", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_from_a_file_and_a_folder_to_a_classifier(channels: int, tmp_path: Path) -> None:
    model = encoder(channels)
    model.save(tmp_path / "encoder.keras")
    few = write_images(tmp_path / "few", 3, images=2)
    for kind in ("keras", "saved_model"):
        options = ("--support", few, "--output", tmp_path / kind, "--format", kind)
        result = run("adapt", tmp_path / "encoder.keras", *options)
        assert result.exit_code == 0, result.output
    answers = {
        kind: run("predict", tmp_path / kind, few).stdout for kind in ("keras", "saved_model")
    }
    assert answers["keras"] == answers["saved_model"]
    # What the encoder makes of the files, by hand.
    mode = "L" if channels == 1 else "RGB"
    pixels = [
        np.asarray(Image.open(file).convert(mode).resize((SIDE, SIDE), Image.Resampling.LANCZOS))
        for file in sorted(few.rglob("*.png"))
    ]
    x = np.reshape(pixels, (6, SIDE, SIDE, channels)).astype("float32") / 255
    z = keras.utils.normalize(np.asarray(model(x)))
    means = z.reshape(3, 2, -1).mean(1)
    nearest = ((z[:, None] - means) ** 2).sum(-1).argmin(1)
    found = [line.split("\t")[1] for line in answers["keras"].splitlines()]
    assert found == [f"class{c}" for c in nearest]
    served = tf.saved_model.load(tmp_path / "saved_model" / "saved_model")
    images = np.stack([np.asarray(Image.open(file)) for file in sorted(few.rglob("*.png"))])
    labels = served.predict(query_x=images)["labels"].numpy()
    assert [s.decode() for s in labels] == found


def test_from_a_learners_file(tmp_path: Path) -> None:
    learner = tfmeta.PrototypicalNetwork(encoder())
    few = write_images(tmp_path / "few", 2, images=2)
    classifier = tfmeta.Classifier.adapt(learner, few)
    learner.save(tmp_path / "learner.keras")
    result = run(
        *("adapt", tmp_path / "learner.keras", "--support", few, "--output", tmp_path / "out")
    )
    assert result.exit_code == 0, result.output
    files = sorted(few.rglob("*.png"))
    found = tfmeta.Classifier.load(tmp_path / "out").classify(files)
    for (name, p), (expected, q) in zip(found, classifier.classify(files), strict=True):
        assert (name, p) == (expected, pytest.approx(q, abs=1e-6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, "must be a model that Keras saved"),
        (lambda: encoder(4), "must take images [n, height, width, 1 or 3] of one size"),
        (lambda: encoder(3, None), "of one size. Received: a model"),
        (lambda: encoder(maps=True), "`encoder` must return one vector [n, d] for each example"),
    ],
)
def test_bad_files(make: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "encoder.keras"
    if make is None:
        file.write_text("no model")
    else:
        make().save(file)
    few = write_images(tmp_path / "few", 2, images=2)
    result = run("adapt", file, "--support", few, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_what_a_file_cannot_do(tmp_path: Path) -> None:
    file = tmp_path / "encoder.keras"
    keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Lambda(lambda x: x)]).save(file)
    few = write_images(tmp_path / "few", 2, images=2)
    command = ("adapt", file, "--support", few, "--output", tmp_path / "out")
    assert "must be a model that Keras saved" in " ".join(run(*command).output.split())
    assert "--invert is for a run" in run(*command, "--invert").output
    with pytest.raises(ValueError, match=r"`format` must be one of 'keras'.*Did you mean 'keras'"):
        tfmeta.Classifier(None, ("a", "b"), {}, format="Keras")
    result = run(*command, "--false-acceptance", 0.1)
    assert "need the validation classes of a run" in " ".join(result.output.split())


def hub_encoder() -> keras.Model:
    """A residual network of KerasHub with weights drawn at random, on images of 32 by 32."""
    hub = pytest.importorskip("keras_hub", reason="needs KerasHub: pip install 'tfmeta[hub]'")
    keras.utils.set_random_seed(0)
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 16],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        use_pre_activation=False,
        image_shape=(32, 32, 3),
    )
    return keras.Sequential(
        [keras.Input((32, 32, 3)), backbone, keras.layers.GlobalAveragePooling2D()]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SimpleShot", "R2D2", "PrototypicalNetwork", "MetaOptNet"])
def test_a_network_of_keras_hub(name: str, tmp_path: Path) -> None:
    """Scored, trained, saved, adapted and exported, with tasks packed as of any network."""
    encoder = hub_encoder()
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), np.uint8)
    data = tfmeta.data.ClassDataset(images, np.repeat(np.arange(6), 10))
    sampler = tfmeta.data.EpisodeSampler(data, ways=5, shots=2, queries=3)
    learner = getattr(tfmeta, name)(encoder)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile("adam", loss, metrics=["accuracy"])
    learner.fit(sampler.dataset(2), steps_per_epoch=2, verbose=0)
    learner.save(tmp_path / "learner.keras")
    again = keras.models.load_model(tmp_path / "learner.keras")
    inputs, _ = sampler.batch(0)
    np.testing.assert_allclose(again.predict(inputs), learner.predict(inputs), atol=1e-5)
    adapted = learner.adapt(inputs["support_x"][0], inputs["support_y"][0])
    adapted.export(tmp_path / "adapted", verbose=False)
    served = tf.saved_model.load(tmp_path / "adapted")
    query = inputs["query_x"][0]
    np.testing.assert_allclose(served.serve(query), adapted.predict(query, verbose=0), atol=1e-5)
    network = keras.Model(encoder.inputs, keras.layers.Dense(5)(encoder.outputs[0]))
    packed = tfmeta.MAML(network, task_axis="packed")  # or an error names the layer
    packed.compile("adam", loss)
    packed.fit(sampler.dataset(2), steps_per_epoch=1, verbose=0)


@pytest.mark.slow
def test_a_file_of_keras_hub_is_read_by_the_command(tmp_path: Path) -> None:
    hub_encoder().save(tmp_path / "encoder.keras")
    few = write_images(tmp_path / "few", 3, images=2)
    result = run("adapt", tmp_path / "encoder.keras", "--support", few, "--output", tmp_path / "m")
    assert result.exit_code == 0, result.output


def test_layers_that_cannot_be_imported_are_named(tmp_path: Path) -> None:
    encoder().save(tmp_path / "whole.keras")
    with zipfile.ZipFile(tmp_path / "whole.keras") as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    layer = b'"module": "keras.layers", "class_name": "Conv2D"'
    other = b'"module": "keras_hub.absent", "class_name": "Absent"'
    assert layer in parts["config.json"]
    parts["config.json"] = parts["config.json"].replace(layer, other)
    with zipfile.ZipFile(tmp_path / "encoder.keras", "w") as changed:
        for name, content in parts.items():
            changed.writestr(name, content)
    few = write_images(tmp_path / "few", 3, images=2)
    result = run("adapt", tmp_path / "encoder.keras", "--support", few, "--output", tmp_path / "m")
    assert result.exit_code == 1
    assert "'Absent'" in result.output
    assert result.output.endswith("It has layers of KerasHub: pip install 'tfmeta[hub]'\n")
    assert "config" not in result.output
    assert not (tmp_path / "m").exists()
