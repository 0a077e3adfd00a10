"""One file a method."""

from tfmeta.algorithms.amortized_bayesian_maml import AmortizedBayesianMAML
from tfmeta.algorithms.bayesian_maml import BayesianMAML
from tfmeta.algorithms.cavia import CAVIA
from tfmeta.algorithms.implicit_maml import ImplicitMAML
from tfmeta.algorithms.maml import FOMAML, MAML
from tfmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from tfmeta.algorithms.meta_curvature import MetaCurvature
from tfmeta.algorithms.meta_sgd import MetaSGD
from tfmeta.algorithms.partial import ANIL, BOIL
from tfmeta.algorithms.proto_maml import ProtoMAML
from tfmeta.algorithms.prototypical import PrototypicalNetwork
from tfmeta.algorithms.reptile import Reptile

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "FOMAML",
    "MAML",
    "AmortizedBayesianMAML",
    "BayesianMAML",
    "ImplicitMAML",
    "MAMLPlusPlus",
    "MetaCurvature",
    "MetaSGD",
    "ProtoMAML",
    "PrototypicalNetwork",
    "Reptile",
]
