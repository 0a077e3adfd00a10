"""Few-shot learning for Keras: wrap a model, fit it on episodes, adapt it to a new task."""

from __future__ import annotations

import importlib
from typing import Any

from tfmeta import (
    calibration,
    callbacks,
    data,
    differentiation,
    distribution,
    export,
    inner_optimizers,
    labels,
    layers,
    losses,
    models,
    ops,
    packed,
    states,
    svgd,
    unknown,
)
from tfmeta.algorithms import (
    ANIL,
    BOIL,
    CAVIA,
    FEAT,
    FOMAML,
    MAML,
    R2D2,
    TIM,
    AmortizedBayesianMAML,
    BaselinePlusPlus,
    BayesianMAML,
    FineTune,
    ImplicitMAML,
    KNearestNeighbors,
    LabelPropagation,
    LogisticRegression,
    MAMLPlusPlus,
    MatchingNetwork,
    MetaCurvature,
    MetaOptNet,
    MetaSGD,
    ProtoMAML,
    PrototypicalNetwork,
    RelationNetwork,
    Reptile,
    SimpleShot,
    SoftKMeans,
)
from tfmeta.class_changes import add_class, remove_class
from tfmeta.classifier import Classifier
from tfmeta.comparison import Comparison, compare
from tfmeta.evaluation import Evaluation, Uncertainty, evaluate, uncertainty
from tfmeta.inner_rates import InnerRates, suggest_inner_rate
from tfmeta.meta_learner import MetaLearner
from tfmeta.paired import Difference
from tfmeta.pretraining import pretrain
from tfmeta.references import Reference

__version__ = "0.1.0"

# What takes long to import, and few need: imported when asked for.
_LATER = ("plots", "tuning")

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
    "Classifier",
    "Comparison",
    "Difference",
    "Evaluation",
    "FineTune",
    "ImplicitMAML",
    "InnerRates",
    "KNearestNeighbors",
    "LabelPropagation",
    "LogisticRegression",
    "MAMLPlusPlus",
    "MatchingNetwork",
    "MetaCurvature",
    "MetaLearner",
    "MetaOptNet",
    "MetaSGD",
    "ProtoMAML",
    "PrototypicalNetwork",
    "Reference",
    "RelationNetwork",
    "Reptile",
    "SimpleShot",
    "SoftKMeans",
    "Uncertainty",
    "add_class",
    "calibration",
    "callbacks",
    "compare",
    "data",
    "differentiation",
    "distribution",
    "evaluate",
    "export",
    "inner_optimizers",
    "labels",
    "layers",
    "losses",
    "models",
    "ops",
    "packed",
    "plots",
    "pretrain",
    "remove_class",
    "states",
    "suggest_inner_rate",
    "svgd",
    "tuning",
    "uncertainty",
    "unknown",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"tfmeta.{name}")
    raise AttributeError(f"module 'tfmeta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
