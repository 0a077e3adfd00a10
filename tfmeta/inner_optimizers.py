"""Update rules of the inner loop, as pure functions of tensors.

Keras optimizers assign to variables, so they cannot be differentiated through; a rule here returns
the new weights instead. `init` makes the slots and `update` returns `(params, slots)`.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tfmeta.checks import check_positive
from tfmeta.types import Params


@keras.saving.register_keras_serializable(package="tfmeta")
class SGD:
    """Gradient descent, with momentum if asked for.

    `v <- momentum * v + g` and `w <- w - learning_rate * v`; with momentum 0, `v` is `g`.

    Args:
        learning_rate: Positive step size.
        momentum: In `[0, 1)`.

    Raises:
        TypeError: If `learning_rate` is no number.
        ValueError: If a value lies outside its range.

    Example:
        >>> rule = tfmeta.inner_optimizers.SGD(0.1)
        >>> params, slots = rule.update([g], rule.init([w]), [w])
    """

    def __init__(self, learning_rate: float = 0.01, momentum: float = 0.0) -> None:
        check_positive("learning_rate", learning_rate)
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1). Received: momentum={momentum!r}")
        self.learning_rate = float(learning_rate)
        self.momentum = float(momentum)

    def init(self, params: Params) -> Params:
        """Return the slots for `params`: zero velocities, or none without momentum."""
        return [tf.zeros_like(p) for p in params] if self.momentum else []

    def update(self, gradients: Params, slots: Params, params: Params) -> tuple[Params, Params]:
        """Return `(new_params, new_slots)`."""
        if self.momentum:
            slots = [self.momentum * v + g for v, g in zip(slots, gradients, strict=True)]
            gradients = slots
        new = [w - self.learning_rate * g for w, g in zip(params, gradients, strict=True)]
        return new, slots

    def get_config(self) -> dict[str, float]:
        """Return the arguments, for Keras's saving."""
        return {"learning_rate": self.learning_rate, "momentum": self.momentum}
