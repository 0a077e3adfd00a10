"""All that `tfmeta` shows, imported: with the package, or by its command when it is needed.

What Keras finds in a file by the name it is registered under has been imported here.
"""

# ruff: noqa: E402

from tfmeta.backend import check_backend

check_backend()  # before there is anything that another one could not compute

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
from tfmeta.reporting import report
from tfmeta.suite import Suite, evaluate_suite

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
    "Suite",
    "Uncertainty",
    "add_class",
    "calibration",
    "callbacks",
    "compare",
    "data",
    "differentiation",
    "distribution",
    "evaluate",
    "evaluate_suite",
    "export",
    "inner_optimizers",
    "labels",
    "layers",
    "losses",
    "models",
    "ops",
    "packed",
    "pretrain",
    "remove_class",
    "report",
    "states",
    "suggest_inner_rate",
    "svgd",
    "uncertainty",
    "unknown",
]
