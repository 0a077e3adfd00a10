"""Adapted models and learners as files that need nothing of tfmeta."""

from tfmeta.export.lite import lite

__all__ = ["lite"]
