"""The few types that the whole package shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

Episodes: TypeAlias = tuple[dict[str, Array], Array]
"""A meta-batch `(inputs, targets)`: `inputs` holds `support_x` `[tasks, ways*shots, ...]`,
`support_y` `[tasks, ways*shots]` and `query_x` `[tasks, ways*queries, ...]`, and may hold
`unlabelled_x` `[tasks, u, ...]`; `targets` are the query labels `[tasks, ways*queries]`. A plain
dict, because Keras reads a bare pair as `(x, y)`."""

Tensor: TypeAlias = Any
"""A `tf.Tensor`, symbolic in a graph, or what converts to one. TensorFlow has no types."""

Nest: TypeAlias = Any
"""A `Tensor`, or a nest of such: lists, tuples and dicts, as of a model of several inputs."""

Params: TypeAlias = list[Tensor]
"""Tensors in the order of a model's `trainable_variables` (or `non_trainable_variables`)."""

Rates: TypeAlias = Sequence[Any]
"""The step sizes of one inner step: for each tensor a number, or what broadcasts to its shape."""

Inputs: TypeAlias = Mapping[str, Any]
"""The `inputs` of `Episodes`, as arrays or tensors."""


class Sampler(Protocol):
    """Whatever can draw meta-batch number `step`, as a pure function of that number."""

    def batch(self, step: int, meta_batch_size: int = 1) -> Episodes:
        """Return meta-batch `step`."""
