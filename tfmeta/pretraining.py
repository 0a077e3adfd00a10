"""`pretrain`: an encoder from an ordinary classifier of all training classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfmeta.algorithms import SimpleShot
from tfmeta.checks import check_count
from tfmeta.data import Augmentation, ClassDataset
from tfmeta.data.example_batches import ExampleBatches
from tfmeta.data.normalization import Numbers
from tfmeta.data.several_inputs import check_one_input
from tfmeta.evaluation import evaluate
from tfmeta.packed import trained_by_rules, tried
from tfmeta.states import SaveState
from tfmeta.states.save_state import saving
from tfmeta.types import Array, Sampler, Tensor


def pretrain(
    encoder: keras.Model,
    dataset: ClassDataset,
    epochs: int = 30,
    *,
    batch_size: int = 64,
    optimizer: Any = None,
    augmentation: Augmentation | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    validation: Sampler | None = None,
    validation_episodes: int = 200,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: Any = "auto",
) -> keras.callbacks.History:
    """Train an encoder as the body of an ordinary classifier of all classes of a data set.

    Over the examples `(x, c)` of all classes it minimises the cross-entropy of
    `softmax(W f_θ(x) + b)` and class c, with one output for each class. W and b go afterwards; what
    stays is `f_θ` in `encoder`, for any learner to begin from.

    Accuracy on the training classes does not say what an encoder is worth for others. With
    `validation` it is scored after each epoch by episodes of classes that it is not trained on: a
    query belongs to the class whose mean is nearest, of embeddings brought to length 1
    (`SimpleShot(encoder, centre=False)`). That is `val_accuracy` in the progress bar, for
    callbacks and in the history, and at the end the encoder has the weights with which it was
    highest.

    It can be interrupted: with a `tfmeta.callbacks.SaveState` among the callbacks, the same call
    goes on from its newest state, and ends with the weights of one that was not interrupted. A call
    that has come to its end brings them back at once.

    Args:
        encoder: A built `keras.Model` `[n, ...]` → `[n, d]`; it is trained in place.
        dataset: The examples `[n, ...]` and their classes, two or more.
        epochs: How often each example is shown.
        batch_size: How many examples a step has.
        optimizer: A Keras optimizer; `None` is SGD with Nesterov's momentum 0.9, a weight decay of
            5e-4, and a rate that falls from 0.05 to 0 along a cosine.
        augmentation: Random changes of the images, or `None`. A flip is right for photographs and
            wrong for letters.
        mean, std: As for `EpisodeSampler`; give the samplers the same.
        validation: A sampler of episodes of other classes; `None` keeps the last weights.
        validation_episodes: How many episodes the score is of.
        seed: Of the order of the examples and what is augmented.
        callbacks: Those of Keras's `fit`. They see the classifier, whose `encoder` is the encoder.
        verbose: As for Keras's `fit`.

    Returns:
        Keras's history.

    Raises:
        TypeError: If `encoder` is no Keras model, `dataset` no `ClassDataset` or a number none.
        ValueError: If a number is out of range, `encoder` has no weights to train, takes other
            examples or gives no vectors, `dataset` has one class, or training diverges.
        Stopped: If SIGINT or SIGTERM came, and there is a `SaveState`; everything is saved.

    Example:
        ```python
        train, validation, test = tfmeta.data.load("cifar_fs")
        encoder = tfmeta.models.resnet12(train.example_shape)
        watched = tfmeta.data.EpisodeSampler(validation, ways=5, shots=1, queries=15)
        change = tfmeta.data.Augmentation(flip=True, crop=4)
        tfmeta.pretrain(encoder, train, epochs=60, augmentation=change, validation=watched)
        learner = tfmeta.R2D2(encoder)         # to evaluate at once, or to train over episodes
        ```

    References:
        Chen, Liu, Kira, Wang and Huang, *A Closer Look at Few-shot Classification*, ICLR 2019;
        Tian, Wang, Krishnan, Tenenbaum and Isola, *Rethinking Few-shot Image Classification: a Good
        Embedding Is All You Need?*, ECCV 2020.
    """
    _check(encoder, dataset, validation)
    check_count("epochs", epochs)
    check_count("validation_episodes", validation_episodes)
    batches = ExampleBatches(
        dataset, batch_size, seed, augmentation=augmentation, mean=mean, std=std
    )
    some = batches.batch(0)[0]["x"][:2]
    width = _width(encoder, some)
    if optimizer is None:
        rate = keras.optimizers.schedules.CosineDecay(0.05, epochs * batches.steps_per_epoch)
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    symbolic = keras.KerasTensor((None, *dataset.example_shape), some.dtype.name)
    classifier = _Classifier(encoder, symbolic, width, dataset.num_classes)
    classifier.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    given = [_Watch(encoder, validation, validation_episodes), *callbacks]
    start = next((c.step for c in given if isinstance(c, SaveState)), 0)
    data = batches.dataset(start)
    with saving(given, data) as handed:
        history = classifier.fit(
            data,
            steps_per_epoch=batches.steps_per_epoch,
            epochs=epochs,
            callbacks=handed,
            verbose=verbose,
            shuffle=False,
        )
    classifier.leave_best()
    return history


class _Classifier(keras.Model):
    """An encoder and a dense layer; the best encoder so far is among its weights.

    A state of a training has all weights, and so that encoder too.
    """

    def __init__(
        self, encoder: keras.Model, symbolic: keras.KerasTensor, width: int, classes: int
    ) -> None:
        super().__init__(name="classifier")
        self.encoder = encoder
        self.head = keras.layers.Dense(classes, name="classes")
        self.head.build((None, width))
        # Batch normalisation by rules is faster than Keras's, but not that of several replicas.
        self.by_rules = (
            self.distribute_strategy.num_replicas_in_sync == 1
            and tried(encoder, symbolic).obstacle is None
        )
        self.best = [
            self.add_weight(
                shape=w.shape, dtype=w.dtype, initializer="zeros", trainable=False, name="best"
            )
            for w in encoder.weights
        ]
        self.best_score = self.add_weight(
            shape=(),
            dtype="float32",
            initializer=keras.initializers.Constant(-1.0),
            trainable=False,
            name="best_score",
        )
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        """Return logits `[n, classes]`."""
        if training and self.by_rules:
            return self.head(trained_by_rules(self.encoder, inputs))
        return self.head(self.encoder(inputs, training=training))

    def keep_if_best(self, score: float) -> None:
        """Keep the encoder's weights if the score is higher than any before."""
        if score > float(self.best_score.numpy()):
            self.best_score.assign(score)
            for kept, weight in zip(self.best, self.encoder.weights, strict=True):
                kept.assign(weight)

    def leave_best(self) -> None:
        """Give the encoder the weights that were kept, if there was a score."""
        if float(self.best_score.numpy()) >= 0:
            for kept, weight in zip(self.best, self.encoder.weights, strict=True):
                weight.assign(kept)


