"""What Keras notes on a tensor: the mask of its time steps, and the logits that it was made of.

They are attributes of the tensor object, which losses and metrics look for. An operation of
TensorFlow makes another object, and a loop over tasks returns others too, so that without care a
loss would be another one in a loop than outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmeta.foreign.of_keras import LOGITS, MASK
from tfmeta.types import Nest

_NOTES = (MASK, LOGITS)


def keeping_notes(function: Callable[[Any], Any], values: Nest) -> Any:
    """Return a nest of `function(x)`, noting on each what `function` makes of the notes on x.

    Args:
        function: An operation on the first axes alone, which a tensor and its notes have in common.
        values: A nest of tensors and `None`, which stays.
    """

    def apply(x: Any) -> Any:
        if x is None:
            return None
        noted = {name: function(note) for name, note in _on(x).items()}
        return _note(function(x), noted)

    return tf.nest.map_structure(apply, values)


def with_notes(values: Nest) -> Any:
    """Return a nest of tensors as one that has what is noted on them too, for a loop to return."""
    return values, [_on(x) for x in tf.nest.flatten(values)]


def noted(values_and_notes: Any) -> Any:
    """Return a nest of tensors with their notes: the reverse of `with_notes`."""
    values, notes = values_and_notes
    flat = [_note(x, found) for x, found in zip(tf.nest.flatten(values), notes, strict=True)]
    return tf.nest.pack_sequence_as(values, flat)


def has_notes(values: Nest) -> bool:
    """Return whether Keras has noted something on one of a nest of tensors."""
    return any(_on(x) for x in tf.nest.flatten(values))


def _on(x: Any) -> dict[str, Any]:
    found = {name: getattr(x, name, None) for name in _NOTES}
    return {name: note for name, note in found.items() if note is not None}


def _note(x: Any, notes: dict[str, Any]) -> Any:
    for name, note in notes.items():
        setattr(x, name, note)
    return x
