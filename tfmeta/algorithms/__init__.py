"""One file a method."""

from tfmeta.algorithms.amortized_bayesian_maml import AmortizedBayesianMAML
from tfmeta.algorithms.baseline_plus_plus import BaselinePlusPlus
from tfmeta.algorithms.bayesian_maml import BayesianMAML
from tfmeta.algorithms.cavia import CAVIA
from tfmeta.algorithms.feat import FEAT
from tfmeta.algorithms.fine_tune import FineTune
from tfmeta.algorithms.implicit_maml import ImplicitMAML
from tfmeta.algorithms.k_nearest_neighbors import KNearestNeighbors
from tfmeta.algorithms.label_propagation import LabelPropagation
from tfmeta.algorithms.logistic_regression import LogisticRegression
from tfmeta.algorithms.maml import FOMAML, MAML
from tfmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from tfmeta.algorithms.matching_network import MatchingNetwork
from tfmeta.algorithms.meta_curvature import MetaCurvature
from tfmeta.algorithms.meta_opt_net import MetaOptNet
from tfmeta.algorithms.meta_sgd import MetaSGD
from tfmeta.algorithms.partial import ANIL, BOIL
from tfmeta.algorithms.proto_maml import ProtoMAML
from tfmeta.algorithms.prototypical import PrototypicalNetwork
from tfmeta.algorithms.r2d2 import R2D2
from tfmeta.algorithms.relation_network import RelationNetwork
from tfmeta.algorithms.reptile import Reptile
from tfmeta.algorithms.simple_shot import SimpleShot
from tfmeta.algorithms.soft_k_means import SoftKMeans
from tfmeta.algorithms.tim import TIM

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "FEAT",
    "FOMAML",
    "MAML",
    "R2D2",
    "TIM",
    "AmortizedBayesianMAML",
    "BaselinePlusPlus",
    "BayesianMAML",
    "FineTune",
    "ImplicitMAML",
    "KNearestNeighbors",
    "LabelPropagation",
    "LogisticRegression",
    "MAMLPlusPlus",
    "MatchingNetwork",
    "MetaCurvature",
    "MetaOptNet",
    "MetaSGD",
    "ProtoMAML",
    "PrototypicalNetwork",
    "RelationNetwork",
    "Reptile",
    "SimpleShot",
    "SoftKMeans",
]
