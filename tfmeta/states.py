"""The whole state of a training, in files that are whole or not there.

A state is all that decides how a training goes on: the weights of the learner (learned rates,
counted epochs, statistics of each inner step, the seeds of random layers), those of its optimizer,
what the callbacks have counted, in the middle of an epoch the sums of the metrics, and the number
of the meta-batch that comes next, which is all that a sampler needs. A training that goes on from a
state ends with the weights and the history of one that was never interrupted.

A file is a line with the number of its format and the SHA-256 of what follows, a line of JSON, and
the numbers. It is written beside its place, flushed to the disk and then renamed, so that a process
that is killed, or a disk that is full, leaves the older files as they are. A file is used only if
its sum is right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import logging
import math
import os
import re
import signal
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.checks import check_count
from tfmeta.distribution import most_of_workers
from tfmeta.files import replacing
from tfmeta.foreign.of_keras import OF_CALLBACKS, begin_at
from tfmeta.types import Array

FORMAT = 1
_HEADER = re.compile(rb"tfmeta-state (\d{1,9}) ([0-9a-f]{64})\n")
# Truthy, so that Keras ends the epoch, and none that another callback would set.
_EPOCH_IS_DONE = "the epoch that was continued has all of its steps"
_NO_SETTINGS = {"module", "registered_name", "build_config", "shared_object_id"}
_NAMES = {"name", "inbound_nodes", "input_layers", "output_layers", "keras_history"}


class Stopped(KeyboardInterrupt):
    """Training ended after a step because of a signal, with everything saved.

    Args:
        number: The signal.
        message: What to tell.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)


@dataclasses.dataclass(frozen=True)
class State:
    """A state of a training, as a file held it.

    Attributes:
        path: The file.
        step: How many meta-batches were trained on, which is the number of the next one.
        epoch: How many epochs were finished.
        step_of_epoch: How many steps of the next epoch were done.
        facts: What the file says besides numbers.
        arrays: The numbers.
    """

    path: Path
    step: int
    epoch: int
    step_of_epoch: int
    facts: dict[str, Any]
    arrays: list[Array]

    def restore(self, model: keras.Model) -> None:
        """Give a learner the weights of this state, and its optimizer the slots.

        Args:
            model: Built and compiled as the one that was trained.

        Raises:
            ValueError: If it has other weights or other settings; nothing is changed then.
        """
        _check_settings(self, _settings(model))
        self._restore(model, ("weights", "optimizer"))

    def _restore(self, model: keras.Model, parts: tuple[str, ...]) -> None:
        variables = _variables(model)
        pairs: list[tuple[Any, Array]] = []
        start = 0
        for part, described in self.facts["variables"].items():
            values = self.arrays[start : (start := start + len(described))]
            if part in parts:
                _check_variables(self.path, part, described, variables[part])
                pairs += zip(variables[part], values, strict=True)
        for variable, value in pairs:
            variable.assign(value)


def newest(folder: str | os.PathLike[str]) -> State | None:
    """Return the newest state in a folder that is whole, or `None` if there is none.

    Files that are truncated or damaged are passed over, and the log says so.

    Args:
        folder: Where `SaveState` wrote.

    Raises:
        ValueError: If a whole file is of another version of this package.

    Example:
        ```python
        state = tfmeta.states.newest("states")
        if state is not None:
            state.restore(learner)
        ```
    """
    damaged = []
    found = None
    for file in reversed(_files(Path(folder))):
        try:
            found = _read(file)
            break
        except (_DamagedError, OSError) as error:
            damaged.append(f"'{file}' ({error})")
    if damaged:
        logging.getLogger("tfmeta").warning(
            "Not used, because it is damaged: %s. %s.",
            ", ".join(damaged),
            f"The state before is used, '{found.path}'" if found else "No state before is whole",
        )
    return found


