"""From the settings of a run to a trained learner."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta import learner_arguments, plots, unknown
from tfmeta.algorithms import FineTune
from tfmeta.algorithms.embedding_learner import EmbeddingLearner
from tfmeta.data import Augmentation, ClassDataset, EpisodeSampler
from tfmeta.distribution import check_alike, digest, workers_of
from tfmeta.files import replacing
from tfmeta.history import as_keras_has_it
from tfmeta.inner_rates import suggest_inner_rate
from tfmeta.meta_learner import MetaLearner
from tfmeta.networks import Network, new_network
from tfmeta.pretraining import pretrain
from tfmeta.run_data import SMALLEST_FOLDER, check_ways, classes_of_sources
from tfmeta.runs import Run, Settings, check_pretraining
from tfmeta.saying import say
from tfmeta.states import SaveState, newest

# Settings that are arguments of a learner, of those learners that have them.
OWN_SETTINGS = (
    "inner_learning_rate",
    "inner_steps",
    "evaluation_steps",
    "batch_norm",
    "distance",
)


def arguments_for(settings: Settings) -> dict[str, Any]:
    """Return the arguments that a run's learner is made with, besides its network."""
    known = learner_arguments.arguments_of(settings.algorithm)
    own = {name: getattr(settings, name) for name in OWN_SETTINGS if name in known}
    # What is not settled is as the learner has it.
    found: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    # Cosines lie in [-1, 1]: too narrow for logits, unless a temperature widens them.
    if found.get("distance") == "cosine":
        found |= {"temperature": 10.0, "learn_temperature": True}
    return {**found, **settings.arguments}


