"""Update rules of the inner loop, as pure functions of tensors.

Keras optimizers assign to variables, so they cannot be differentiated through; a rule here returns
the new weights instead. `init` makes the slots and `update` returns `(params, slots)`. The step
sizes of an update are handed to it, one for each tensor, because learners may learn them; a rule's
own `learning_rate` is what they are otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfmeta.checks import check_positive, check_rates
from tfmeta.types import Params, Rates


class UpdateRule(Protocol):
    """What the inner loop asks of a rule; see `SGD` for one.

    Attributes:
        learning_rate: The step size, a number for all inner steps or a tuple with one for each.
    """

    learning_rate: float | tuple[float, ...]

    def init(self, params: Params) -> Params:
        """Return the slots for `params`."""
        ...

    def update(
        self, gradients: Params, slots: Params, params: Params, rates: Rates
    ) -> tuple[Params, Params]:
        """Return `(new_params, new_slots)`.

        Args:
            gradients: Of the support loss.
            slots: What `init` or the last `update` returned.
            params: The weights.
            rates: The step size of each tensor of `params`, a number or what broadcasts to it.
        """
        ...

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        ...


@keras.saving.register_keras_serializable(package="tfmeta")
class SGD:
    """Gradient descent, with momentum if asked for.

    `v <- momentum * v + g` and `w <- w - learning_rate * v`; with momentum 0, `v` is `g`.

    Args:
        learning_rate: Positive step size; a sequence has one for each inner step.
        momentum: In `[0, 1)`.

    Raises:
        TypeError: If `learning_rate` is no number.
        ValueError: If a value lies outside its range.

    Example:
        >>> rule = tfmeta.inner_optimizers.SGD(0.1)
        >>> params, slots = rule.update([g], rule.init([w]), [w], rates=[0.1])
    """

    def __init__(
        self, learning_rate: float | Sequence[float] = 0.01, momentum: float = 0.0
    ) -> None:
        _check_decay("momentum", momentum)
        self.learning_rate = check_rates("learning_rate", learning_rate)
        self.momentum = float(momentum)

    def init(self, params: Params) -> Params:
        """Return the slots for `params`: zero velocities, or none without momentum."""
        return [tf.zeros_like(p) for p in params] if self.momentum else []

    def update(
        self, gradients: Params, slots: Params, params: Params, rates: Rates
    ) -> tuple[Params, Params]:
        """Return `(new_params, new_slots)`."""
        if self.momentum:
            slots = [self.momentum * v + g for v, g in zip(slots, gradients, strict=True)]
            gradients = slots
        new = [w - r * g for w, g, r in zip(params, gradients, rates, strict=True)]
        return new, slots

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {"learning_rate": self.learning_rate, "momentum": self.momentum}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SGD:
        """Make a rule from what `get_config` returned."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfmeta")
