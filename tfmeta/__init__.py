"""Few-shot learning for Keras: wrap a model, fit it on episodes, adapt it to a new task."""

from tfmeta import calibration, data, inner_optimizers, layers, models, ops
from tfmeta.algorithms import (
    ANIL,
    BOIL,
    FOMAML,
    MAML,
    ImplicitMAML,
    MAMLPlusPlus,
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
    "FOMAML",
    "MAML",
    "Evaluation",
    "ImplicitMAML",
    "MAMLPlusPlus",
    "MetaLearner",
    "MetaSGD",
    "ProtoMAML",
    "PrototypicalNetwork",
    "Reptile",
    "Uncertainty",
    "calibration",
    "data",
    "evaluate",
    "inner_optimizers",
    "layers",
    "models",
    "ops",
    "uncertainty",
]
