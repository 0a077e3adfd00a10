"""One file a method."""

from tfmeta.algorithms.maml import FOMAML, MAML
from tfmeta.algorithms.partial import ANIL, BOIL
from tfmeta.algorithms.prototypical import PrototypicalNetwork

__all__ = ["ANIL", "BOIL", "FOMAML", "MAML", "PrototypicalNetwork"]
