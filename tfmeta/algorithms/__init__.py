"""One file a method."""

from tfmeta.algorithms.maml import FOMAML, MAML
from tfmeta.algorithms.prototypical import PrototypicalNetwork

__all__ = ["FOMAML", "MAML", "PrototypicalNetwork"]
