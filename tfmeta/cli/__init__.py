"""The command `tfmeta`: data sets, training, evaluation and adaptation from a shell."""

# In the order in which `tfmeta --help` names them.
from tfmeta.cli.group import main

from tfmeta.cli import datasets, train, tune, evaluate, adapt  # isort: skip

__all__ = ["adapt", "datasets", "evaluate", "main", "train", "tune"]
