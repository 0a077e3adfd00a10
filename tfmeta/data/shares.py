"""Some of many names: chosen ones, or shares of all, at random and always the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmeta.checks import did_you_mean
from tfmeta.data.splits import shuffled


def shares(names: Sequence[str], fractions: Any, seed: int, *, one: str, many: str) -> Any:
    """Return for each part the positions of its names, in ascending order.

    Args:
        names: What is shared out.
        fractions: The share of each part; together 1. They may come as one sequence in a tuple.
        seed: Another number gives another assignment.
        one, many: What to call what has a name: a class, classes.

    Raises:
        TypeError: The fractions are no numbers.
        ValueError: The fractions are not positive or do not add up to 1, or there are too few names
            for each part to have one.
    """
    given = fractions
    if len(fractions) == 1 and isinstance(fractions[0], Sequence):
        given = tuple(fractions[0])
    if not all(isinstance(f, (int, float, np.number)) for f in given):
        raise TypeError(f"`fractions` must be numbers. Received: fractions={given}")
    if not given or min(given) <= 0 or abs(sum(given) - 1) > 1e-6:
        raise ValueError(
            f"`fractions` must be positive and add up to 1. Received: fractions={given}"
        )
    cuts = np.rint(np.cumsum((0, *given)) * len(names)).astype(int)
    if min(np.diff(cuts)) < 1:
        raise ValueError(
            f"`fractions` must leave at least one {one} in each part. "
            f"Received: fractions={fractions} of {len(names)} {many}"
        )
    order = shuffled(names, seed)
    return [sorted(order[start:stop]) for start, stop in itertools.pairwise(cuts)]


def positions_of(names: Sequence[str], some: Any, argument: str, one: str) -> list[int]:
    """Return the positions of some names, in the order given.

    Args:
        names: All of them.
        some: Names or positions.
        argument: How the argument is called.
        one: What to call what has a name: a class.

    Raises:
        TypeError: `some` is a single string, or holds neither integers nor strings.
        ValueError: `some` is empty, or has one twice or one that does not exist.
    """
    if isinstance(some, str):
        raise TypeError(
            f"`{argument}` must be a sequence of numbers or names. Received: {argument}={some!r}"
        )
    numbers = {name: i for i, name in enumerate(names)}
    found = [_number(each, names, numbers, argument) for each in some]
    if not found:
        raise ValueError(f"`{argument}` must name at least one {one}. Received none.")
    if len(set(found)) != len(found):
        twice = next(i for i in found if found.count(i) > 1)
        raise ValueError(f"`{argument}` must all differ. Received {twice!r} more than once.")
    return found


def _number(each: Any, names: Sequence[str], numbers: dict[str, int], argument: str) -> int:
    if isinstance(each, str):
        if each not in numbers:
            hint = did_you_mean(each, names)
            raise ValueError(f"`{argument}` must exist. Received the unknown {each!r}.{hint}")
        return numbers[each]
    if not isinstance(each, (int, np.integer)) or isinstance(each, bool):
        raise TypeError(f"`{argument}` must be numbers or names. Received: {each!r}")
    if not 0 <= each < len(names):
        raise ValueError(f"`{argument}` must be from 0 to {len(names) - 1}. Received: {each}")
    return int(each)
