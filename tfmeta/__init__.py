"""Few-shot learning for Keras: wrap a model, fit it on episodes, adapt it to a new task."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# What takes long to import, and few need: imported when asked for.
_LATER = ("plots", "tuning")


def _is_the_command() -> bool:
    """Return whether this process is `tfmeta` or `python -m tfmeta`."""
    program = next(iter(getattr(sys, "argv", [])), "")
    if program != "-m":
        return os.path.basename(program) == "tfmeta"
    # Python is looking for the module that it is to run.
    asked = iter(sys.orig_argv)
    return "-m" in asked and next(asked, None) == "tfmeta"


# Keras finds the classes of a file among those that have been imported, so that all of them are,
# which takes seconds. The command, which may have nothing to do but to print a line, has them
# imported when it needs them: see `tfmeta.cli.loading`.
_at_once = TYPE_CHECKING or not _is_the_command()
if _at_once:
    from tfmeta.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"tfmeta.{name}")
    if name == "__all__":
        return [*importlib.import_module("tfmeta.public").__all__, *_LATER]
    if not _at_once and not name.startswith("_"):
        # A module of the package comes by itself: others of it ask for it while they are imported.
        if importlib.util.find_spec(f"tfmeta.{name}") is not None:
            return importlib.import_module(f"tfmeta.{name}")
        public = importlib.import_module("tfmeta.public")
        if name in public.__all__:
            return getattr(public, name)
    raise AttributeError(f"module 'tfmeta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*importlib.import_module("tfmeta.public").__all__, *_LATER, "__version__"]
