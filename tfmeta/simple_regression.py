"""What predicts numbers without any training: means of targets, and a ridge on raw inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmeta.scoring import score
from tfmeta.types import Array

# λ of ridge regression, as scikit-learn's.
_RIDGE = 1.0


class Means:
    """The mean of each support set, and that of all of them, as predictions for all queries."""

    def __init__(self) -> None:
        self._seen: list[tuple[Array, Array]] = []
        self._sum: Any = 0.0
        self._number = 0

    def of_task(self, inputs: Any, targets: Array, counted: Array) -> float:
        """Return the error of the mean of an episode's own support set, and take note of it."""
        labels = np.asarray(inputs["support_y"], np.float64)[0]
        self._sum, self._number = self._sum + labels.sum(0), self._number + len(labels)
        self._seen.append((targets, counted))
        return _error(labels.mean(0), targets, counted)

    def of_all(self) -> Array:
        """Return of each episode the error of the mean of all support sets."""
        mean = self._sum / self._number
        return np.array([_error(mean, *episode) for episode in self._seen])


def ridge_error(inputs: Any, targets: Array, counted: Array) -> float:
    """Return the error in an episode of ridge regression on raw inputs."""
    x, y, queries = (_rows(inputs[name]) for name in ("support_x", "support_y", "query_x"))
    return _error(ridge(x, y, queries).reshape(targets.shape), targets, counted)


def ridge(x: Array, y: Array, queries: Array) -> Array:
    """Return what ridge regression with an offset predicts.

    The weights w minimise `‖y − b − x w‖² + λ ‖w‖²` with λ = 1. They are found in the space that
    the n examples span: with X the examples less their mean, `w = Xᵀ (X Xᵀ + λ I)⁻¹ (y − ȳ)`.

    Args:
        x: `[n, d]`.
        y: `[n, outputs]`.
        queries: `[m, d]`.
    """
    centre, mean = x.mean(0), y.mean(0)
    solved = np.linalg.solve((x - centre) @ (x - centre).T + _RIDGE * np.eye(len(x)), y - mean)
    return np.asarray(mean + (queries - centre) @ ((x - centre).T @ solved))


def _error(predicted: Array, targets: Array, counted: Array) -> float:
    return score(np.broadcast_to(predicted, targets.shape), targets, counted, False, None)


def _rows(x: Any) -> Array:
    x = np.asarray(x, np.float64)[0]
    return np.asarray(x.reshape(len(x), -1))
