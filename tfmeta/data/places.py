"""Where the package keeps what it has made, unless it is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def default_cache() -> Path:
    """Return the folder in the environment variable `TFMETA_CACHE`, or that of the system."""
    if "TFMETA_CACHE" in os.environ:
        return Path(os.environ["TFMETA_CACHE"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tfmeta"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfmeta"
