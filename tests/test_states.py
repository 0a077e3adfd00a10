"""States of a training: what goes on from one is what was never interrupted."""

from __future__ import annotations

import errno
import functools
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tfmeta
from tests.learners import LEARNERS, QUERIES, SHOTS, WAYS
from tfmeta.states import SaveState, State, Stopped, newest
from tfmeta.states.settings import check_settings

STEPS, EPOCHS = 5, 4
RNG = np.random.default_rng(0)
CLASSES = tfmeta.data.ClassDataset(
    RNG.integers(0, 256, [60, 4, 4, 1], np.uint8), np.repeat(np.arange(6), 10)
)
SAMPLER = tfmeta.data.EpisodeSampler(CLASSES, ways=3, shots=1, queries=2, seed=3)
VALIDATION = tfmeta.data.EpisodeSampler(CLASSES, ways=3, shots=1, queries=2, seed=4)


def new_learner(units: int = 8, **options: Any) -> tfmeta.PrototypicalNetwork:
    """A learner that is traced fast, with statistics, random numbers and a learned temperature."""
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential(
        [
            keras.Input([4, 4, 1]),
            keras.layers.Flatten(),
            keras.layers.Dense(units),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
        ]
    )
    options = {"distance": "cosine", "temperature": 10.0, "learn_temperature": True, **options}
    learner = tfmeta.PrototypicalNetwork(encoder, **options)
    learner.compile(
        keras.optimizers.Adam(0.03, clipnorm=options.get("clip")),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return learner


class Raise(keras.callbacks.Callback):
    """Raises when so many batches have come, as if the process had been killed."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = iter(range(batches - 1))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if next(self.left, None) is None:
            raise RuntimeError("killed")


class Signal(keras.callbacks.Callback):
    """Sends this process signals while a method of Keras's is called for the nth time."""

    def __init__(self, name: str, calls: int, *signals: int) -> None:
        super().__init__()
        self.left = iter(range(calls - 1))
        self.signals = signals
        setattr(self, name, self.send)

    def send(self, *_: Any, **__: Any) -> None:
        if next(self.left, None) is None:
            for number in self.signals:
                os.kill(os.getpid(), number)


@pytest.fixture
def heeded() -> Iterator[None]:
    """SIGINT as in a terminal: a shell has what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def others() -> list[keras.callbacks.Callback]:
    """Callbacks with something to count, of which some change the training."""
    return [
        keras.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=0.1),
        # Depends on the rate that was; Keras calls it again where an epoch is continued.
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
    ]


@functools.cache
def the_learner() -> Any:
    """One learner for many trainings, because it is traced once, and its first values."""
    learner = new_learner()
    learner.optimizer.build(learner.trainable_variables)
    variables = [*learner.variables, *learner.optimizer.variables]
    return learner, variables, [variable.numpy() for variable in variables]


def train(save: SaveState, *callbacks: Any, learner: Any = None, **options: Any) -> Any:
    """Train, a learner with its first values as after `new_learner`, and return what came of it."""
    if learner is None:
        learner, variables, first = the_learner()
        for variable, value in zip(variables, first, strict=True):
            variable.assign(value)
    options = {"epochs": EPOCHS, "steps_per_epoch": STEPS, **options}
    history = learner.fit(
        SAMPLER.dataset(2, start=save.step),
        validation_data=VALIDATION.dataset(1).take(2),
        callbacks=[*callbacks, save],
        verbose=0,
        **options,
    )
    variables = [*learner.variables, *learner.optimizer.variables]
    return [variable.numpy() for variable in variables], history.history


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert one[1] == other[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(SaveState(tmp_path_factory.mktemp("whole")), *others())


@pytest.fixture(scope="module")
def two_states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files after 6 and 7 steps, the second in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(RuntimeError, match="killed"):
        train(SaveState(folder, every=1, keep=2), *others(), Raise(8))
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    assert list(files) == ["state-000000000006", "state-000000000007"]
    return files


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# --- Going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "kills"), [(1, (3, 3)), (2, (8, 5)), (None, (7,))])
def test_interrupted_and_continued_is_undisturbed(
    every: int | None, kills: tuple[int, ...], undisturbed: Any, tmp_path: Path
) -> None:
    for batches in kills:
        with pytest.raises(RuntimeError, match="killed"):
            train(SaveState(tmp_path, every), *others(), Raise(batches))
    assert_same(train(SaveState(tmp_path, every), *others(), learner=new_learner()), undisturbed)


def test_training_that_is_finished_stays_as_it_is(undisturbed: Any, tmp_path: Path) -> None:
    assert_same(train(SaveState(tmp_path), *others()), undisturbed)
    files = [(file, file.stat().st_mtime_ns) for file in sorted(tmp_path.iterdir())]
    learner = new_learner()
    assert_same(train(SaveState(tmp_path), *others(), learner=learner), undisturbed)
    assert [(file, file.stat().st_mtime_ns) for file in sorted(tmp_path.iterdir())] == files
    # And a later training of this learner is not told to begin elsewhere.
    assert learner.fit(SAMPLER.dataset(2), steps_per_epoch=1, verbose=0).epoch == [0]


def test_more_epochs_go_on_from_the_last(undisturbed: Any, tmp_path: Path) -> None:
    train(SaveState(tmp_path), *others(), epochs=2)
    assert_same(train(SaveState(tmp_path), *others()), undisturbed)


def test_training_that_stopped_by_itself_has_no_more_epochs(tmp_path: Path) -> None:
    def stopping() -> Any:
        return keras.callbacks.EarlyStopping("val_loss", patience=1, baseline=0.0)

    learner = train(SaveState(tmp_path), stopping())
    assert len(learner[1]["loss"]) == 2
    assert_same(train(SaveState(tmp_path), stopping()), learner)


def test_restore_without_training(two_states: dict[str, bytes], tmp_path: Path) -> None:
    state = newest(put(tmp_path, two_states))
    assert state is not None
    assert (state.step, state.epoch, state.step_of_epoch) == (7, 1, 2)
    learner = new_learner()
    learner.optimizer.build(learner.trainable_variables)
    state.restore(learner)
    assert int(learner.optimizer.iterations) == 7


def test_a_callback_that_is_missing_is_said(
    two_states: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, two_states)
    with caplog.at_level(logging.WARNING, "tfmeta"):
        train(SaveState(tmp_path), others()[0])
    assert "has the state of a callback ReduceLROnPlateau, which is not among" in caplog.text
    assert "EarlyStopping" not in caplog.text


def test_values_of_callbacks_come_back() -> None:
    value = {
        "numbers": [1, 0.1, True, None, np.float32(0.3), float("-inf")],
        3: (np.arange(6, dtype=np.float16).reshape(2, 3), "text"),
        "array": {"nothing": []},
    }
    arrays: list[Any] = []
    packed = tfmeta.states.callbacks.packed(value, arrays)
    back = tfmeta.states.callbacks.unpacked(packed, arrays.__getitem__)
    assert back["numbers"] == value["numbers"]
    assert type(back["numbers"][4]) is np.float32
    np.testing.assert_array_equal(back[3][0], value[3][0])
    assert back[3][0].dtype == np.float16
    assert back[3][0].flags.writeable
    assert back[3][1:] == ("text",)
    assert back["array"] == {"nothing": []}
    for other in (print, keras.ops.less, keras, object()):
        with pytest.raises(TypeError, match="cannot be kept"):
            tfmeta.states.callbacks.packed([other], arrays)


# --- Files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "facts", "numbers", "folder"])
def test_a_damaged_state_is_never_used(
    damage: str, two_states: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, two_states)
    last = sorted(two_states)[-1]
    content = bytearray(two_states[last])
    places = {"header": 20, "facts": 200, "numbers": len(content) - 40}
    if damage in places:
        content[places[damage]] ^= 1
    elif damage == "cut":
        del content[-1]
    if damage == "folder":
        (tmp_path / last).unlink()
        (tmp_path / last).mkdir()
    else:
        (tmp_path / last).write_bytes(b"" if damage == "empty" else content)
    with caplog.at_level(logging.WARNING, "tfmeta"):
        state = newest(tmp_path)
    assert state is not None
    assert state.step == 6
    assert f"Not used, because it is damaged: '{tmp_path / last}'" in caplog.text
    assert f"The state before is used, '{state.path}'" in caplog.text


def test_training_goes_on_from_the_state_before(
    two_states: dict[str, bytes],
    undisturbed: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(tmp_path, two_states)
    last = tmp_path / sorted(two_states)[-1]
    last.write_bytes(last.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING, "tfmeta"):
        assert_same(train(SaveState(tmp_path, every=1), *others()), undisturbed)
    assert caplog.text.count("Not used") == 1


def test_where_no_state_is_whole_training_begins(
    undisturbed: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, {"state-000000000009": b"tfmeta-state 1 "})
    with caplog.at_level(logging.WARNING, "tfmeta"):
        assert_same(train(SaveState(tmp_path), *others()), undisturbed)
    assert "No state before is whole" in caplog.text


def test_a_full_disk_leaves_the_older_states(
    undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        train(SaveState(tmp_path, every=1), *others(), Raise(4))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == [f"state-{step:012d}" for step in (1, 2, 3)]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device.*those before are whole") as e:
            train(SaveState(tmp_path, every=1), *others())
    assert e.value.errno == errno.ENOSPC
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert_same(train(SaveState(tmp_path, every=1), *others()), undisturbed)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_states_are_kept_and_what_was_half_written_goes(keep: int, tmp_path: Path) -> None:
    put(tmp_path, {"notes.txt": b"mine", "state-notes": b"mine"})
    (tmp_path / ".tfmeta-0a1b2c3d").mkdir()
    (tmp_path / ".tfmeta-0a1b2c3d" / "new.state-000000000001").write_bytes(b"half")
    train(SaveState(tmp_path, every=2, keep=keep), epochs=1)
    kept = ["state-000000000004", "state-000000000005"][-keep:]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.txt", *kept, "state-notes"]


def test_what_could_not_be_removed_at_the_end_is_when_a_finished_training_is_continued(
    tmp_path: Path,
) -> None:
    """A disk may have failed after the last state was whole, and no other is written then."""
    train(SaveState(tmp_path, every=2, keep=2), epochs=1)
    kept = sorted(file.name for file in tmp_path.iterdir())
    shutil.copy(tmp_path / kept[0], tmp_path / "state-000000000001")
    train(SaveState(tmp_path, every=2, keep=2), epochs=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == kept


def test_a_loss_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    class Spoil(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 2:
                weight = self.model.trainable_variables[0]
                weight.assign(np.full(weight.shape, np.nan))

    with pytest.raises(ValueError, match=r"`loss` must be finite\. Received: loss=nan in epoch 1"):
        train(SaveState(tmp_path, every=1), Spoil(), epochs=1)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "state-000000000001",
        "state-000000000002",
    ]


# --- Signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "calls", "step", "number"),
    [
        ("on_train_batch_begin", 8, 8, signal.SIGINT),
        ("on_train_batch_begin", 8, 8, signal.SIGTERM),
        ("on_train_batch_end", 5, 4, signal.SIGINT),  # validation follows, and is not waited for
        ("on_test_batch_end", 3, 9, signal.SIGTERM),
        ("on_epoch_end", 1, 5, signal.SIGTERM),
    ],
)
@pytest.mark.usefixtures("heeded")
def test_a_signal_ends_training_with_everything_saved(
    moment: str, calls: int, step: int, number: int, undisturbed: Any, tmp_path: Path
) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped, match=f"has the state after {step} steps") as stopped:
        train(SaveState(tmp_path), *others(), Signal(moment, calls, number))
    assert stopped.value.signal == number
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    state = newest(tmp_path)
    assert state is not None
    assert state.step == step
    assert_same(train(SaveState(tmp_path), *others()), undisturbed)


@pytest.mark.usefixtures("heeded")
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    twice = Signal("on_train_batch_begin", 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as ended:
        train(SaveState(tmp_path), twice)
    assert not isinstance(ended.value, Stopped)
    assert not list(tmp_path.iterdir())


# --- Bad input ----------------------------------------------------------------------------------


def test_a_state_of_another_model_is_refused(two_states: dict[str, bytes], tmp_path: Path) -> None:
    state = newest(put(tmp_path, two_states))
    assert state is not None
    for learner, difference in (
        (new_learner(units=9), r"layers\[2\].units` must be 8 as in .*Received: .*units=9"),
        (new_learner(temperature=9.0), "`temperature` must be 10.0 .* Received: temperature=9.0"),
        (
            new_learner(distance="squared_euclidean"),
            "`distance` must be 'cosine' .*Received: distance='squared_euclidean'",
        ),
    ):
        learner.optimizer.build(learner.trainable_variables)
        before = learner.get_weights()
        with pytest.raises(ValueError, match=difference):
            state.restore(learner)
        with pytest.raises(ValueError, match=difference):
            train(SaveState(tmp_path), learner=learner)
        for a, b in zip(before, learner.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_weights_of_another_shape_are_refused(
    two_states: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a model cannot tell its settings."""
    state = newest(put(tmp_path, two_states))
    assert state is not None
    monkeypatch.setattr(tfmeta.states.state, "settings_of", lambda model: {})
    wider = new_learner(units=9)
    wider.optimizer.build(wider.trainable_variables)
    with pytest.raises(
        ValueError, match=r"differs in `weights`, number \d.*\[16, 8\] float32 in the state, .*9\]"
    ):
        state.restore(wider)
    shorter = new_learner(learn_temperature=False)
    shorter.optimizer.build(shorter.trainable_variables)
    with pytest.raises(ValueError, match=r"differs in `\w+`, number \d+: .* in the model"):
        state.restore(shorter)


def test_a_state_of_another_version_is_refused(
    two_states: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tfmeta.states.files, "FORMAT", 2)
    with pytest.raises(ValueError, match=r"must be a state of format 2.*Received: format 1"):
        newest(put(tmp_path, two_states))


def test_steps_of_an_epoch_must_stay(two_states: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`steps_per_epoch` must be 5 as in .*=6"):
        train(SaveState(put(tmp_path, two_states)), steps_per_epoch=6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "`every` must be"),
        ({"every": 1.5}, TypeError, "`every` must be"),
        ({"keep": 0}, ValueError, "`keep` must be"),
    ],
)
def test_bad_arguments(arguments: Any, error: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        SaveState(tmp_path, **arguments)


def test_bad_callbacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at most one SaveState\. Received: 2 of them"):
        train(SaveState(tmp_path), SaveState(tmp_path))
    plain = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must be given to a learner's `fit` by name"):
        plain.fit(np.ones([2, 1]), np.ones([2, 1]), callbacks=[SaveState(tmp_path)], verbose=0)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        new_learner().fit(
            SAMPLER.dataset(2).take(3).filter(lambda *_: True),
            callbacks=[SaveState(tmp_path, every=1)],
        )


# --- Every learner ------------------------------------------------------------------------------

# Draws of its training come from TensorFlow's own generator, whose place cannot be kept.
NOT_REPEATED = {"AmortizedBayesianMAML"}
FAST = {"PrototypicalNetwork"}


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in LEARNERS]
)
def test_every_learner_goes_on(name: str, tmp_path: Path) -> None:
    """By `SaveState` to the bit, and by Keras's `BackupAndRestore` between two epochs.

    One learner stands for several processes: its variables are spoilt in between. What it was
    compiled to is traced once.
    """
    images = np.random.default_rng(0).integers(0, 256, [60, 12, 12, 1], np.uint8)
    classes = tfmeta.data.ClassDataset(images, np.repeat(np.arange(6), 10))
    sampler = tfmeta.data.EpisodeSampler(classes, WAYS, SHOTS, QUERIES, seed=1)
    keras.utils.set_random_seed(0)
    learner = LEARNERS[name]()
    learner.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    learner.build({k: v.shape for k, v in sampler.batch(0, 2)[0].items()})
    learner.optimizer.build(learner.trainable_variables)
    variables = [*learner.variables, *learner.optimizer.variables]
    first = [variable.numpy() for variable in variables]

    def fit(start: int, *callbacks: Any) -> list[Any]:
        data = sampler.dataset(2, start=start)
        learner.fit(data, steps_per_epoch=3, epochs=2, callbacks=[*callbacks], verbose=0)
        return [variable.numpy() for variable in variables]

    def set_all(values: list[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    whole = fit(0)
    set_all(first)
    with pytest.raises(RuntimeError, match="killed"):
        fit(0, Raise(6), SaveState(tmp_path / "states", every=5))
    set_all([np.ones_like(value) for value in first])
    save = SaveState(tmp_path / "states")
    assert save.step == 5
    continued = fit(save.step, save)
    if name not in NOT_REPEATED:
        for a, b in zip(continued, whole, strict=True):
            np.testing.assert_array_equal(a, b)

    set_all(first)
    with pytest.raises(RuntimeError, match="killed"):
        fit(0, keras.callbacks.BackupAndRestore(str(tmp_path / "epochs")), Raise(5))
    set_all([np.ones_like(value) for value in first])
    continued = fit(3, keras.callbacks.BackupAndRestore(str(tmp_path / "epochs")))
    if name not in NOT_REPEATED:
        for a, b in zip(continued, whole, strict=True):
            np.testing.assert_array_equal(a, b)

    # In the middle of an epoch, it keeps the weights after the fourth step and repeats the epoch.
    set_all(first)
    learner._initial_epoch = None  # Keras leaves it behind for the next `fit`
    kept: list[Any] = []
    see = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: (
            kept.append([v.numpy() for v in variables])
            if int(learner.optimizer.iterations) == 4
            else 0
        )
    )
    backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), save_freq=2)
    with pytest.raises(RuntimeError, match="killed"):
        fit(0, see, backup, Raise(5))
    set_all([np.ones_like(value) for value in first])
    begun: list[Any] = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: begun.append(
            (batch, [v.numpy() for v in variables]) if not begun else None
        )
    )
    fit(3, keras.callbacks.BackupAndRestore(str(tmp_path / "backup"), save_freq=2), look)
    assert begun[0][0] == 0
    assert len(begun) == 3
    for a, b in zip(begun[0][1], kept[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(learner.optimizer.iterations) == 4 + 3


def test_a_state_holds_every_variable(two_states: dict[str, bytes], tmp_path: Path) -> None:
    """Also the seeds of random layers and, in an epoch, the sums of metrics."""
    state = newest(put(tmp_path, two_states))
    assert isinstance(state, State)
    names = [path.rsplit("/", 1)[-1] for path, *_ in state.facts["variables"]["weights"]]
    for name in ("kernel", "moving_mean", "seed_generator_state"):
        assert name in names
    assert "total" in [v[0].rsplit("/", 1)[-1] for v in state.facts["variables"]["metrics"]]


def test_settings_of_states_that_were_written_before() -> None:
    """`adapt` is called `adapt_layers` now, and a setting that came later is off as None."""
    path = Path("state")
    check_settings(path, {"adapt": None, "steps": 1}, {"adapt_layers": None, "steps": 1})
    check_settings(path, {"adapt": ["b"]}, {"adapt_layers": ["b"], "task_chunk": None})
    check_settings(path, {"adapt.class_name": "f"}, {"adapt_layers.class_name": "f"})
    with pytest.raises(ValueError, match="`adapt_layers` must be \\['b'\\]"):
        check_settings(path, {"adapt": ["b"]}, {"adapt_layers": ["a"]})
    with pytest.raises(ValueError, match="`task_chunk` must be nothing"):
        check_settings(path, {"steps": 1}, {"steps": 1, "task_chunk": 2})
