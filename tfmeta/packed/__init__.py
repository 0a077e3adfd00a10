"""Several tasks at once: packed into the axis of channels, so that each operation does them all."""

from tfmeta.packed.call import packed_call, spread_weights, trained_by_rules, tried
from tfmeta.packed.layout import along, spread, task_axes
from tfmeta.packed.register import register_rule
from tfmeta.packed.rules import NoRule

__all__ = [
    "NoRule",
    "along",
    "packed_call",
    "register_rule",
    "spread",
    "spread_weights",
    "task_axes",
    "trained_by_rules",
    "tried",
]
