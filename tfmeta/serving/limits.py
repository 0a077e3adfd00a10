"""How much is taken, kept and done at once, and how more than that is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfmeta.bounded_json import shown


def _limit(default: int, words: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": words})


@dataclasses.dataclass(frozen=True)
class Limits:
    """An option of the command each.

    Raises:
        ValueError: If one is less than 1.
    """

    max_megabytes: int = _limit(8, "The longest request, in megabytes.")
    max_images: int = _limit(200, "The most images of all classes, or asked about at once.")
    max_classes: int = _limit(50, "The most classes of a task.")
    max_megapixels: int = _limit(25, "The largest image, in million pixels.")
    max_tasks: int = _limit(64, "Tasks kept; then the one not used for longest goes.")
    max_kept_megabytes: int = _limit(512, "What all tasks have together, in megabytes.")
    max_requests: int = _limit(64, "Requests at once; more are told to try again.")
    minutes: int = _limit(30, "After so many minutes without use a task is forgotten.")

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` must be a whole number, at least 1. Received: {name}={value!r}"
                )

    @property
    def max_bytes(self) -> int:
        """The longest request."""
        return self.max_megabytes * 10**6


# Of a class, in characters.
MAX_NAME = 100
# What an example may be in JSON numbers, of all examples together.
MAX_NUMBERS = 2**20


class RefusedError(Exception):
    """What a client asked for is not done.

    Args:
        status: Of HTTP.
        words: What was expected, and what came.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words if len(words) <= 500 else f"{words[:500]}..."


def received(value: Any) -> str:
    """Return the end of a message: what came, short however long it is."""
    return f" Received: {shown(value)[:80]}"
