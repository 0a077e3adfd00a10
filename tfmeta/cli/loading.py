"""The package and TensorFlow, loaded when a command needs them: not in silence, and with no noise.

TensorFlow prints what it finds on a machine as it starts, and warns of what cannot be helped. None
of it is shown, unless TF_CPP_MIN_LOG_LEVEL says how much to show.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from tfmeta.saying import say

VARIABLE = "TF_CPP_MIN_LOG_LEVEL"


def load_package() -> None:
    """Import all that `tfmeta` shows, so that Keras knows the class of whatever a file holds.

    Raises:
        ImportError: If something cannot be imported; what it printed is shown.
    """
    if "tensorflow" in sys.modules and "tfmeta.public" in sys.modules:
        return
    say("Loading TensorFlow …")
    if VARIABLE in os.environ or sys.stderr is None:
        importlib.import_module("tfmeta.public")
        return
    # No lines of C++ but those of an end. What is raised as an exception is shown all the same.
    os.environ[VARIABLE] = "3"
    # The first lines are printed before that is read.
    with _unless_it_fails():
        importlib.import_module("tfmeta.public")
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning as a line, without the place in the code."""
    if issubclass(category, UserWarning | RuntimeWarning):
        say(f"Warning: {message}")


@contextlib.contextmanager
def _unless_it_fails() -> Iterator[None]:
    """Keep what is printed on standard error to oneself, unless there is an exception.

    If the process is ended, as by an instruction that the processor lacks, Python says where.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as kept, os.fdopen(shown, "w") as terminal:
        crashes = _crashes_shown_on(terminal)
        os.dup2(kept.fileno(), 2)
        try:
            with crashes:
                yield
        except Exception:
            kept.seek(0)
            terminal.write(kept.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)


@contextlib.contextmanager
def _crashes_shown_on(terminal: TextIO) -> Iterator[None]:
    """Have Python say where it was if it crashes, unless it would do so anyway."""
    if faulthandler.is_enabled():
        yield
        return
    faulthandler.enable(terminal)
    try:
        yield
    finally:
        faulthandler.disable()
