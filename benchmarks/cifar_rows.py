"""The rows of `reproduce.py` on CIFAR-FS and FC100, for an hour of two cores each."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import lines
from scored import scored

import tfmeta

BENCHMARKS = ("cifar_fs", "fc100")
SHOTS = (1, 5)
MINUTES, EPISODES = 50, 2000
TEST_QUERIES = 15
STEPS_OF_EPOCH, SAVE_EVERY, MOST_EPOCHS = 100, 50, 100_000
# Of a row that begins with a pretrained network, so much of the time is for that network.
PRETRAINING = 0.6
# Pretraining takes no account of how many ways and shots there will be.
WATCHED = {"ways": 5, "shots": 1, "queries": TEST_QUERIES}
WATCHED_EPISODES = 100
NOT_PUBLISHED = ("–", "–")
PRETRAINING_RATE = 0.05
CHANGES = tfmeta.data.Augmentation(flip=True, crop=4)


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row is trained with; it is scored with 5 ways and its own shots.

    Attributes:
        learner: A class of tfmeta.
        arguments: Of the learner, besides the network.
        filters: Of the conv4.
        learning_rate: Where the cosine begins that ends at 0 when time is over.
        ways: Classes of a task in training.
        queries: Query examples of a class in training.
        tasks: Tasks of a step; 0 where there are no episodes in training, and the learner is put on
            the pretrained network as it is.
        pretrained: Whether the network is first trained as a classifier, by `tfmeta.pretrain`.
        unit: Whether the learner gets embeddings of length 1.
    """

    learner: str
    arguments: dict[str, Any]
    filters: int | tuple[int, ...] = 64
    learning_rate: float = 1e-3
    ways: int = 5
    queries: int = 15
    tasks: int = 1
    pretrained: bool = False
    unit: bool = False


# Ridge regression gives numbers near 0 and 1, which are small for logits.
RIDGE = {"ridge": 0.5, "scale": 10.0}
COSINE = {"distance": "cosine", "temperature": 10.0, "learn_temperature": True}


def maml(shots: int, pretrained: bool = False) -> Row:
    # On a pretrained network what tfmeta.suggest_inner_rate says, on training episodes.
    suggested = 0.1 if shots == 1 else 0.25
    steps = {
        "inner_learning_rate": suggested if pretrained else 0.01,
        "inner_steps": 5,
        "evaluation_steps": 10,
    }
    if pretrained:
        return Row("MAML", steps, queries=5, tasks=2, pretrained=True)
    return Row("MAML", steps, filters=32, tasks=4 if shots == 1 else 2)


def on_episodes(
    shots: int, learner: str, ways: int, arguments: dict[str, Any] | None = None, **settings: Any
) -> Row:
    del shots
    return Row(learner, arguments or {}, ways=ways, **settings)


def r2d2(shots: int, **settings: Any) -> Row:
    return on_episodes(shots, "R2D2", 10, RIDGE, queries=5, unit=True, **settings)


def head(shots: int, learner: str, **arguments: Any) -> Row:
    del shots
    return Row(learner, arguments, tasks=0, pretrained=True)


# name: (settings of so many shots, published scores with 1 and with 5 shots)
METHODS: dict[str, tuple[Callable[[int], Row], dict[str, tuple[str, str]]]] = {
    "prototypical": (
        functools.partial(on_episodes, learner="PrototypicalNetwork", ways=20, queries=10),
        {"cifar_fs": ("55.5", "72.0"), "fc100": ("35.3", "48.6")},
    ),
    "maml": (maml, {"cifar_fs": ("58.9", "71.5"), "fc100": ("38.1", "50.4")}),
    "r2d2": (
        functools.partial(r2d2, filters=(96, 192, 384, 512)),
        {"cifar_fs": ("65.3", "79.4")},
    ),
    "r2d2-64": (r2d2, {}),
    "pretrained-centroid": (functools.partial(head, learner="SimpleShot", centre=False), {}),
    "pretrained-ridge": (functools.partial(head, learner="R2D2"), {}),
    "pretrained-svm": (functools.partial(head, learner="MetaOptNet"), {}),
    "pretrained-logistic": (functools.partial(head, learner="LogisticRegression"), {}),
    "pretrained-prototypical": (
        functools.partial(
            on_episodes,
            learner="PrototypicalNetwork",
            ways=10,
            arguments=COSINE,
            queries=5,
            pretrained=True,
        ),
        {},
    ),
    "pretrained-r2d2": (functools.partial(r2d2, pretrained=True), {}),
    "pretrained-maml": (functools.partial(maml, pretrained=True), {}),
}


def names() -> list[str]:
    return [f"{method}:5w{shots}s" for method in METHODS for shots in SHOTS]


def published(benchmark: str, name: str) -> tuple[Row, str]:
    """Return the settings and the paper's score of a row."""
    method, _, setting = name.partition(":")
    number = [f"5w{shots}s" for shots in SHOTS].index(setting)
    settings, scores = METHODS[method]
    return settings(SHOTS[number]), scores.get(benchmark, NOT_PUBLISHED)[number]


