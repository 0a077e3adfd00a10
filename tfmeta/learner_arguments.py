"""What each learner takes, as its constructor and its docstring say: the command's own table.

Names, defaults and types are those of the signature, the words those of the docstring. So the
command cannot know another learner than Python does.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tfmeta import algorithms
from tfmeta.argument_text import can_be_text, made, parsed
from tfmeta.arguments import parameters
from tfmeta.choices import did_you_mean
from tfmeta.learner_table import LEARNERS
from tfmeta.meta_learner import MetaLearner
from tfmeta.replicated import Replicated


class Argument(NamedTuple):
    """An argument of a learner.

    Attributes:
        kind: Its type in the signature.
        default: Its default there.
        words: What the docstring says of it, up to the end of the first sentence.
    """

    kind: Any
    default: Any
    words: str


def constructor(algorithm: str) -> Callable[..., MetaLearner]:
    """Return what makes a learner of a model and arguments.

    Args:
        algorithm: A name of `LEARNERS`.
    """
    found: Callable[..., MetaLearner] = getattr(algorithms, LEARNERS[algorithm].python)
    return found


def arguments_of(algorithm: str) -> dict[str, Argument]:
    """Return the arguments of a learner by name, but for the model and what no text can be.

    Args:
        algorithm: A name of `LEARNERS`.
    """
    made_by = constructor(algorithm)
    cls = learner_class(made_by)
    own: dict[str, tuple[inspect.Parameter, Any]] = {}
    if not isinstance(made_by, type):
        given = list(inspect.signature(made_by).parameters.values())[1:]
        own = {p.name: (p, made_by) for p in given if p.kind is not p.VAR_KEYWORD}
    every = {**parameters(cls, Replicated), **own}
    docs = [made_by, *cls.__mro__]
    found = {}
    for name, (parameter, base) in every.items():
        function = vars(base)["__init__"] if isinstance(base, type) else base
        kind = typing.get_type_hints(function)[name]
        if name not in LEARNERS[algorithm].without and can_be_text(kind):
            found[name] = Argument(kind, parameter.default, _words(name, docs))
    return found


def learner_class(made_by: Any) -> type[MetaLearner]:
    """Return the class of the learners that a class or a function makes."""
    cls: type[MetaLearner] = (
        made_by if isinstance(made_by, type) else typing.get_type_hints(made_by)["return"]
    )
    return cls


def read(algorithm: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that texts stand for, each checked against the signature.

    Args:
        algorithm: A name of `LEARNERS`.
        given: Texts by the names of arguments.

    Raises:
        ValueError: If the learner has no such argument, or a text is no value of its type.

    Example:
        >>> read("r2d2", {"ridge": "0.5", "learn_ridge": "false"})
        {'ridge': 0.5, 'learn_ridge': False}
    """
    known = arguments_of(algorithm)
    for name in given:
        if name not in known:
            raise ValueError(
                f"{algorithm} has no argument {name!r}.{did_you_mean(name, known)} It has "
                f"{', '.join(known)}: see `tfmeta learners {algorithm}`"
            )
    return {name: parsed(name, text, known[name].kind) for name, text in given.items()}


def make(algorithm: str, model: Any, values: Mapping[str, Any]) -> MetaLearner:
    """Return a learner of a model and of values as `read` returns them."""
    return constructor(algorithm)(model, **{name: made(value) for name, value in values.items()})


def summary(algorithm: str) -> str:
    """Return the first line of a learner's docstring."""
    return (inspect.getdoc(constructor(algorithm)) or "").partition("\n")[0]


def description(algorithm: str) -> str:
    """Return what a learner's docstring says before its arguments, as paragraphs."""
    text = inspect.getdoc(constructor(algorithm)) or ""
    return re.split(r"\n+(?:Args|Raises|Returns|Example|References?):\n", text)[0]


def _words(name: str, docs: list[Any]) -> str:
    """Return the first sentence on an argument in the first docstring that has one of its own."""
    for place, documented in enumerate(docs):
        text = _entries(documented.__doc__ or "").get(name)
        if text is None:
            continue
        # "As in `MAML`", which need not be a base.
        other = re.match(r"As in `(\w+)`", text)
        if other and hasattr(algorithms, other[1]):
            return _words(name, [getattr(algorithms, other[1]), *docs[place + 1 :]])
        return re.split(r"(?<=[.!?]) (?=[A-Z`\"α-ω])", text)[0]
    return ""


def _entries(docstring: str) -> dict[str, str]:
    """Return what a docstring's `Args:` say of each name, on one line."""
    text = inspect.cleandoc(docstring)
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else []:
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith("        "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            names = []  # as of **kwargs
    return found