class _Watch(keras.callbacks.Callback):
    """Score the encoder after each epoch, and stop where there is nothing to go on with.

    Keras hands one dictionary of logs to all callbacks, its own after those it was given.
    """

    def __init__(self, encoder: keras.Model, sampler: Sampler | None, episodes: int) -> None:
        super().__init__()
        self.learner = None if sampler is None else SimpleShot(encoder, centre=False)
        self.sampler = sampler
        self.episodes = episodes

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Add `val_accuracy` to the logs."""
        logs = {} if logs is None else logs
        if not math.isfinite(logs.get("loss", 0.0)):
            raise ValueError(
                f"Pretraining diverges: `loss` must be finite. Received: loss={logs['loss']} in "
                f"epoch {epoch + 1}. Lower the learning rate of `optimizer`."
            )
        if self.learner is not None and self.sampler is not None:
            score = evaluate(self.learner, self.sampler, self.episodes, verbose=False).mean
            logs["val_accuracy"] = score
            self.model.keep_if_best(score)


def _check(encoder: Any, dataset: Any, validation: Any) -> None:
    if not isinstance(encoder, keras.Model):
        raise TypeError(f"`encoder` must be a keras.Model. Received: {type(encoder).__name__}")
    if not isinstance(dataset, ClassDataset):
        raise TypeError(f"`dataset` must be a ClassDataset. Received: {type(dataset).__name__}")
    check_one_input(dataset)
    if dataset.dtype.kind not in "biuf":
        raise TypeError(f"`dataset` must hold numbers. Received: examples of {dataset.dtype}")
    if validation is not None and not hasattr(validation, "batch"):
        raise TypeError(
            f"`validation` must be a sampler of episodes or None. Received: {validation!r}"
        )
    if dataset.num_classes < 2:
        raise ValueError("`dataset` must have at least 2 classes to tell apart. Received: 1 class")
    if not encoder.built:
        raise ValueError("`encoder` must be built: call it once, or give it an Input")
    if not encoder.trainable_weights:
        raise ValueError(
            f"`encoder` must have weights to train. Received: a model {encoder.name!r} without"
        )
    # A subclassed model does not say what it takes.
    takes, given = getattr(encoder, "input_shape", None), dataset.example_shape
    if takes is not None and not (
        isinstance(takes, tuple)
        and len(takes) == 1 + len(given)
        and all(there in (None, here) for there, here in zip(takes[1:], given, strict=True))
    ):
        raise ValueError(
            f"`encoder` must take the data set's examples, of shape {given}. "
            f"Received: a model for {takes}"
        )


def _width(encoder: keras.Model, examples: Array) -> int:
    """Return the length of the vectors that an encoder gives."""
    gives = np.shape(encoder(examples, training=False))
    if len(gives) != 2 or gives[0] != len(examples):
        raise ValueError(
            "`encoder` must return one vector [n, d] for each example. "
            f"Received: shape={gives} for {len(examples)} examples"
        )
    return int(gives[1])
