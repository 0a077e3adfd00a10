"""A state of a training, and the newest one of a folder."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import keras

from tfmeta.states.files import Damaged, files_in, read
from tfmeta.states.settings import check_settings, check_variables, settings_of, variables_of
from tfmeta.types import Array


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
        check_settings(self.path, self.facts["settings"], settings_of(model))
        self.give(model, ("weights", "optimizer"))

    def give(self, model: keras.Model, parts: tuple[str, ...]) -> None:
        """Give a model what it holds of some parts: weights, optimizer, metrics."""
        variables = variables_of(model)
        pairs: list[tuple[Any, Array]] = []
        start = 0
        for part, described in self.facts["variables"].items():
            values = self.arrays[start : (start := start + len(described))]
            if part in parts:
                check_variables(self.path, part, described, variables[part])
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
    for file in reversed(files_in(Path(folder))):
        try:
            facts, arrays = read(file)
            step, epoch, done = (facts[name] for name in ("step", "epoch", "step_of_epoch"))
            found = State(file, step, epoch, done, facts, arrays)
            break
        except (Damaged, OSError) as error:
            damaged.append(f"'{file}' ({error})")
    if damaged:
        logging.getLogger("tfmeta").warning(
            "Not used, because it is damaged: %s. %s.",
            ", ".join(damaged),
            f"The state before is used, '{found.path}'" if found else "No state before is whole",
        )
    return found
