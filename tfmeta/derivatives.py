"""Gradients as all of the package takes them: dense, and of known shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfmeta.types import Tensor


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a tensor: that of a look-up, as in an embedding, is some rows of it."""
    return None if gradient is None else tf.convert_to_tensor(gradient)


def gradients(
    tape: tf.GradientTape, target: Tensor, sources: Sequence[Any], upstream: Tensor = None
) -> list[Tensor]:
    """Return the gradients of `target` at `sources`, `None` where it does not reach one.

    Args:
        tape: What has seen the computation.
        target: A tensor, or a list of them.
        sources: Tensors, or variables of Keras.
        upstream: The gradient at `target`, of the same structure; ones if `None`.
    """
    sources = list(sources)
    found = [dense(g) for g in tape.gradient(target, sources, upstream)]
    for gradient, source in zip(found, sources, strict=True):
        if gradient is not None and not tf.executing_eagerly():
            # Some operations, of three dimensions for instance, leave it open in a graph.
            gradient.set_shape(source.shape)
    return found


def gradients_or_zeros(
    tape: tf.GradientTape, target: Tensor, sources: Sequence[Any], upstream: Tensor = None
) -> list[Tensor]:
    """Return what `gradients` does, and zeros where `target` does not reach a source."""
    # TensorFlow's own zeros are not for variables of Keras.
    return [
        tf.zeros_like(tf.convert_to_tensor(x)) if g is None else g
        for g, x in zip(gradients(tape, target, sources, upstream), sources, strict=True)
    ]
