"""A loss that is not finite, said at the end of an epoch where no step has found it."""

from __future__ import annotations

import math
from typing import Any

import keras


class FiniteLoss(keras.callbacks.Callback):
    """Ends training after an epoch whose loss is NaN or infinite, with the weights from before it.

    The mean over an epoch is so if the loss of one step was, and it is logged anyway: nothing is
    asked of the device in a step. The weights are copied to the host before each epoch. Of several
    replicas or workers each logs the mean over all, and so all end after the same epoch.

    Raises:
        ValueError: If a loss is not finite; the weights and the optimizer's slots are put back.
    """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Keep the weights."""
        optimizer = self.model.optimizer
        if not optimizer.built:
            with self.model.distribute_strategy.scope():
                optimizer.build(self.model.trainable_variables)
        kept = [(x, x.numpy()) for x in (*self.model.variables, *optimizer.variables)]
        self._kept: Any = kept

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Put the weights back if a loss is not finite."""
        for name in ("loss", "val_loss"):
            value = (logs or {}).get(name, 0.0)
            if not math.isfinite(value):
                for variable, before in self._kept:
                    variable.assign(before)
                if (self.params or {}).get("verbose"):
                    print()  # Keras's progress bar has not ended its line
                of_steps = (
                    "Under `jit_compile=True` XLA compiles the checks of single steps away, which "
                    "`jit_compile=False` has. "
                )
                raise ValueError(
                    f"`{name}` must be finite. Received: {name}={value} in epoch {epoch + 1}. "
                    f"{of_steps if self.model.jit_compile else ''}The weights are those from "
                    "before that epoch. Lower `learning_rate` or, with MAML, `inner_learning_rate`"
                )


def watching(model: Any, callbacks: Any) -> Any:
    """Return the callbacks of a `fit`, with a `FiniteLoss` before them, which may save something.

    Args:
        model: The learner, compiled.
        callbacks: As given to `fit`. With Keras's `TerminateOnNaN` among them they stay as they
            are: it says it by itself.
    """
    as_list = isinstance(callbacks, keras.callbacks.CallbackList)
    given = callbacks.callbacks if as_list else keras.tree.flatten(callbacks)
    if any(isinstance(each, FiniteLoss | keras.callbacks.TerminateOnNaN) for each in given):
        return callbacks
    watcher = FiniteLoss()
    if not as_list:
        return [watcher, *(each for each in given if each is not None)]
    watcher.set_model(model)
    given.insert(0, watcher)
    return callbacks