class Clock:
    """Tells the time since it was last asked."""

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def lap(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return self.last - before


class Budget(keras.callbacks.Callback):
    """Trains for so many seconds, and lets the learning rate fall to 0 along a cosine meanwhile.

    How much was used is in the states of the training, so that one that goes on has the rest.
    """

    def __init__(self, seconds: float, learning_rate: float) -> None:
        super().__init__()
        self.seconds, self.learning_rate = seconds, learning_rate
        self.used = 0.0
        self.clock = Clock()

    # Not behind a step, where Keras would wait for its results.
    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.used += self.clock.lap()
        share = min(1.0, self.used / self.seconds)
        rate = self.learning_rate * (1 + math.cos(math.pi * share)) / 2
        self.model.optimizer.learning_rate.assign(rate)
        if share == 1.0:
            self.model.stop_training = True


@functools.cache
def parts(benchmark: str, data_dir: str) -> Any:
    return tfmeta.data.load(benchmark, data_dir)


def learner_of(row: Row, encoder: Any) -> Any:
    """Return the learner, ready for `fit`."""
    learner = getattr(tfmeta, row.learner)(encoder, **row.arguments)
    learner.compile(
        keras.optimizers.Adam(row.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return learner


def pretrained_network(data: Any, filters: Any, seconds: float, states: pathlib.Path) -> Any:
    """Return a conv4 that was trained as a classifier for so long, and the steps and seconds."""
    train, validation, _ = data
    network = tfmeta.models.conv4(train.example_shape, filters=filters)
    sgd = keras.optimizers.SGD(PRETRAINING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    budget = Budget(seconds, PRETRAINING_RATE)
    tfmeta.pretrain(
        network,
        train,
        MOST_EPOCHS,
        optimizer=sgd,
        augmentation=CHANGES,
        validation=tfmeta.data.EpisodeSampler(validation, **WATCHED),
        validation_episodes=WATCHED_EPISODES,
        callbacks=[budget, tfmeta.callbacks.SaveState(states, SAVE_EVERY, keep=1)],
        verbose=2,
    )
    return network, {"pretraining": {"steps": int(sgd.iterations), "seconds": budget.used}}


def with_outputs(network: Any, row: Row) -> Any:
    """Return the network with embeddings of length 1, or an output for each way, where asked."""
    if row.unit:
        return keras.Model(network.inputs, keras.layers.UnitNormalization()(network.outputs[0]))
    if row.learner != "MAML":
        return network
    # As `tfmeta train` does: behind good features, random weights are in the way.
    initializer = "zeros" if row.pretrained else "glorot_uniform"
    logits = keras.layers.Dense(row.ways, kernel_initializer=initializer, name="logits")
    return keras.Model(network.inputs, logits(network.outputs[0]))


def trained(
    row: Row, shots: int, data: Any, seconds: float, states: pathlib.Path, name: str
) -> tuple[Any, dict[str, Any]]:
    """Return the learner of a row, trained for so long, and how that went.

    Args:
        row: What to train.
        shots: How many support examples each class has.
        data: The parts of the benchmark.
        seconds: For the training, with what was trained before.
        states: The folder of the states of all rows' trainings, which they go on from.
        name: Of the row's own training.
    """
    train = data[0]
    how: dict[str, Any] = {}
    if row.pretrained:
        share, seconds = PRETRAINING * seconds, (1 - PRETRAINING) * seconds
        # All rows with a pretrained network have the same one, which is trained once.
        network, how = pretrained_network(data, row.filters, share, states / "pretrained")
    else:
        network = tfmeta.models.conv4(train.example_shape, filters=row.filters)
    learner = learner_of(row, with_outputs(network, row))
    if not row.tasks:
        return learner, {**how, "steps": 0, "seconds": 0.0}
    budget = Budget(seconds, row.learning_rate)
    save = tfmeta.callbacks.SaveState(states / name, SAVE_EVERY, keep=1)
    sampler = tfmeta.data.EpisodeSampler(train, row.ways, shots, row.queries, augmentation=CHANGES)
    history = learner.fit(
        sampler.dataset(row.tasks, start=save.step),
        steps_per_epoch=STEPS_OF_EPOCH,
        epochs=MOST_EPOCHS,
        callbacks=[budget, save],
        verbose=2,
    )
    last = {key: values[-1] for key, values in history.history.items() if values}
    steps = int(learner.optimizer.iterations)
    return learner, {**how, "steps": steps, "seconds": budget.used, "training": last}


def row(
    benchmark: str,
    name: str,
    data_dir: str,
    minutes: float,
    episodes: int,
    states: pathlib.Path,
) -> dict[str, Any]:
    """Train, keep and score one row; what was begun in `states` goes on."""
    settings, _ = published(benchmark, name)
    shots = int(name[-2])
    data = parts(benchmark, data_dir)
    keras.utils.set_random_seed(0)
    result: dict[str, Any] = {"row": name, "minutes": minutes}
    folder, training = states / benchmark, name.replace(":", "-")
    learner, how = trained(settings, shots, data, 60 * minutes, folder, training)
    test = tfmeta.data.EpisodeSampler(data[2], 5, shots, TEST_QUERIES, seed=1)
    scores = scored(learner, test, episodes, data[0], data[2])
    # Heads that were not trained have their weights only now.
    learner.save(folder / f"{training}.keras")
    return {
        **result,
        **how,
        **scores,
        "settings": json.loads(json.dumps(dataclasses.asdict(settings))),
    }


def report(benchmark: str, rows: list[dict[str, Any]]) -> None:
    """Print ours beside the paper's."""
    cells = []
    for each in rows:
        _, score = published(benchmark, each["row"])
        ours = "diverged" if "failed" in each else f"{each['accuracy']:.2f} ± {each['ci95']:.2f}"
        cells.append([each["row"], ours, score, f"{each['steps']:,}", f"{each['seconds']:.0f}"])
    lines.table(" row | ours | published | steps done | seconds ", cells)
