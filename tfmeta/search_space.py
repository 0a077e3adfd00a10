"""What a search looks through: ranges and choices as text, and which arguments have them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tfmeta.algorithms import FineTune
from tfmeta.argument_text import in_words, parsed
from tfmeta.choices import did_you_mean
from tfmeta.learner_arguments import arguments_of, constructor
from tfmeta.learner_table import LEARNERS
from tfmeta.runs import Settings
from tfmeta.samplers import optuna_module
from tfmeta.setting_values import EXPECTED, choices_of, wrong_with

EXAMPLE = "'0.01:1.0', '0.01:1.0:log', '1:5' or choices 'a,b,c'"

# What of the settings can be searched: neither what validation is made of nor how long is trained.
_OF_NETWORK = ("filters", "downsample")
_OF_ADAM = ("learning_rate", "learning_rate_halving")
_OF_LEARNER = ("inner_learning_rate", "inner_steps", "evaluation_steps", "batch_norm", "distance")
# Of a learner's arguments, those that change how it is computed, and not what.
_NOT_SEARCHED = ("task_axis", "task_chunk", "recompute", "seed", "from_logits")


def searchable(algorithm: str) -> tuple[list[str], list[str]]:
    """Return the settings that can be searched for a learner, and arguments of its constructor.

    Args:
        algorithm: The name of the learner.
    """
    known = arguments_of(algorithm)
    made_by = constructor(algorithm)
    settings = [*_OF_NETWORK, *(name for name in _OF_LEARNER if name in known)]
    if algorithm == "maml++":
        # With batch normalisation for each step, there are as many in evaluation.
        settings.remove("evaluation_steps")
    if made_by is not FineTune and getattr(made_by, "trains", True):
        settings.append("meta_batch_size")
        settings += [] if algorithm == "reptile" else _OF_ADAM
        settings += [] if LEARNERS[algorithm].fixed_ways else ["ways"]
    others = (*settings, *_OF_LEARNER, *_NOT_SEARCHED)
    return settings, [name for name in known if name not in others]


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return settings with the values of a trial.

    Args:
        settings: What is not searched.
        values: By the names that are searched.
    """
    own = searchable(settings.algorithm)[1]
    known = arguments_of(settings.algorithm)
    arguments = {
        name: parsed(name, str(value), known[name].kind)
        for name, value in values.items()
        if name in own
    }
    fields = {name: value for name, value in values.items() if name not in own}
    return dataclasses.replace(settings, **fields, arguments={**settings.arguments, **arguments})


def largest(space: Mapping[str, str], algorithm: str) -> dict[str, Any]:
    """Return the largest value of each of the settings that are searched."""
    fields = searchable(algorithm)[0]
    return {name: max(values_of(name, text)[1]) for name, text in space.items() if name in fields}


def check_space(space: Mapping[str, str], algorithm: str) -> None:
    """Raise unless each name is an argument that can be searched, with values that it can have.

    Raises:
        ValueError: If not.
    """
    settings, own = searchable(algorithm)
    known = sorted([*settings, *own])
    for name, text in space.items():
        if name not in known:
            raise ValueError(
                f"`space` must name arguments of {algorithm}, and none that decide what is "
                f"measured or how long it is trained: {', '.join(known)}. Received: {name!r}."
                f"{did_you_mean(name, known)}"
            )
        scale, values = values_of(name, text)
        wrong = [x for x in values if _wrong(name, x, scale, algorithm, name in own)]
        if wrong:
            near = did_you_mean(wrong[0], choices_of(name))
            expected = _expected(name, algorithm, name in own)
            raise ValueError(f"`{name}` must be among {expected}. Received: {name}={text!r}.{near}")


def values_of(name: str, text: Any) -> tuple[str, list[Any]]:
    """Return `"choices"` and the choices, or `"linear"` or `"log"` and both ends of a range.

    Raises:
        TypeError: If it is no text.
        ValueError: If it is neither a range nor choices.
    """
    error = f"`{name}` must be a range or choices: {EXAMPLE}. Received: {name}={text!r}"
    if not isinstance(text, str):
        raise TypeError(error)
    if ":" not in text:
        choices = [_value(part) for part in text.split(",")]
        if len(set(choices)) < max(2, len(choices)) or "" in choices:
            raise ValueError(f"{error}; choices are two or more that differ")
        return "choices", choices
    low, high, *rest = (_value(part) for part in text.split(":"))
    if isinstance(low, str) or isinstance(high, str) or rest not in ([], ["log"]):
        raise ValueError(error)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{error}; a range has finite ends, the smaller one first")
    if rest and low <= 0:
        raise ValueError(f"{error}; a logarithmic range must begin above 0")
    if not (isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    return rest[0] if rest else "linear", [low, high]


def distributions_of(space: Mapping[str, str]) -> dict[str, Any]:
    """Return Optuna's distribution of each name."""
    of = optuna_module().distributions
    found = {}
    for name, text in space.items():
        scale, values = values_of(name, text)
        if scale == "choices":
            found[name] = of.CategoricalDistribution(values)
        else:
            kind = of.IntDistribution if isinstance(values[0], int) else of.FloatDistribution
            found[name] = kind(*values, log=scale == "log")
    return found


def _value(text: str) -> Any:
    """Return an integer, a number or a word."""
    text = text.strip()
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _wrong(name: str, value: Any, scale: str, algorithm: str, own: bool) -> bool:
    """Return whether a setting, or an argument of a learner's own, cannot have a value."""
    if own:
        try:
            parsed(name, str(value), arguments_of(algorithm)[name].kind)
        except ValueError:
            return True
        return False
    words = bool(choices_of(name))
    return (words and scale != "choices") or wrong_with({name: value}, EXPECTED) is not None


def _expected(name: str, algorithm: str, own: bool) -> str:
    if own:
        return in_words(arguments_of(algorithm)[name].kind)
    if choices := choices_of(name):
        return ", ".join(choices)
    return "integers of at least 1" if _is_count(name) else "positive numbers"


def _is_count(name: str) -> bool:
    return wrong_with({name: 0.5}, EXPECTED) is not None
