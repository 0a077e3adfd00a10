"""What was done to files because they could not be kept as they are: counted, and said once."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping

IN_WORDS = {
    "bits": "{} brought from 16 bits to 8 (dtype='uint16', --dtype uint16, keeps them)",
    "transparent": "{} laid on white paper where transparent (alpha=True, --alpha, keeps that)",
    "pages": "{} with several pages, of which the first was read "
    "(pages='all', --pages all, reads each)",
    "colours": "{} of other colours (CMYK, LAB), turned into red, green and blue",
    "channels": "{} with channels beside the colours, which were left out",
    "as they are": "{} with numbers as they are in the file, and not between 0 and 1 as the others",
}
"""For each thing that can be done, what is said of so many images."""


def warn_changes(
    done: Counter[str],
    number: int,
    words: Mapping[str, str],
    what: str,
    stacklevel: int,
) -> None:
    """Warns once of all that was done, if anything was.

    Args:
        done: Of how many files what was done, by the names in `words`.
        number: How many files there were.
        words: What is said of each.
        what: What the files are.
        stacklevel: As for `warnings.warn`.
    """
    said = [text.format(done[name]) for name, text in words.items() if done[name]]
    if said:
        message = f"Of {number} {what} some could not be kept as they are: {'; '.join(said)}"
        warnings.warn(message, stacklevel=stacklevel)
