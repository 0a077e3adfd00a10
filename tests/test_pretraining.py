"""Pretraining: what is learnt, what is kept, what goes on after an interruption."""

import os
import signal

import keras
import numpy as np
import pytest

import tfmeta
from tfmeta.data.example_batches import ExampleBatches
from tfmeta.states import Stopped

SHAPE = (8, 8, 3)


def images(classes, each=6, seed=0):
    """Return images of classes that share a pattern each."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(60, 190, (classes, *SHAPE))
    noise = rng.integers(-60, 60, (classes, each, *SHAPE))
    examples = (patterns[:, None] + noise).astype(np.uint8).reshape(-1, *SHAPE)
    return tfmeta.data.ClassDataset(examples, np.arange(classes * each) // each)


def encoder():
    keras.utils.set_random_seed(0)
    return tfmeta.models.conv4(SHAPE, filters=4, downsample="stride")


def watched():
    return tfmeta.data.EpisodeSampler(images(4, seed=1), 3, 1, 3)


@pytest.fixture
def kept_scores(monkeypatch):
    """Give the validation scores of one's choice."""

    def give(*scores):
        left = list(scores)

        def evaluate(learner, sampler, episodes, verbose):
            return tfmeta.Evaluation(np.array([left.pop(0)]), "accuracy")

        monkeypatch.setattr("tfmeta.pretraining.evaluate", evaluate)

    return give


