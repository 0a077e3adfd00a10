"""Files of a folder that may be a stranger's: no link leads out of it."""

from __future__ import annotations

import os
from pathlib import Path


def check_inside(folder: str | os.PathLike[str], *paths: str | os.PathLike[str]) -> None:
    """Raise unless paths lie in a folder, also where they, or a folder on their way, are links.

    Args:
        folder: The folder, which may be a link itself.
        *paths: What is going to be read, written or removed; need not exist.

    Raises:
        ValueError: If one leads out of the folder; it is named.

    Example:
        >>> check_inside("runs/glyphs", "runs/glyphs/states")
    """
    root = os.path.realpath(folder)
    for path in paths:
        target = os.path.realpath(path)
        if os.path.commonpath([root, target]) != root:
            raise ValueError(
                f"'{Path(path)}' must lie in '{Path(folder)}', as what is in that folder may be a "
                f"stranger's. Received: a link to '{target}'"
            )