class RMSprop:
    """Gradient descent with each weight's gradient divided by its running size.

    `v <- rho * v + (1 - rho) * g²` and `w <- w - learning_rate * g / sqrt(v + epsilon)`, as
    `keras.optimizers.RMSprop` without momentum.

    Args:
        learning_rate: Positive step size; a sequence has one for each inner step.
        rho: Decay of the running mean of squares, in `[0, 1)`.
        epsilon: Positive.

    Raises:
        TypeError: If a value is no number.
        ValueError: If a value lies outside its range.

    Example:
        >>> rule = tfmeta.inner_optimizers.RMSprop(0.01)

    Reference:
        Tieleman and Hinton, *Neural Networks for Machine Learning*, lecture 6.5, 2012.
    """

    def __init__(
        self,
        learning_rate: float | Sequence[float] = 0.001,
        rho: float = 0.9,
        epsilon: float = 1e-7,
    ) -> None:
        _check_decay("rho", rho)
        check_positive("epsilon", epsilon)
        self.learning_rate = check_rates("learning_rate", learning_rate)
        self.rho = float(rho)
        self.epsilon = float(epsilon)

    def init(self, params: Params) -> Params:
        """Return the mean squares, zeros."""
        return [tf.zeros_like(p) for p in params]

    def update(
        self, gradients: Params, slots: Params, params: Params, rates: Rates
    ) -> tuple[Params, Params]:
        """Return `(new_params, new_slots)`."""
        slots = [
            self.rho * v + (1 - self.rho) * g**2 for v, g in zip(slots, gradients, strict=True)
        ]
        new = [
            w - r * g / tf.sqrt(v + self.epsilon)
            for w, g, v, r in zip(params, gradients, slots, rates, strict=True)
        ]
        return new, slots

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {"learning_rate": self.learning_rate, "rho": self.rho, "epsilon": self.epsilon}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RMSprop:
        """Make a rule from what `get_config` returned."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfmeta")
class Adam:
    """Adam, with the numbers of `keras.optimizers.Adam`.

    `m <- β1 m + (1 - β1) g`, `v <- β2 v + (1 - β2) g²` and, in step t,
    `w <- w - learning_rate * sqrt(1 - β2ᵗ) / (1 - β1ᵗ) * m / (sqrt(v) + epsilon)`. Where `v` is 0
    the root's derivative, which is infinite, counts as 0: such a gradient was 0 in all steps.

    Args:
        learning_rate: Positive step size; a sequence has one for each inner step.
        beta_1: β1 in `[0, 1)`; 0 gives the inner optimizer of Reptile's paper.
        beta_2: β2 in `[0, 1)`.
        epsilon: Positive.

    Raises:
        TypeError: If a value is no number.
        ValueError: If a value lies outside its range.

    Example:
        >>> rule = tfmeta.inner_optimizers.Adam(0.001, beta_1=0.0)

    Reference:
        Kingma and Ba, *Adam: A Method for Stochastic Optimization*, ICLR 2015.
    """

    def __init__(
        self,
        learning_rate: float | Sequence[float] = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        _check_decay("beta_1", beta_1)
        _check_decay("beta_2", beta_2)
        check_positive("epsilon", epsilon)
        self.learning_rate = check_rates("learning_rate", learning_rate)
        self.beta_1 = float(beta_1)
        self.beta_2 = float(beta_2)
        self.epsilon = float(epsilon)

    def init(self, params: Params) -> Params:
        """Return the first moments, the second ones and the number of steps, all zero."""
        zeros = [tf.zeros_like(p) for p in params]
        return [*zeros, *zeros, tf.zeros((), params[0].dtype)]

    def update(
        self, gradients: Params, slots: Params, params: Params, rates: Rates
    ) -> tuple[Params, Params]:
        """Return `(new_params, new_slots)`."""
        first, second, t = slots[: len(params)], slots[len(params) : -1], slots[-1] + 1
        first = [
            self.beta_1 * m + (1 - self.beta_1) * g for m, g in zip(first, gradients, strict=True)
        ]
        second = [
            self.beta_2 * v + (1 - self.beta_2) * g**2
            for v, g in zip(second, gradients, strict=True)
        ]
        correction = tf.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        new = [
            w - r * tf.cast(correction, w.dtype) * m / (root(v) + self.epsilon)
            for w, m, v, r in zip(params, first, second, rates, strict=True)
        ]
        return new, [*first, *second, t]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, for Keras's saving."""
        return {
            "learning_rate": self.learning_rate,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Adam:
        """Make a rule from what `get_config` returned."""
        return cls(**config)


RULES: Mapping[str, type[SGD] | type[RMSprop] | type[Adam]] = MappingProxyType(
    {rule.__name__.lower(): rule for rule in (SGD, RMSprop, Adam)}
)
"""The rules by the names that commands have for them."""


def check_rule(name: str, rule: Any) -> UpdateRule:
    """Return a rule for an inner loop, or raise an error that names the argument.

    Raises:
        TypeError: If it is something else, as an optimizer of Keras's.
    """
    if (
        isinstance(rule, str)
        or not all(
            hasattr(rule, part) for part in ("learning_rate", "init", "update", "get_config")
        )
        or isinstance(rule, keras.optimizers.Optimizer)
    ):
        raise TypeError(
            f"`{name}` must be a rule of tfmeta.inner_optimizers: SGD, RMSprop or Adam, as "
            f"in {name}=tfmeta.inner_optimizers.Adam(0.01). Keras's optimizers cannot be "
            f"differentiated through. Received: {name}={rule!r}"
        )
    return rule  # type: ignore[no-any-return]


def _check_decay(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={value!r}")


def root(x: Any) -> Any:
    """Return the square root, whose derivative at 0, which is infinite, counts as 0."""
    positive = x > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, x, tf.ones_like(x))), tf.zeros_like(x))