def new_learner(
    settings: Settings, example_shape: tuple[int, ...], network: Network | None = None
) -> MetaLearner:
    """Return a learner, compiled, of a network, or of a new one for images of this shape."""
    if network is None:
        network = new_network(settings, example_shape)
    if settings.freeze:
        network.freeze()
    learner = learner_arguments.make(settings.algorithm, network.whole, arguments_for(settings))
    if settings.fixed_ways and settings.trained_before:
        _begin_even(learner)
    learner.compile(
        optimizer=_optimizer(settings),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return learner


def _begin_even(learner: Any) -> None:
    """Let a head that the inner loop adapts begin at zero, with all classes as likely.

    Behind features that tell classes apart, random weights are in the way; from zero, the first
    inner step makes a class's weights the mean of its features, less that of all. A head that is
    not adapted, as BOIL's and CAVIA's, stays random: at zero no gradient would pass it to the rest.
    """
    kernel = learner.model.layers[-1].kernel
    # The model's weights come first; some learners have more behind them.
    weights = zip(learner.model.trainable_variables, learner.chosen(), strict=False)
    if any(adapted for variable, adapted in weights if variable is kernel):
        kernel.assign(keras.ops.zeros_like(kernel))


def _optimizer(settings: Settings) -> keras.optimizers.Optimizer:
    """Return Adam; for Reptile the published rule, whose rate is the learner's own."""
    if settings.algorithm == "reptile":
        return keras.optimizers.SGD(1.0)
    rate: Any = settings.learning_rate
    if settings.learning_rate_halving:
        rate = keras.optimizers.schedules.ExponentialDecay(
            rate, settings.learning_rate_halving, 0.5, staircase=True
        )
    return keras.optimizers.Adam(rate)


def trains_over_episodes(learner: MetaLearner, settings: Settings, shape: tuple[int, ...]) -> bool:
    """Return whether `fit` has something to learn of episodes.

    Args:
        learner: As `new_learner` returns it.
        settings: The settings of the run.
        shape: Of one image.
    """
    if isinstance(learner, FineTune):
        return False
    if isinstance(learner, EmbeddingLearner) and (learner.gathers or not learner.trains):
        return learner.gathers
    if not learner.model.trainable_variables:  # weights of its own come when it is built
        _build(learner, settings, shape)
    return bool(learner.trainable_variables)


def check_trained_before(settings: Settings) -> None:
    """Raise a `ValueError` unless the network of a run was trained before, or will have been."""
    if not settings.trained_before:
        raise ValueError(
            f"{settings.algorithm} has nothing to train over episodes, so that its network must "
            "have learnt something before. Received: an untrained network; --pretrain-epochs "
            "trains it as an ordinary classifier, and --network takes the file of a trained one"
        )


def _build(learner: MetaLearner, settings: Settings, shape: tuple[int, ...]) -> None:
    """Make the weights that a learner has of its own, if that was not done."""
    if not learner.built:
        n = settings.ways * settings.shots
        learner.build({"support_x": (1, n, *shape), "support_y": (1, n)})


def with_suggested_rate(
    settings: Settings,
    parts: tuple[ClassDataset, ...],
    network: Network | None = None,
    *,
    verbose: bool = True,
) -> Settings:
    """Return settings with the inner learning rate that suits the learner before its training.

    Training episodes tell it. Where the network is untrained, none of their classes has been seen,
    so that those of validation would tell no more; behind a network that was pretrained on these
    classes, they are the ones that the inner loop will meet in training.

    Args:
        settings: The settings of a run.
        parts: What `run_data.load_data` returned.
        network: The one that the learner begins with; by default a new one.
        verbose: Whether to say what was found.
    """
    if verbose:
        say("Looking for the inner learning rate …")
    learner: Any = new_learner(settings, parts[0].example_shape, network)
    found = suggest_inner_rate(learner, training_sampler(settings, parts[0]), verbose=verbose)
    # What is made for the training has the names that it has without this.
    keras.utils.clear_session(free_memory=False)
    if verbose:
        print(
            f"Inner learning rate {found.rate:g}, by the query loss of {found.losses.shape[1]} "
            "training episodes; --inner-learning-rate takes another."
        )
    return dataclasses.replace(settings, inner_learning_rate=found.rate)


def training_sampler(settings: Settings, dataset: ClassDataset) -> EpisodeSampler:
    """Return the sampler of the episodes that a run is trained on."""
    check_ways(settings, dataset, settings.ways)
    return EpisodeSampler(
        dataset,
        settings.ways,
        settings.shots,
        settings.queries,
        settings.seed,
        **_drawn_as(settings),
    )


def _drawn_as(settings: Settings) -> dict[str, Any]:
    """Return how the classes of an episode are drawn: each episode is of one source."""
    return {
        "random_rotation": settings.random_rotation,
        "within": "group" if settings.also else None,
    }


def evaluation_sampler(
    settings: Settings,
    dataset: ClassDataset,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    seed: int = 0,
) -> EpisodeSampler:
    """Return a sampler of episodes to evaluate a learner on.

    What is not given is as in training, but for the ways of a learner that takes any number:
    5, or as many as there are classes.

    Raises:
        ValueError: If `ways` is not what the network was trained with, or there are too few
            classes or examples.
    """
    count = classes_of_sources(settings, dataset)
    small = min(count, key=count.__getitem__)
    fewest = count[small]
    if fewest < 2:
        raise ValueError(
            "`dataset` must have at least 2 classes, because with one every answer is right. "
            f"Received: {fewest} class of {small!r}. A folder of images "
            f"needs {SMALLEST_FOLDER} classes, for each part to have 2; --validation-episodes 0 "
            "trains without validation."
        )
    if ways is None:
        ways = settings.ways if settings.fixed_ways else min(5, fewest)
    elif settings.fixed_ways and ways != settings.ways:
        raise ValueError(
            f"`ways` must be {settings.ways}, the number of outputs of the network that was "
            f"trained with {settings.algorithm}. Received: ways={ways}"
        )
    check_ways(settings, dataset, ways)
    return EpisodeSampler(
        dataset,
        ways,
        shots or settings.shots,
        queries or settings.queries,
        seed,
        **_drawn_as(settings),
    )


def threshold_for(
    settings: Settings,
    learner: MetaLearner,
    dataset: ClassDataset,
    ways: int,
    shots: int,
    *,
    false_acceptance: float | None,
    false_rejection: float | None,
    episodes: int = 300,
    verbose: bool = True,
) -> unknown.Threshold:
    """Return from which score on a task's images are of one of its classes.

    It is fitted on episodes of as many classes as the task shows, with as many examples, and of up
    to as many others.

    Args:
        settings: Of the run.
        learner: The trained learner.
        dataset: Validation classes.
        ways: How many classes the task shows.
        shots: How many examples of each.
        false_acceptance: The rate to keep, as for `tfmeta.unknown.fit`; or
        false_rejection: this one.
        episodes: How many episodes it is fitted on.
        verbose: Whether to show a progress bar.

    Raises:
        ValueError: If there are too few validation classes, or examples of one.
    """
    count = classes_of_sources(settings, dataset)
    enough = [classes for classes in count.values() if classes > ways]
    if not enough:
        large = max(count, key=count.__getitem__)
        raise ValueError(
            "When to answer 'unknown' is found with validation classes, of which there must be "
            f"more than are shown: {ways + 1} at least. Received: {count[large]}, "
            f"of {large!r}"
        )
    sampler = EpisodeSampler(
        dataset,
        min(2 * ways, *enough),
        shots,
        settings.queries,
        settings.seed,
        **_drawn_as(settings),
    )
    return unknown.fit(
        learner,
        sampler,
        episodes,
        support_ways=ways,
        false_acceptance=false_acceptance,
        false_rejection=false_rejection,
        verbose=verbose,
    )


class SaveEpoch(keras.callbacks.Callback):
    """Write history, model and learning curve at the end of each epoch.

    Unlike Keras's `CSVLogger`, it holds no file open that an interruption could cut short. The
    model comes after its row: an epoch whose model was not saved is trained again, and its row
    replaced. After an epoch whose loss is not finite it is not called; see `tfmeta.finite_loss`.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Have Keras's history what was logged before, where a run goes on from its model."""
        history = self.model.history
        if epoch and not history.epoch:
            rows = self.run.history()[:epoch]
            history.epoch = [int(row["epoch"]) - 1 for row in rows]
            names = [name for name in rows[0] if name != "epoch"]
            history.history = {name: [float(row[name]) for row in rows] for name in names}

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Replace the files of the run by those of this epoch."""
        self.run.check_still_there()
        rows: list[dict[str, Any]] = [r for r in self.run.history() if int(r["epoch"]) <= epoch]
        rows.append({"epoch": epoch + 1, **(logs or {})})  # as on the screen
        check_columns(self.run, rows[0], rows[-1])
        self.run.write_history(rows)
        save_model(self.run, self.model)
        draw_curve(self.run, rows)


def save_model(run: Run, learner: MetaLearner) -> None:
    """Write the model of a run."""
    with replacing(run.model_file) as beside:
        learner.save(beside)


def draw_curve(run: Run, rows: list[dict[str, Any]]) -> None:
    """Write the learning curve of a run, of its history."""
    plots.learning_curve(as_keras_has_it(rows), run.curve_file)


def check_columns(run: Run, columns: Iterable[str], needed: Iterable[str]) -> None:
    """Raise a `ValueError` unless the history of a run has the columns that will be logged."""
    if {*columns} != {*needed}:
        raise ValueError(
            f"'{run.history_file}' is damaged: its columns must be {', '.join(needed)}, as what is "
            f"logged. Received: {', '.join(columns)}"
        )


def check_history(run: Run, settings: Settings, learner: MetaLearner, epochs: int) -> None:
    """Raise unless the history of a run that is resumed has what the epochs before have logged.

    Raises:
        ValueError: If it is damaged, or has fewer epochs than were finished.
    """
    rows = run.history()
    if len(rows) < epochs:
        raise ValueError(
            f"'{run.history_file}' must have a row for each epoch that was finished, {epochs}. "
            f"Received: {len(rows)} rows. Put it back, or begin anew with --overwrite"
        )
    if rows:
        names = ["accuracy", "loss"]
        watched = [f"val_{name}" for name in names] if settings.validation_episodes else []
        # Some learners have metrics of their own, as MAML++ the number of steps.
        own = {metric.name for metric in learner.metrics} - {*names}
        others = [name for name in rows[0] if name.removeprefix("val_") in own]
        check_columns(run, rows[0], ["epoch", *names, *watched, *others])


def episodes(
    settings: Settings, parts: tuple[ClassDataset, ...], start: int = 0, replicas: int = 1
) -> tuple[tf.data.Dataset, tf.data.Dataset | None]:
    """Return the meta-batches from `start` on, and the episodes of validation, if there are any.

    Batch number `n` is a pure function of the seed and `n`; the episodes of validation are the same
    after each epoch, so that epochs compare. Several replicas score as many of them at once.

    Raises:
        ValueError: If the replicas cannot share them out evenly.
    """
    sampler = training_sampler(settings, parts[0])
    validation = None
    if settings.validation_episodes:
        watched = evaluation_sampler(settings, parts[1], seed=settings.seed)
        if settings.validation_episodes % replicas:
            raise ValueError(
                f"`validation_episodes` must be a multiple of the number of replicas, {replicas}. "
                f"Received: validation_episodes={settings.validation_episodes}"
            )
        validation = watched.dataset().take(settings.validation_episodes)
        if replicas > 1:
            validation = validation.batch(replicas, drop_remainder=True).map(
                lambda *batch: tf.nest.map_structure(lambda x: tf.squeeze(x, 1), batch)
            )
    return sampler.dataset(settings.meta_batch_size, start=start), validation


def pretrained(
    settings: Settings,
    run: Run,
    parts: tuple[ClassDataset, ...],
    save_every: int = 100,
    verbose: bool = True,
) -> Network:
    """Return a network whose encoder was trained as a classifier of the training classes.

    It goes on from the states in `run.pretraining`, of which the last one stays there. Images are
    cropped, and those in colour are flipped: drawings in one colour, letters say, would be others.
    """
    network = new_network(settings, parts[0].example_shape)
    height, width, channels = parts[0].example_shape
    watched = None
    if settings.validation_episodes:
        watched = evaluation_sampler(settings, parts[1], seed=settings.seed)
    classes = parts[0].with_rotations() if settings.random_rotation else parts[0]
    if verbose:
        print(
            f"Pretraining {settings.network} as a classifier of {classes.num_classes} classes; "
            "val_accuracy is of the nearest centroid in episodes."
        )
    pretrain(
        network.encoder,
        classes,
        settings.pretrain_epochs,
        augmentation=Augmentation(flip=channels > 2, crop=min(height, width) // 8),
        validation=watched,
        validation_episodes=max(1, settings.validation_episodes),
        seed=settings.seed,
        callbacks=[SaveState(run.pretraining, save_every, keep=1)],
        verbose="auto" if verbose else 0,
    )
    return network


def where_it_goes_on(settings: Settings, run: Run, step: int) -> str:
    """Say where a run is continued, in words.

    Args:
        settings: Those that it is continued with.
        run: Its folder.
        step: How many steps were done.
    """
    epoch, done = divmod(step, settings.steps)
    if step and epoch >= settings.epochs:
        return f"The run is finished: {epoch} of {settings.epochs} epochs are done."
    if step:
        return (
            f"Going on in epoch {epoch + 1}/{settings.epochs}, after {done} of {settings.steps} "
            "of its steps."
        )
    if settings.pretrain_epochs and (state := newest(run.pretraining)) is not None:
        return f"Going on with the pretraining, after step {state.step}."
    return "Nothing of the training was saved yet: it begins with its first step."


@contextlib.contextmanager
def together(
    strategy: Any, settings: Settings, run: Run, parts: tuple[ClassDataset, ...]
) -> Iterator[Run]:
    """Give the folder that this worker writes to, where all workers are to train the same.

    All must take part when a state or a model is saved, as TensorFlow wants it, but one is to write
    it. So all but the first one write to a copy of the run's folder, which goes at the end.

    Args:
        strategy: Of `tf.distribute`.
        settings: The settings of the run.
        run: Its folder, which all workers must see.
        parts: What `run_data.load_data` returned.

    Raises:
        ValueError: On every worker, if one has other settings, other data or another folder.
    """
    state = newest(run.states)
    written = [file for file in (run.settings_file, run.history_file) if file.is_file()]
    values = dataclasses.asdict(settings)
    # Each worker may have its own place for the data, which are compared by themselves.
    del values["data"], values["data_options"], values["also"]
    digests = {
        "settings": digest(values),
        "data": digest(*(x for part in parts for x in _samples(part))),
        "run folder": digest(state and state.step, [file.read_bytes() for file in written]),
    }
    with tempfile.TemporaryDirectory(prefix="tfmeta-worker-") as scratch:
        if workers_of(strategy)[0]:
            run = (
                Run(shutil.copytree(run.path, scratch, dirs_exist_ok=True))
                if written
                else Run(scratch)
            )
        check_alike(strategy, digests)
        yield run


def _samples(part: ClassDataset) -> list[Any]:
    """Return what tells two data sets apart: the index of classes, and some of their examples."""
    # `part.examples` may be shared with other parts, and hold more or less than `len(part)`.
    spread = np.linspace(0, len(part) - 1, min(len(part), 256)).astype(int)
    some = np.asarray(part.class_indices)[spread]
    examples = [np.asarray(part.examples[i]) for i in some]
    index = [part.class_offsets, part.class_indices, part.quarter_turns]
    return [list(part.class_names), *map(np.asarray, index), *examples]


def train(
    settings: Settings,
    run: Run,
    parts: tuple[ClassDataset, ...],
    *,
    resume: bool = False,
    save_every: int = 100,
    verbose: bool = True,
    strategy: Any = None,
) -> None:
    """Train up to `settings.epochs`, after `settings.pretrain_epochs` of the encoder alone.

    A run that was interrupted and resumed ends as one that was not: the same weights and history.
    One that is finished gets its model again, if that is not there. The folder is this process's
    alone until the end.

    Args:
        settings: The settings of the run.
        run: Its folder.
        parts: What `run_data.load_data` returned.
        resume: Whether to go on, from the newest state in the folder, or where none is whole from
            the model of the last finished epoch.
        save_every: Steps between two states; there is one at the end of each epoch as well.
        verbose: Whether to show a progress bar.
        strategy: Of `tf.distribute`, or `None`; see `together`.

    Raises:
        BlockingIOError: If another process writes to the folder.
        FileNotFoundError: If the folder was removed while this trained.
        Stopped: If SIGINT or SIGTERM came; everything is saved.
        ValueError: If training diverges, the state is of other settings, or a file is damaged.
    """
    with run.alone():
        _train(settings, run, parts, resume, save_every, verbose, strategy)


def _train(
    settings: Settings,
    run: Run,
    parts: tuple[ClassDataset, ...],
    resume: bool,
    save_every: int,
    verbose: bool,
    strategy: Any,
) -> None:
    strategy = strategy or tf.distribute.get_strategy()
    save = SaveState(run.states, save_every)
    step = save.step if resume else 0
    shape = parts[0].example_shape
    with strategy.scope():
        if resume and not step and run.model_file.is_file():
            learner = run.learner()
            step = int(learner.optimizer.iterations.numpy())
        else:
            learner = new_learner(settings, shape)
        over_episodes = trains_over_episodes(learner, settings, shape)
    if not over_episodes:
        check_trained_before(settings)
    if not step:
        check_pretraining(settings, workers_of(strategy)[1])
    if resume and verbose and over_episodes:
        say(where_it_goes_on(settings, run, step))
    # Draws a batch, which may fail: before the files of an older run go.
    batches, validation = episodes(settings, parts, step, strategy.num_replicas_in_sync)
    if step:
        check_history(run, settings, learner, step // settings.steps)
        run.write_settings(settings)
    else:
        run.start(settings, keep_pretraining=resume)
        if settings.pretrain_epochs:
            keras.utils.clear_session()  # layers have the names that they have without this
            with strategy.scope():
                network = pretrained(settings, run, parts, save_every, verbose)
                if settings.inner_learning_rate is None:
                    settings = with_suggested_rate(settings, parts, network, verbose=verbose)
                    run.write_settings(settings)
                learner = new_learner(settings, shape, network)
    if not over_episodes:
        _keep_as_it_is(settings, run, learner, shape, validation, verbose)
        return
    if verbose and step < settings.epochs * settings.steps:
        say("Compiling the training step …")
    learner.fit(
        batches,
        steps_per_epoch=settings.steps,
        initial_epoch=step // settings.steps,
        epochs=settings.epochs,
        validation_data=validation,
        callbacks=[SaveEpoch(run), save],
        verbose="auto" if verbose else 0,
    )
    run.check_still_there()
    if not run.model_file.is_file():  # of a run that was finished, whose state is all there is
        save_model(run, learner)
    if not run.curve_file.is_file():
        draw_curve(run, run.history())


def _keep_as_it_is(
    settings: Settings,
    run: Run,
    learner: MetaLearner,
    shape: tuple[int, ...],
    validation: Any,
    verbose: bool,
) -> None:
    """Write the model of a learner that has nothing to learn of episodes, scored on validation."""
    if verbose:
        say(
            f"{settings.algorithm} has nothing to train over episodes: its network stays as it is, "
            "and is scored once."
        )
    if validation is not None:
        found = learner.evaluate(validation, return_dict=True, verbose="auto" if verbose else 0)
        run.write_history([{"epoch": 1, **{f"val_{name}": x for name, x in found.items()}}])
    _build(learner, settings, shape)
    # Keras reads no file of a model whose optimizer knows no weights.
    learner.optimizer.build(learner.trainable_variables)
    run.check_still_there()
    save_model(run, learner)
