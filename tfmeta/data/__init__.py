"""Data: examples by class, and episodes drawn from them as pure functions of `(seed, step)`."""

from tfmeta.data.augmentation import Augmentation
from tfmeta.data.benchmarks import BENCHMARKS, load
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.episodes import EpisodeSampler
from tfmeta.data.functions import FunctionSampler, Sinusoids

__all__ = [
    "BENCHMARKS",
    "Augmentation",
    "ClassDataset",
    "EpisodeSampler",
    "FunctionSampler",
    "Sinusoids",
    "load",
]