class SaveState(keras.callbacks.Callback):
    """Saves the state of a training while `fit` runs, and goes on from the newest one.

    Where the folder holds a state, `fit` continues from it, also in the middle of an epoch; in an
    empty folder it begins. The meta-batches are to begin with `step`:

    ```python
    save = tfmeta.states.SaveState("states", every=100)
    learner.fit(
        sampler.dataset(meta_batch_size=32, start=save.step),
        steps_per_epoch=500,
        epochs=20,
        callbacks=[save],
    )
    ```

    A state is written at the end of each epoch, every `every` steps, and when the process is asked
    to end: Ctrl-C and SIGTERM let the step be finished, write the state and raise `Stopped`, which
    is a `KeyboardInterrupt`; a second one ends at once. With a loss that is not finite nothing is
    written.

    The other callbacks of the same `fit` are continued too: of each, what has changed since
    training began is kept, as far as it is numbers, strings, arrays, and lists and dicts of such.
    In an epoch that is continued, Keras counts the batches from 0 again.

    Args:
        folder: Where the states are; made if it is not there.
        every: Steps between two states; `None` writes at the end of epochs only.
        keep: How many states are kept, the newest.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is less than 1; from `fit`, if the state is of another model or of
            other settings, or `steps_per_epoch` is not known.
        OSError: From `fit`, if a state cannot be written; the older ones are whole.
    """

    def __init__(
        self, folder: str | os.PathLike[str], every: int | None = None, keep: int = 3
    ) -> None:
        super().__init__()
        if every is not None:
            check_count("every", every)
        check_count("keep", keep)
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        self._others: list[keras.callbacks.Callback] | None = None
        self._data: Any = None
        self._found: State | None = None
        self._signal: int | None = None

    @property
    def step(self) -> int:
        """The number of the meta-batch to begin with: 0, or where the newest state is."""
        self._found = newest(self.folder)
        return 0 if self._found is None else self._found.step

    def on_train_begin(self, logs: Any = None) -> None:
        """Continue from the newest state, if there is one."""
        if self._others is None:
            raise ValueError(
                "`callbacks` must be given to a learner's `fit` by name for SaveState to be among "
                "them. Received: another model, or callbacks by position"
            )
        self._steps: int | None = self.params["steps"]
        if self.every is not None and self._steps is None:
            raise ValueError(
                "`steps_per_epoch` must be given where states are saved in the middle of an epoch. "
                f"Received: steps_per_epoch=None, and SaveState with every={self.every}"
            )
        for left in self.folder.glob(".state-*"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        self._settings = _settings(self.model)
        self._at_first = [_changeable(callback) for callback in self._others]
        # The number of the epoch's first meta-batch, and the steps done before it was continued.
        self._epoch_began: int | None = None
        self._offset = 0
        self._before_last: Callable[[], None] | None = None
        # Not read twice, and what is damaged is said once.
        self._state = state = self._found or newest(self.folder)
        self._found = None
        if state is None:
            return
        _check_settings(state, self._settings)
        if state.step_of_epoch and state.facts["steps"] != self._steps:
            raise ValueError(
                f"`steps_per_epoch` must be {state.facts['steps']} as in '{state.path}', which is "
                f"of the middle of an epoch. Received: steps_per_epoch={self._steps}"
            )
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        self._restore(state, ("weights", "optimizer"))
        if state.step_of_epoch:
            self._have_metrics(state)
        # As Keras's BackupAndRestore does. A training that stopped by itself has no more epochs.
        stopped = state.facts["stopped"]
        begin_at(self.model, max(state.epoch, self.params["epochs"] if stopped else 0))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Put back what the beginning of an epoch has reset, where one is continued."""
        begin_at(self.model, None)
        state, self._state = self._state, None
        self._offset = 0
        if state is not None:
            self._epoch_began = state.step - state.step_of_epoch
            self._offset = state.step_of_epoch
            if self._offset:
                self._restore(state, ("weights", "optimizer", "metrics"))
        elif self._epoch_began is None:
            self._epoch_began = epoch * (self._steps or 0)
        self._epoch = epoch
        self._done = self._offset
        self._before_last = None

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Save if it is time, and stop if a signal has come."""
        self._agree()
        before, self._done = self._done, self._offset + batch + 1
        if self._steps is None:
            if self._signal is not None:
                self._stop()
            return
        if self._done >= self._steps:
            if self._offset and not self.model.stop_training:
                self.model.stop_training = _EPOCH_IS_DONE
            return  # what follows at once is the end of the epoch, or its validation
        finite = math.isfinite((logs or {}).get("loss", 0.0))
        assert self._epoch_began is not None
        first, last = self._epoch_began + before, self._epoch_began + self._done
        due = self.every is not None and last // self.every > first // self.every
        if finite and (due or self._signal is not None):
            self._taken(self._epoch, self._done)()
        elif finite and self._done + (self._done - before) >= self._steps:
            # In the middle of a validation there is no state to go on from but this one.
            self._before_last = self._taken(self._epoch, self._done)
        if self._signal is not None:
            self._stop()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Stop if a signal has come: the last step and the validation are done again."""
        self._agree()
        if self._signal is not None:
            if self._before_last is not None:
                self._before_last()
            self._stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Save."""
        if self.model.stop_training is _EPOCH_IS_DONE:
            self.model.stop_training = False
        self._agree()
        assert self._epoch_began is not None
        self._epoch_began += self._done
        self._done = self._offset = 0
        if math.isfinite((logs or {}).get("loss", 0.0)):
            self._taken(epoch + 1, 0)()
        if self._signal is not None:
            self._stop()

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the model as Keras would, where a training that is finished was continued."""
        begin_at(self.model, None)

    def _taken(self, epoch: int, step_of_epoch: int) -> Callable[[], None]:
        """Copy the state, and return the function that writes it."""
        assert self._epoch_began is not None
        assert self._others is not None
        variables = _variables(self.model)
        if not step_of_epoch:
            del variables["metrics"]  # which the next epoch begins by setting to zero
        arrays = [variable.numpy() for part in variables.values() for variable in part]
        callbacks = []
        for callback, at_first in zip(self._others, self._at_first, strict=True):
            now = _changeable(callback)
            changed = {name: value for name, value in now.items() if at_first.get(name) != value}
            callbacks.append(
                {
                    "class": type(callback).__name__,
                    "changed": {name: _pack(getattr(callback, name), arrays) for name in changed},
                }
            )
        step = self._epoch_began + step_of_epoch
        facts = {
            "step": step,
            "epoch": epoch,
            "step_of_epoch": step_of_epoch,
            "steps": self._steps,
            "stopped": bool(self.model.stop_training),
            "settings": self._settings,
            "variables": {
                part: [_described(v) for v in list_] for part, list_ in variables.items()
            },
            "callbacks": callbacks,
            "arrays": [[list(array.shape), array.dtype.name] for array in arrays],
        }

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"state-{step:012d}"
            _write(path, facts, arrays)
            older = [file for file in _files(self.folder) if file.name < path.name]
            for file in older[: max(0, len(older) - self.keep + 1)]:
                file.unlink(missing_ok=True)

        return write

    def _restore(self, state: State, parts: tuple[str, ...]) -> None:
        state._restore(self.model, parts)
        assert self._others is not None
        others = list(self._others)
        for saved in state.facts["callbacks"]:
            same = [callback for callback in others if type(callback).__name__ == saved["class"]]
            if same:
                others.remove(same[0])
                for name, value in saved["changed"].items():
                    setattr(same[0], name, _unpack(value, state.arrays))
            elif saved["changed"]:
                logging.getLogger("tfmeta").warning(
                    "'%s' has the state of a callback %s, which is not among `callbacks`.",
                    state.path,
                    saved["class"],
                )

    def _have_metrics(self, state: State) -> None:
        """Have Keras make the variables of metrics, which it does when they are first used."""
        if len(self.model.metrics_variables) == len(state.facts["variables"]["metrics"]):
            return
        if not isinstance(self._data, tf.data.Dataset):
            raise ValueError(
                f"`x` must be a tf.data.Dataset to go on from '{state.path}', which is of the "
                f"middle of an epoch. Received: {type(self._data).__name__}"
            )
        # Traced for other shapes before, the graph of validation would round otherwise.
        before = self.model.test_function
        self.model.evaluate(self._data.take(1), verbose=0)
        self.model.test_function = before

    def _agree(self) -> None:
        """Have all workers stop after the same step, whichever of them the signal has come to."""
        self._signal = most_of_workers(self.model.distribute_strategy, self._signal or 0) or None

    def _stop(self) -> None:
        assert self._signal is not None
        number, self._signal = self._signal, None
        state = newest(self.folder)
        held = (
            f"'{self.folder}' has the state after {state.step} steps: the same call goes on from it"
            if state
            else "no step was finished and nothing is saved"
        )
        raise Stopped(number, f"Training was ended by {signal.Signals(number).name}; {held}")

    @contextlib.contextmanager
    def _heeding_signals(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM instead of ending at once; the second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return

        def note(number: int, frame: Any) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number
            # Not by `print`, which may be what was interrupted.
            os.write(2, b"\nTraining ends after this step; a second signal ends it at once.\n")

        self._signal = None
        before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:
                    before[number] = signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def saving(callbacks: Any, data: Any) -> Iterator[Any]:
    """Give the callbacks of a `fit`, a `SaveState` behind the others, which it is told of.

    Args:
        callbacks: As given to `fit`.
        data: What `fit` trains on.

    Yields:
        What to hand to Keras, while signals are heeded if there is a `SaveState`.
    """
    flat = keras.tree.flatten(callbacks)
    savers = [callback for callback in flat if isinstance(callback, SaveState)]
    if not savers:
        yield callbacks
        return
    if len(savers) > 1:
        raise ValueError(
            f"`callbacks` must have at most one SaveState. Received: {len(savers)} of them"
        )
    others = [callback for callback in flat if callback is not savers[0] and callback is not None]
    if not any(isinstance(callback, keras.callbacks.History) for callback in others):
        others.append(keras.callbacks.History())  # which Keras would put behind
    savers[0]._others, savers[0]._data = others, data
    with savers[0]._heeding_signals():
        yield [*others, savers[0]]


# --- Files --------------------------------------------------------------------------------------


class _DamagedError(Exception):
    pass


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*"))


def _write(path: Path, facts: dict[str, Any], arrays: list[Array]) -> None:
    parts = [json.dumps(facts).encode() + b"\n", *(array.tobytes() for array in arrays)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    try:
        with replacing(path) as beside, beside.open("wb") as file:
            file.write(f"tfmeta-state {FORMAT} {digest.hexdigest()}\n".encode())
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or the new name might be lost with the power
        finally:
            os.close(folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The state '{path}' cannot be written ({error.strerror}); those before are whole",
        ) from error


def _read(path: Path) -> State:
    data = path.read_bytes()
    header = _HEADER.match(data)
    if header is None:
        raise _DamagedError("it does not begin as a state does")
    body = memoryview(data)[header.end() :]
    if hashlib.sha256(body).hexdigest().encode() != header[2]:
        raise _DamagedError("its SHA-256 is wrong")
    if int(header[1]) != FORMAT:
        raise ValueError(
            f"'{path}' must be a state of format {FORMAT}, which this version of tfmeta reads. "
            f"Received: format {int(header[1])}, of another version"
        )
    end = data.index(b"\n", header.end()) + 1
    facts = json.loads(data[header.end() : end])
    arrays = []
    for shape, name in facts["arrays"]:
        dtype = np.dtype(name)
        count = math.prod(shape)
        arrays.append(np.frombuffer(data, dtype, count, end).reshape(shape))
        end += count * dtype.itemsize
    return State(path, facts["step"], facts["epoch"], facts["step_of_epoch"], facts, arrays)


# --- Variables and settings ---------------------------------------------------------------------


def _variables(model: keras.Model) -> dict[str, list[Any]]:
    return {
        "weights": list(model.variables),
        "optimizer": list(model.optimizer.variables),
        "metrics": list(model.metrics_variables),
    }


def _described(variable: Any) -> list[Any]:
    return [variable.path, list(variable.shape), keras.backend.standardize_dtype(variable.dtype)]


def _check_variables(path: Path, part: str, then: list[Any], now: list[Any]) -> None:
    here = [_described(variable) for variable in now]
    for i in range(max(len(then), len(here))):
        was, is_ = (entries[i] if i < len(entries) else None for entries in (then, here))
        # Names are counted through in a process, and so may differ.
        if was is None or is_ is None or was[1:] != is_[1:]:
            was, is_ = (x and "'{}' {} {}".format(*x) for x in (was, is_))
            raise ValueError(
                f"'{path}' must be a state of this model. Received: one that differs in `{part}`, "
                f"number {i}: {was} in the state, {is_} in the model"
            )


def _settings(model: keras.Model) -> dict[str, Any]:
    """Return what a model and its training were made with, flat; nothing where it cannot tell."""
    try:
        # What JSON cannot hold is known by its type, for an address would differ each time.
        text = json.dumps(
            keras.saving.serialize_keras_object(model), default=lambda x: type(x).__name__
        )
        config = json.loads(text)
    except (NotImplementedError, TypeError, ValueError):
        return {}
    flat: dict[str, Any] = {}

    def add(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                named = key in _NAMES and len(value) > 1
                # A rate that is a number is one of the optimizer's variables.
                rate = key == "learning_rate" and isinstance(inner, float)
                if not (named or rate or key in _NO_SETTINGS):
                    add(f"{path}.{key}" if key != "config" else path, inner)
        elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
            for i, inner in enumerate(value):
                add(f"{path}[{i}]", inner)
        else:
            flat[path.removeprefix(".")] = value

    add("", config)
    return flat


def _check_settings(state: State, now: dict[str, Any]) -> None:
    then = state.facts["settings"]
    if not then or not now:
        return
    for name in [*then, *(name for name in now if name not in then)]:
        if name not in then or name not in now or then[name] != now[name]:
            was, is_ = (repr(x[name]) if name in x else "nothing" for x in (then, now))
            raise ValueError(
                f"`{name}` must be {was} as in '{state.path}', a state of a training with other "
                f"settings. Received: {name}={is_}"
            )


# --- Callbacks ----------------------------------------------------------------------------------


def _changeable(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """Return the attributes of a callback that can be kept, as they are now."""
    found = {}
    for name, value in vars(callback).items():
        if name in OF_CALLBACKS:
            continue
        arrays: list[Array] = []
        with contextlib.suppress(TypeError):
            packed = _pack(value, arrays)
            found[name] = (packed, [(array.dtype.name, array.tobytes()) for array in arrays])
    return found


def _pack(value: Any, arrays: list[Array]) -> Any:
    """Return what JSON can hold; arrays go to `arrays` and are numbered."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "OUSVmM":
        arrays.append(np.array(value))
        return {"array": len(arrays) - 1, "scalar": isinstance(value, np.generic)}
    if isinstance(value, types.FunctionType) and value.__module__.startswith("keras."):
        return {"function": [value.__module__, value.__qualname__]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_pack(inner, arrays) for inner in value]}
    if type(value) is dict:
        pairs = [[_pack(key, arrays), _pack(inner, arrays)] for key, inner in value.items()]
        return {"dict": pairs}
    raise TypeError(f"cannot be kept: {type(value)}")


def _unpack(value: Any, arrays: list[Array]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array = arrays[value["array"]]
        return array[()] if value["scalar"] else array.copy()
    if "dict" in value:
        return {_unpack(key, arrays): _unpack(inner, arrays) for key, inner in value["dict"]}
    ((kind, values),) = value.items()
    if kind == "function":  # by which EarlyStopping and its kin compare
        module, name = values
        if not module.startswith("keras."):
            raise ValueError(f"functions must be of Keras. Received: {name} of {module}")
        return getattr(importlib.import_module(module), name)
    made = [_unpack(inner, arrays) for inner in values]
    return tuple(made) if kind == "tuple" else made
