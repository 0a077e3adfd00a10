"""Data: examples by class, and episodes drawn from them as pure functions of `(seed, step)`."""

from tfmeta.data.augmentation import Augmentation
from tfmeta.data.benchmarks import BENCHMARKS, load
from tfmeta.data.caching import cache
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.episode_list import EpisodeList, write_episodes
from tfmeta.data.episodes import EpisodeSampler
from tfmeta.data.features import features
from tfmeta.data.functions import FunctionSampler, Sinusoids
from tfmeta.data.mixture import Mixture
from tfmeta.data.same_shape import resize
from tfmeta.data.shards import Shards

__all__ = [
    "BENCHMARKS",
    "Augmentation",
    "ClassDataset",
    "EpisodeList",
    "EpisodeSampler",
    "FunctionSampler",
    "Mixture",
    "Shards",
    "Sinusoids",
    "cache",
    "features",
    "load",
    "resize",
    "write_episodes",
]
