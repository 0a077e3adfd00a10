"""The command `tfmeta`: data sets, training, evaluation and adaptation from a shell."""

import importlib.util

if importlib.util.find_spec("click") is None:
    raise ImportError("The command is made with click: pip install 'click>=8.4'.")

# In the order in which `tfmeta --help` names them.
from tfmeta.cli.group import main

from tfmeta.cli import datasets, learners, train, tune, evaluate, report, adapt, serve  # isort: skip

__all__ = [
    "adapt",
    "datasets",
    "evaluate",
    "learners",
    "main",
    "report",
    "serve",
    "train",
    "tune",
]
