"""Whether a loss takes what a learner gives, logits or probabilities; and what else it says."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import keras

# All of Keras's that can take either, classes and functions.
_EITHER = [
    loss
    for loss in vars(keras.losses).values()
    if callable(loss) and "from_logits" in inspect.signature(loss).parameters
]
# Those that take the probabilities of classes, and nothing else.
_PROBABILITIES = [
    getattr(keras.losses, name)
    for name in (
        "KLDivergence",
        "kl_divergence",
        "CategoricalGeneralizedCrossEntropy",
        "categorical_generalized_cross_entropy",
    )
    if hasattr(keras.losses, name)
]


def check_agreement(name: str, loss: Any, outputs: list[str | None], *, always: bool) -> bool:
    """Refuse a loss of probabilities for logits, and warn of one of logits for probabilities.

    A loss of one's own, and one of which it cannot be known what it takes, pass.

    Args:
        name: What to call the learner.
        loss: As given to `compile`.
        outputs: What each output of the learner is: `"logits"`, `"probabilities"` or `None`.
        always: Whether its outputs are logits whatever model is wrapped.

    Returns:
        Whether there was a warning.

    Raises:
        ValueError: If a loss takes probabilities, and the output is logits.
    """
    warned = False
    for part, kind in zip(_of_outputs(loss, len(outputs)), outputs, strict=True):
        told = settings(part)
        takes = told.get("from_logits")
        if kind == "logits" and (takes is False or (always and _takes_probabilities(part))):
            instead = (
                "give keras.losses.SparseCategoricalCrossentropy(from_logits=True), say"
                if takes is None
                else f"give keras.losses.{_class_name(part)}(from_logits=True)"
            )
            why = (
                f"{name} returns logits"
                if always
                else "the last layer of the model has no activation, and so returns logits; "
                "`activation='softmax'` or 'sigmoid' there would make probabilities of them"
            )
            raise ValueError(
                f"`loss` must take logits, for {why}. Of logits, a loss of probabilities has no "
                f"gradient or a wrong one: {instead}. Received: loss={part!r}"
            )
        if kind == "probabilities" and takes:
            warnings.warn(
                f"`loss` takes logits, from_logits=True, and the last layer of the model returns "
                "probabilities. Keras's crossentropies use the logits that its activation was "
                "given, other losses squash the probabilities once more. Give from_logits=False, "
                f"or no activation. Received: loss={part!r}",
                stacklevel=4,
            )
            warned = True
    return warned


@contextlib.contextmanager
def not_warned_again() -> Iterator[None]:
    """Silence Keras's warning of the same, which depends on how a loss comes to be computed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r'"?`\w+` received `from_logits=True`, but the `output`')
        yield


def settings(loss: Any) -> dict[str, Any]:
    """Return the arguments of one of Keras's losses that can take logits; of others nothing."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:  # Keras will say so
            return {}
    given: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        bound = inspect.signature(loss.func).bind_partial(*loss.args, **loss.keywords)
        loss, given = loss.func, bound.arguments
    if any(loss is known for known in _EITHER):
        defaults = inspect.signature(loss).parameters.values()
        return {**{p.name: p.default for p in defaults if p.default is not p.empty}, **given}
    if any(type(loss) is known for known in _EITHER):
        return dict(loss.get_config())
    return {}


def ignored_class(loss: Any) -> int | None:
    """Return the label that a loss leaves out, if there is one."""
    ignored: int | None = settings(loss).get("ignore_class")
    return ignored


def _takes_probabilities(loss: Any) -> bool:
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return False
    return any(loss is known or type(loss) is known for known in _PROBABILITIES)


def _class_name(loss: Any) -> str:
    """Return how Keras calls the class of a loss, of which there may be the function only."""
    if isinstance(loss, functools.partial):
        loss = loss.func
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if isinstance(loss, keras.losses.Loss):
        return type(loss).__name__
    return "".join(word.capitalize() for word in loss.__name__.split("_"))


def _of_outputs(loss: Any, outputs: int) -> list[Any]:
    """Return the loss of each output, `None` where it cannot be told."""
    if outputs == 1:
        flat = keras.tree.flatten(loss) if isinstance(loss, list | tuple | dict) else [loss]
        return flat if len(flat) == 1 else [None]
    if isinstance(loss, list | tuple) and len(loss) == outputs:
        return list(loss)
    return [None] * outputs
