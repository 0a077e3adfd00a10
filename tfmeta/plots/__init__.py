"""Pictures: learning curves, episodes with predictions, classes, reliability, comparisons, rates.

Each function returns a matplotlib figure, and writes it where it is given a path.
"""

from __future__ import annotations

try:
    from tfmeta.plots.classes import accuracy_by_class, confusion
    from tfmeta.plots.confidence import reliability_diagram
    from tfmeta.plots.curves import learning_curve, learning_curves
    from tfmeta.plots.differences import comparison
    from tfmeta.plots.episodes import episode
    from tfmeta.plots.rates import inner_rates
    from tfmeta.plots.style import BAR, RIGHT, WRONG
except ImportError as error:
    raise ImportError(
        f"Pictures are drawn by matplotlib: pip install matplotlib. Received: {error}"
    ) from error

__all__ = [
    "BAR",
    "RIGHT",
    "WRONG",
    "accuracy_by_class",
    "comparison",
    "confusion",
    "episode",
    "inner_rates",
    "learning_curve",
    "learning_curves",
    "reliability_diagram",
]