def test_batches_show_each_example_once_an_epoch():
    data = images(4, each=5)
    batches = ExampleBatches(data, 6, seed=3)
    assert batches.steps_per_epoch == 3
    epochs = [[batches.batch(3 * epoch + step) for step in range(3)] for epoch in range(2)]
    known = {x.tobytes(): c for x, c in zip(data.examples, np.arange(20) // 5, strict=True)}
    shown = []
    for epoch in epochs:
        x = np.concatenate([inputs["x"] for inputs, _ in epoch])
        y = np.concatenate([labels for _, labels in epoch])
        assert x.dtype == np.float32
        pixels = [image.tobytes() for image in np.rint(x * 255).astype(np.uint8)]
        assert len(set(pixels)) == 18
        assert [known[p] for p in pixels] == y.tolist()
        shown.append(pixels)
    assert shown[0] != shown[1]
    # Of seed and step alone, wherever a pipeline begins.
    for step, (x, y) in zip((4, 5), batches.dataset(start=4), strict=False):
        np.testing.assert_array_equal(x, batches.batch(step)[0]["x"])
        np.testing.assert_array_equal(y, ExampleBatches(data, 6, seed=3).batch(step)[1])
    assert ExampleBatches(data, 100).batch_size == 20


def test_batches_are_turned_augmented_and_normalised():
    data = images(2).with_rotations()
    (inputs, classes) = ExampleBatches(data, 48).batch(0)
    assert sorted(set(classes)) == list(range(8))
    first = {c: x for x, c in zip(inputs["x"], classes, strict=True)}
    whole = np.float32(1 / 255) * data.examples
    for c, x in first.items():
        turned = [np.rot90(y, c % 4) for y in whole[6 * (c // 4) :][:6]]
        assert any(np.array_equal(x, y) for y in turned)
    data = images(2)
    change = tfmeta.data.Augmentation(flip=True)
    plain, flipped = (
        ExampleBatches(data, 12, augmentation=a).batch(0)[0]["x"] for a in (None, change)
    )
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(plain, flipped, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert any(mirrored)
    assert any(same)
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    centred = ExampleBatches(data, 12, mean=0.5, std=0.25).batch(0)[0]["x"]
    np.testing.assert_allclose(centred, (plain - 0.5) / 0.25, atol=1e-5)


def test_it_learns_the_classes_and_helps_with_others(capsys):
    body, train = encoder(), images(8)
    before = [w.numpy() for w in body.weights]
    history = tfmeta.pretrain(
        body, train, 8, batch_size=16, validation=watched(), validation_episodes=20, verbose=2
    )
    assert set(history.history) == {"accuracy", "loss", "val_accuracy"}
    # By chance one in eight would be right.
    assert history.history["accuracy"][-1] > 0.35
    assert history.history["loss"][-1] < 0.8 * history.history["loss"][0]
    assert any((a != b.numpy()).any() for a, b in zip(before, body.weights, strict=True))
    assert "val_accuracy" in capsys.readouterr().out
    # What it is left with is the best of the epochs, and is scored as the history says.
    learner = tfmeta.SimpleShot(body, centre=False)
    score = tfmeta.evaluate(learner, watched(), 20, verbose=False).mean
    assert score == pytest.approx(max(history.history["val_accuracy"]))


def test_the_best_weights_are_left(kept_scores):
    kept_scores(0.3, 0.9, 0.5)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([w.numpy() for w in self.model.encoder.weights])

    body = encoder()
    history = tfmeta.pretrain(
        body, images(4), 3, batch_size=12, validation=watched(), callbacks=[Look()], verbose=0
    )
    assert history.history["val_accuracy"] == [0.3, 0.9, 0.5]
    for kept, weight in zip(seen[1], body.weights, strict=True):
        np.testing.assert_array_equal(kept, weight)
    assert any((a != b).any() for a, b in zip(seen[1], seen[2], strict=True))


def test_a_pretraining_that_is_interrupted_ends_as_one_that_was_not(tmp_path, kept_scores):
    def run(*callbacks, folder="states"):
        body = encoder()
        save = tfmeta.callbacks.SaveState(tmp_path / folder, every=1)
        history = tfmeta.pretrain(
            body,
            images(4),
            3,
            batch_size=12,
            augmentation=tfmeta.data.Augmentation(flip=True, crop=1),
            validation=watched(),
            callbacks=[*callbacks, save],
            verbose=0,
        )
        return body, history.history

    class End(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    scores = (0.9, 0.3, 0.5)
    kept_scores(*scores)
    whole, logs = run(folder="whole")
    kept_scores(*scores)
    with pytest.raises(Stopped):
        run(End())
    again, resumed = run()
    assert resumed["val_accuracy"] == list(scores)
    assert resumed == logs
    for a, b in zip(again.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    # It was finished: the same call brings the weights back, and does no step.
    finished, _ = run()
    for a, b in zip(finished.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_subclassed_encoder_without_validation():
    class Encoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.flat, self.dense = keras.layers.Flatten(), keras.layers.Dense(3)

        def call(self, x):
            return self.dense(self.flat(x))

    body = Encoder()
    body(np.zeros((1, *SHAPE), "float32"))
    before = body.dense.kernel.numpy()
    history = tfmeta.pretrain(body, images(3), 1, optimizer="adam", verbose=0)
    assert set(history.history) == {"accuracy", "loss"}
    assert (body.dense.kernel.numpy() != before).any()


def test_bad_arguments():
    body, data = encoder(), images(3)
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    maps = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(2, 3)])
    frozen = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten()])
    texts = tfmeta.data.ClassDataset(["a", "b"], [0, 1])
    other = tfmeta.models.conv4((16, 16, 3), filters=2)
    for arguments, options, error, message in (
        ((3, data), {}, TypeError, "`encoder` must be a keras.Model. Received: int"),
        ((body, data.examples), {}, TypeError, "`dataset` must be a ClassDataset.*ndarray"),
        ((body, texts), {}, TypeError, "`dataset` must hold numbers"),
        ((body, data.select([0])), {}, ValueError, "`dataset` must have at least 2 classes"),
        ((unbuilt, data), {}, ValueError, "`encoder` must be built"),
        ((frozen, data), {}, ValueError, "`encoder` must have weights to train"),
        ((other, data), {}, ValueError, r"must take the data set's examples.*\(8, 8, 3\).*16"),
        ((maps, data), {}, ValueError, r"must return one vector \[n, d\].*\(2, 6, 6, 2\)"),
        ((body, data, 0), {}, ValueError, "`epochs` must be at least 1"),
        ((body, data), {"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ((body, data), {"validation_episodes": 0}, ValueError, "`validation_episodes` must be"),
        ((body, data), {"validation": 3}, TypeError, "`validation` must be a sampler.*3"),
        ((body, data), {"augmentation": "flip"}, TypeError, "`augmentation` must be"),
        ((body, data), {"seed": -1}, ValueError, "`seed` must be at least 0"),
    ):
        before = [w.numpy() for w in body.weights]
        with pytest.raises(error, match=message):
            tfmeta.pretrain(*arguments, verbose=0, **options)
        for a, b in zip(before, body.weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_training_that_diverges_is_an_error():
    with pytest.raises(ValueError, match=r"`loss` must be finite.*epoch 1"):
        tfmeta.pretrain(
            encoder(),
            images(3),
            1,
            batch_size=6,
            optimizer=keras.optimizers.SGD(1e38),
            validation=watched(),
            verbose=0,
        )
