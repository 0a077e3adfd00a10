"""`SaveState`: the callback that writes states, and goes on from the newest."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfmeta.bounded_json import shown
from tfmeta.checks import check_count
from tfmeta.distribution import most_of_workers, workers_of
from tfmeta.foreign.of_keras import begin_at
from tfmeta.locks import one_writer
from tfmeta.states.callbacks import changeable, kinds, left_out, packed, refusal, unpacked
from tfmeta.states.files import files_in
from tfmeta.states.files import write as write_file
from tfmeta.states.settings import check_settings, described, settings_of, variables_of
from tfmeta.states.state import State, newest

# Truthy, so that Keras ends the epoch, and none that another callback would set.
_EPOCH_IS_DONE = "the epoch that was continued has all of its steps"


class Stopped(KeyboardInterrupt):
    """Training ended after a step because of a signal, with everything saved.

    Args:
        number: The signal.
        message: What to tell.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)


class SaveState(keras.callbacks.Callback):
    """Saves the state of a training while `fit` runs, and goes on from the newest one.

    Where the folder holds a state, `fit` continues from it, also in the middle of an epoch; in an
    empty folder it begins. The meta-batches are to begin with `step`:

    ```python
    save = tfmeta.callbacks.SaveState("states", every=100)
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

    The other callbacks of the same `fit` are continued too. Of Keras's own what they count is kept.
    Of others it is what has changed since training began, if it was there then and is of the same
    kind: numbers, arrays, lists and dicts of such, and words that are no names of files. What is
    left out is said in the log. In an epoch that is continued, Keras counts the batches from 0
    again.

    The folder is this training's alone while it runs. A state may be a stranger's: it can set
    nothing but that.

    Args:
        folder: Where the states are; made if it is not there.
        every: Steps between two states; `None` writes at the end of epochs only.
        keep: How many states are kept, the newest.

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is less than 1; from `fit`, if the state is of another model or of
            other settings, gives a callback what it may not, or `steps_per_epoch` is not known.
        BlockingIOError: From `fit`, if another training writes to the folder.
        FileNotFoundError: From `fit`, if the folder was removed.
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
        self._until_end = contextlib.ExitStack()
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
        first = workers_of(self.model.distribute_strategy)[0] == 0
        if first:
            self._check_folder = self._until_end.enter_context(one_writer(self.folder)).check
        else:  # whose folder may be that of the first worker, who holds it
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_folder = self._check_is_there
        self._settings = settings_of(self.model)
        self._at_first = [changeable(callback) for callback in self._others]
        self._kinds = [kinds(callback) for callback in self._others]
        self._not_kept: set[tuple[str, str]] = set()
        # The number of the epoch's first meta-batch, and the steps done before it was continued.
        self._epoch_began: int | None = None
        self._offset = 0
        self._before_last: Callable[[], None] | None = None
        # Not read twice, and what is damaged is said once.
        self._state = state = self._found or newest(self.folder)
        self._found = None
        if state is None:
            return
        check_settings(state.path, state.facts["settings"], self._settings)
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
        if first:  # a disk may have failed when the last state was written, and a run is finished
            self._remove_before(state.path)
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
            if epoch and self._steps:
                # What goes on from elsewhere, as from a model that was saved just before its state,
                # has the states of a training that was never interrupted.
                self._taken(epoch, 0)()
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
        variables = variables_of(self.model)
        if not step_of_epoch:
            del variables["metrics"]  # which the next epoch begins by setting to zero
        arrays = [variable.numpy() for part in variables.values() for variable in part]
        callbacks = []
        for callback, at_first, before in zip(
            self._others, self._at_first, self._kinds, strict=True
        ):
            now = changeable(callback)
            changed = [name for name, value in now.items() if at_first.get(name) != value]
            kept = [name for name in changed if self._keeps(callback, before, name)]
            callbacks.append(
                {
                    "class": type(callback).__name__,
                    "changed": {name: packed(getattr(callback, name), arrays) for name in kept},
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
            "variables": {part: [described(v) for v in list_] for part, list_ in variables.items()},
            "callbacks": callbacks,
            "arrays": [[list(array.shape), array.dtype.name] for array in arrays],
        }

        def write() -> None:
            self._check_folder()
            path = self.folder / f"state-{step:012d}"
            write_file(path, facts, arrays)
            self._remove_before(path)

        return write

    def _remove_before(self, newest: Path) -> None:
        """Remove the states before one but for as many as are kept."""
        older = [file for file in files_in(self.folder) if file.name < newest.name]
        for file in older[: max(0, len(older) - self.keep + 1)]:
            with contextlib.suppress(IsADirectoryError, PermissionError):  # no state of ours
                file.unlink(missing_ok=True)

    def _keeps(self, callback: Any, before: dict[str, str], name: str) -> bool:
        """Return whether a state holds what a callback has changed; what it does not, is said."""
        expected = refusal(callback, before, name, getattr(callback, name))
        of = type(callback)
        if expected is None or of.__module__.partition(".")[0] in ("keras", "tfmeta"):
            return expected is None
        if (of.__name__, name) not in self._not_kept:
            self._not_kept.add((of.__name__, name))
            logging.getLogger("tfmeta").warning(
                "`%s` of the callback %s is not in the states, which may be a stranger's: it must "
                "be %s.",
                name,
                of.__name__,
                expected,
            )
        return False

    def _restore(self, state: State, parts: tuple[str, ...]) -> None:
        given = self._given_to_callbacks(state)
        state.give(self.model, parts)
        for callback, name, value in given:
            setattr(callback, name, value)

    def _given_to_callbacks(self, state: State) -> list[tuple[Any, str, Any]]:
        """Return the attributes that callbacks get, all of which may be theirs."""
        assert self._others is not None
        others = list(zip(self._others, self._kinds, strict=True))
        taken = set(range(sum(map(len, state.facts["variables"].values()))))

        def take(number: Any) -> Any:
            # Each once: what is small in the file may not be large in memory.
            if type(number) is not int or not 0 <= number < len(state.arrays) or number in taken:
                raise ValueError(
                    f"each array must be of one value. Received: array {shown(number)}"
                )
            taken.add(number)
            return state.arrays[number]

        given = []
        for saved in state.facts["callbacks"]:
            same = [pair for pair in others if type(pair[0]).__name__ == saved["class"]]
            if not same:
                if saved["changed"]:
                    logging.getLogger("tfmeta").warning(
                        "'%s' has the state of a callback %s, which is not among `callbacks`.",
                        state.path,
                        saved["class"],
                    )
                continue
            others.remove(same[0])
            for name, value in saved["changed"].items():
                if left_out(name):
                    continue
                at = f"'{state.path}' gives the callback {saved['class']} `{name}`, which"
                try:
                    value = unpacked(value, take)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{at} it may not: {error}") from error
                if (expected := refusal(*same[0], name, value)) is not None:
                    raise ValueError(f"{at} must be {expected}. Received: {shown(value)}")
                given.append((same[0][0], name, value))
        return given

    def _check_is_there(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"'{self.folder}' was removed while training went on")

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
    """Give the callbacks of a `fit`, a `SaveState` after the others, of which it is told.

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
        others.append(keras.callbacks.History())  # which Keras would put last
    savers[0]._others, savers[0]._data = others, data
    with contextlib.ExitStack() as stack, savers[0]._heeding_signals():
        savers[0]._until_end = stack
        yield [*others, savers[0]]
