"""Few-shot learning for Keras: wrap a model, fit it on episodes, adapt it to a new task."""

from tfmeta import (
    calibration,
    data,
    export,
    inner_optimizers,
    labels,
    layers,
    losses,
    models,
    ops,
    packed,
)
from tfmeta.algorithms import (
    ANIL,
    BOIL,
    CAVIA,
    FOMAML,
    MAML,
    AmortizedBayesianMAML,
    BayesianMAML,
    ImplicitMAML,
    MAMLPlusPlus,
    MetaCurvature,
    MetaSGD,
    ProtoMAML,
    PrototypicalNetwork,
    Reptile,
)
from tfmeta.evaluation import Evaluation, Uncertainty, evaluate, uncertainty
from tfmeta.meta_learner import MetaLearner

__version__ = "0.1.0"

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "FOMAML",
    "MAML",
    "AmortizedBayesianMAML",
    "BayesianMAML",
    "Evaluation",
    "ImplicitMAML",
    "MAMLPlusPlus",
    "MetaCurvature",
    "MetaLearner",
    "MetaSGD",
    "ProtoMAML",
    "PrototypicalNetwork",
    "Reptile",
    "Uncertainty",
    "calibration",
    "data",
    "evaluate",
    "export",
    "inner_optimizers",
    "labels",
    "layers",
    "losses",
    "models",
    "ops",
    "packed",
    "uncertainty",
]
