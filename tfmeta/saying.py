"""What goes on, said on standard error, for standard output is for results."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)
