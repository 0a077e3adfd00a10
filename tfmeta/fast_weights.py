"""The weights of a task: which there are, and which of them the inner loop changes."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from tfmeta.types import Params


class FastWeights(NamedTuple):
    """The weights that a task is computed with.

    Attributes:
        model: Those of the model, in the order of `trainable_variables`.
        head: Those that the model does not have: a head made for the task, or a second weight for
            each of the model's, as its deviation.
    """

    model: Params
    head: Params


class Parts(NamedTuple):
    """Which weights an inner step changes, and how.

    Attributes:
        adapted: For each weight of model and head, whether the inner loop adapts it.
        written: For each weight of the model, whether a layer writes to it in its call.
    """

    adapted: list[bool]
    written: list[bool]

    def taken(self, weights: FastWeights, state: Params) -> tuple[Params, Params]:
        """Return the weights that are adapted, and all else that an inner step changes.

        The latter is the model's state, and then what layers write to weights that are not adapted.
        """
        adapted = list(itertools.compress([*weights.model, *weights.head], self.adapted))
        return adapted, [*state, *itertools.compress(weights.model, self._beside)]

    def put(
        self, weights: FastWeights, adapted: Params, changed: Params
    ) -> tuple[FastWeights, Params]:
        """Return weights and state of the model, what is not changed as it is: undo `taken`."""
        own = len(changed) - sum(self._beside)
        model = _exchanged(weights.model, self._beside, changed[own:])
        every = _exchanged([*model, *weights.head], self.adapted, adapted)
        number = len(model)
        return FastWeights(every[:number], every[number:]), changed[:own]

    @property
    def _beside(self) -> list[bool]:
        """For each weight of the model, whether layers write to it and the inner loop does not."""
        pairs = zip(self.written, self.adapted, strict=False)  # which has those of the head, too
        return [written and not adapted for written, adapted in pairs]


def _exchanged(values: Params, which: list[bool], others: Params) -> Params:
    new = iter(others)
    return [next(new) if other else x for other, x in zip(which, values, strict=True)]
