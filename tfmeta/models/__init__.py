"""The field's standard backbones, as ordinary Keras models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import keras

from tfmeta.models.conv4 import conv4
from tfmeta.models.mlp import mlp
from tfmeta.models.resnet12 import resnet12
from tfmeta.models.resnet18 import resnet18
from tfmeta.models.wrn28_10 import wrn28_10

BACKBONES: Mapping[str, Callable[..., keras.Model]] = MappingProxyType(
    {backbone.__name__: backbone for backbone in (conv4, resnet12, resnet18, wrn28_10)}
)
"""Those of images, by name: `(input_shape, outputs=None, filters=…) -> keras.Model`."""

__all__ = ["BACKBONES", "conv4", "mlp", "resnet12", "resnet18", "wrn28_10"]
