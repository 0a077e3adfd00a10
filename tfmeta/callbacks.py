"""Keras callbacks for training on episodes."""

from tfmeta.states import SaveState

__all__ = ["SaveState"]
