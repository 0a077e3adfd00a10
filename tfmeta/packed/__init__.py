"""Several tasks at once: packed into the axis of channels, so that each operation does them all."""

from tfmeta.packed.call import packed_call, spread_weights, tried
from tfmeta.packed.layout import along, spread, task_axes

__all__ = ["along", "packed_call", "spread", "spread_weights", "task_axes", "tried"]
