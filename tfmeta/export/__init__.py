"""Adapted models and learners as files that need nothing of tfmeta."""

from tfmeta.export.lite import lite
from tfmeta.export.onnx import onnx
from tfmeta.export.preprocessing import Preprocessing
from tfmeta.export.saved_model import saved_model

__all__ = ["Preprocessing", "lite", "onnx", "saved_model"]
