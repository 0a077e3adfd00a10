"""Data: examples by class, rows by task; and episodes of them, functions of `(seed, step)`."""

from tfmeta.data.audio import audio_from_directory, read_audio
from tfmeta.data.augmentation import Augmentation
from tfmeta.data.benchmarks import BENCHMARKS, load
from tfmeta.data.caching import cache
from tfmeta.data.class_dataset import ClassDataset
from tfmeta.data.episode_list import EpisodeList, write_episodes
from tfmeta.data.episodes import EpisodeSampler
from tfmeta.data.features import features
from tfmeta.data.functions import FunctionSampler, Sinusoids
from tfmeta.data.joining import join
from tfmeta.data.mixture import Mixture
from tfmeta.data.same_shape import resize
from tfmeta.data.shards import Shards
from tfmeta.data.table_sampler import TableSampler
from tfmeta.data.task_dataset import TaskDataset

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
    "TableSampler",
    "TaskDataset",
    "audio_from_directory",
    "cache",
    "features",
    "join",
    "load",
    "read_audio",
    "resize",
    "write_episodes",
]
