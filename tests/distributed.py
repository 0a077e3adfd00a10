"""What the tests of several replicas train, in this process or as a program of its own: a worker.

`python -m tests.distributed OUTPUT {devices|workers} NAMES STEPS` writes what comes of it, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfmeta
from tfmeta.distribution import strategy_of_environment, workers_of

EPOCHS, TASKS = 2, 8


def sampler(seed: int, classes: int = 12) -> tfmeta.data.EpisodeSampler:
    rng = np.random.default_rng(7)
    styles = rng.normal(size=(classes, 1, 8, 8, 1))
    images = styles + 0.7 * rng.normal(size=(classes, 6, 8, 8, 1))
    images = images.reshape(-1, 8, 8, 1).astype(np.float32)
    data = tfmeta.data.ClassDataset(images, np.arange(len(images)) // 6)
    return tfmeta.data.EpisodeSampler(data, ways=3, shots=1, queries=2, seed=seed)


def network(outputs: int | None) -> keras.Model:
    # No bias in front of a batch normalisation: its gradient is nothing but rounding, which Adam
    # would make steps of. And no kink, on the two sides of which rounding may put a number.
    layers = keras.layers
    inputs = x = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, 2, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("elu")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(outputs)(x) if outputs else x)


def learner(name: str) -> Any:
    keras.utils.set_random_seed(1)
    loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer: Any = keras.optimizers.Adam(0.01)
    made: Any
    if name == "maml":
        made = tfmeta.MAML(network(3), inner_learning_rate=0.2, inner_steps=2)
    elif name == "maml_plus_plus":
        made = tfmeta.MAMLPlusPlus(
            network(3),
            inner_learning_rate=0.2,
            inner_steps=2,
            first_order_epochs=1,
            multi_step_epochs=5,
            cosine_epochs=2,
            outer_clip_norm=0.3,
        )
    elif name == "prototypical":
        made = tfmeta.PrototypicalNetwork(network(None), "cosine", 10.0, learn_temperature=True)
    elif name == "simple_shot":
        # Its mean is that of the embeddings of all replicas.
        made = tfmeta.SimpleShot(network(None))
    elif name == "reptile":
        # Larger steps of a few examples make much of the order in which tasks are summed.
        made = tfmeta.Reptile(
            network(3), inner_learning_rate=0.05, inner_steps=3, inner_batch_size=2
        )
        optimizer = keras.optimizers.SGD(0.5)
    elif name == "sum":
        made = tfmeta.FOMAML(network(3), inner_learning_rate=0.05, inner_steps=1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        optimizer = keras.optimizers.SGD(0.002, clipnorm=1.0)
    made.compile(optimizer, loss, metrics=["accuracy"])
    return made


def trained(name: str, strategy: Any = None, steps: int = 25) -> dict[str, Any]:
    """Train on meta-batches of 8 tasks, and return all that must not depend on the strategy."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        model = learner(name)
    history = model.fit(
        sampler(0).dataset(TASKS),
        steps_per_epoch=steps,
        epochs=EPOCHS,
        validation_data=sampler(1).dataset(TASKS).take(2),
        verbose=0,
    ).history
    history["evaluate"] = model.evaluate(
        sampler(2).dataset(TASKS), steps=3, verbose=0, return_dict=True
    )
    predictions = episodes = np.zeros(0)
    if name in ("maml", "prototypical"):
        predictions = model.predict(sampler(3).dataset(TASKS).take(2), verbose=0)
        episodes = tfmeta.evaluate(model, sampler(4), 4, verbose=False).per_episode
    return {
        "history": history,
        "predictions": predictions.tolist(),
        "episodes": episodes.tolist(),
        "weights": {w.path: np.asarray(w).tolist() for w in model.weights},
    }


def refusals(strategy: Any) -> dict[str, str]:
    """Return what is said to arguments that several replicas cannot take."""
    with strategy.scope():
        model = learner("maml")
    said = {}
    inputs, targets = sampler(0).batch(0, TASKS)
    others = sampler(workers_of(strategy)[0]).dataset(TASKS)
    for what, call in {
        "fit": lambda: model.fit(sampler(0).dataset(3), steps_per_epoch=1, verbose=0),
        "episodes": lambda: model.fit(others, steps_per_epoch=1, verbose=0),
        "train_on_batch": lambda: model.train_on_batch(inputs, targets),
        "jit_compile": lambda: model.compile("sgd", "mse", jit_compile=True),
    }.items():
        try:
            call()
        except ValueError as error:
            said[what] = str(error)
    return said


class Spoil(keras.callbacks.Callback):
    """Makes a weight infinite in the second epoch, and keeps the weights of the first."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.end = copies(self.model)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations.numpy()) == 3:
            variable = self.model.trainable_variables[0]
            variable.assign(np.full(variable.shape, np.inf))


def copies(model: Any) -> list[Any]:
    """Return every replica's copy of each variable of a model and its optimizer."""
    local = model.distribute_strategy.experimental_local_results
    variables = (*model.variables, *model.optimizer.variables)
    return [np.asarray(copy) for variable in variables for copy in local(variable.value)]


def not_finite(strategy: Any) -> dict[str, Any]:
    """Return what is said to a loss that is not finite, and how many variables are not put back."""
    with strategy.scope():
        model = learner("prototypical")
    spoil, said = Spoil(), ""
    try:
        model.fit(
            sampler(0).dataset(TASKS), steps_per_epoch=2, epochs=3, callbacks=[spoil], verbose=0
        )
    except ValueError as error:
        said = str(error)
    now = copies(model)
    others = [not np.array_equal(a, b) for a, b in zip(now, spoil.end, strict=True)]
    return {"said": said, "others": sum(others), "copies": len(now)}


def keras_alone(strategy: Any) -> str:
    """Return how Keras's own `fit` fails; nothing if it does not."""
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensors((tf.ones([4, 3]), tf.ones([4, 1]))).repeat()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    try:
        model.fit(data.with_options(options), steps_per_epoch=1, verbose=0)
    except Exception as error:
        return repr(error)
    return ""


def main(output: str, kind: str, names: str, steps: int) -> None:
    done: dict[str, Any] = {}
    if kind == "devices":
        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, devices)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    else:
        strategy = strategy_of_environment()
    for name in names.split(","):
        done[name] = trained(name, strategy, steps)
    done["refusals"] = refusals(strategy)
    done["not_finite"] = not_finite(strategy)
    done["keras"] = keras_alone(strategy)
    Path(output).write_text(json.dumps(done))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
