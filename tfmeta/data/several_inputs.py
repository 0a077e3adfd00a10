"""Examples of several inputs: dicts of arrays, where others are one array."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfmeta.checks import did_you_mean


def each(function: Callable[[Any], Any], examples: Any) -> Any:
    """Return what a function makes of examples, or a dict of what it makes of each input.

    Args:
        function: Of one array.
        examples: An array, or a dict of arrays.
    """
    if isinstance(examples, dict):
        return {name: function(part) for name, part in examples.items()}
    return function(examples)


def number_of(examples: Any) -> int:
    """Return how many examples there are.

    Args:
        examples: An array, or a dict of arrays of one length.
    """
    return len(next(iter(examples.values())) if isinstance(examples, dict) else examples)


def check_one_input(dataset: Any) -> None:
    """Raise a `ValueError` if the examples of a `ClassDataset` are dicts.

    Args:
        dataset: The data set.
    """
    if isinstance(dataset.examples, dict):
        names = list(dataset.examples)
        raise ValueError(
            f"`dataset` must have one input here; `dataset.input({names[0]!r})` has. "
            f"Received: the inputs {', '.join(map(repr, names))}"
        )


def check_names(what: str, examples: Mapping[Any, Any]) -> None:
    """Raise unless inputs are called by texts, and there is one at least.

    Args:
        what: How the argument is called.
        examples: The inputs by name.

    Raises:
        TypeError: A name is no text.
        ValueError: There is none.
    """
    if not examples:
        raise ValueError(f"`{what}` must have at least one input. Received: an empty dict")
    if not all(isinstance(name, str) for name in examples):
        raise TypeError(f"`{what}` must have inputs called by texts. Received: {list(examples)}")


def by_input(option: str, value: Any, names: Sequence[str] | None) -> dict[str, Any]:
    """Return what an option says of each input, of those alone that it says anything of.

    Args:
        option: How the argument is called.
        value: As it was given: a dict by name, where there are several inputs.
        names: Of the inputs; `None` where there is one, which goes by `""`.

    Raises:
        TypeError: There is a dict for one input, or none for several.
        ValueError: There is no such input.
    """
    if value is None:
        return {}
    if names is None:
        if isinstance(value, Mapping):
            raise TypeError(
                f"`{option}` must not be a dict where there is one input. Received: "
                f"{option}={value!r}"
            )
        return {"": value}
    known = ", ".join(map(repr, names))
    if not isinstance(value, Mapping):
        raise TypeError(
            f"`{option}` must be a dict by the names of inputs where there are several, {known}. "
            f"Received: {option}={value!r}"
        )
    for name in value:
        if name not in names:
            raise ValueError(
                f"`{option}` must be of inputs that there are, {known}. Received: {name!r}."
                f"{did_you_mean(name, names)}"
            )
    return {name: given for name, given in value.items() if given is not None}
