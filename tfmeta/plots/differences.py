"""Scores of the same episodes, and their paired differences."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from tfmeta.plots.style import BAR, Path, ink, plain, saved
from tfmeta.types import Array


def comparison(
    per_episode: Mapping[str, Array],
    intervals: Mapping[str, float],
    path: Path | None = None,
    *,
    metric: str = "accuracy",
    baselines: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw the scores of the same episodes, a row each, and their differences from the first one.

    Intervals of two rows may overlap although one of them is better in nearly all episodes: that is
    what the right panel tells, whose intervals are those of paired differences.

    Args:
        per_episode: By name, the best first, `[episodes]`.
        intervals: By name, half the width of the 95 % interval of the paired difference.
        path: The image file to write, if there is to be one.
        metric: `"accuracy"`, drawn in per cent, or what else it is.
        baselines: Names that are drawn in grey.
        title: A line above the picture.

    Returns:
        The figure.
    """
    names = list(per_episode)
    factor = 100 if metric == "accuracy" else 1
    scores = factor * np.array([per_episode[name] for name in names], float)
    episodes = scores.shape[1]
    own = 1.96 * scores.std(1, ddof=1) / np.sqrt(episodes) if episodes > 1 else np.zeros(len(names))
    paired = factor * np.nan_to_num([intervals[name] for name in names])
    figure = Figure(figsize=(9.0, 1.4 + 0.42 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    digits = 1 if metric == "accuracy" else 4
    panels = (left, scores.mean(1), own), (right, (scores - scores[0]).mean(1), paired)
    for axes, middle, half in panels:
        for row, name in enumerate(names):
            if axes is right and row == 0:
                continue  # the best one itself, on the line
            color = "0.55" if name in baselines else BAR
            style = {"color": color, "fmt": "o", "markersize": 4, "capsize": 3}
            axes.errorbar(middle[row], row, xerr=half[row], **style)
            text = f"{middle[row]:.{digits}f} ± {half[row]:.{digits}f}".replace("-", "−")
            # Away from the line at zero.
            aside = "right" if metric == "accuracy" else "left"
            align = aside if axes is right else "center"
            above = {"textcoords": "offset points", "ha": align, "fontsize": 7.5}
            axes.annotate(text, (middle[row], row), (0, 5), **above)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.15)
    right.axvline(0, color=ink(), linewidth=0.8)
    left.set_yticks(np.arange(len(names)), [textwrap.fill(name, 32) for name in names])
    plain(left.get_yticklabels())
    left.set_ylim(len(names) - 0.5, -0.8)
    per_cent, points = (" (%)", " (points)") if metric == "accuracy" else ("", "")
    left.set_xlabel(metric + per_cent)
    right.set_xlabel(f"paired difference from the best{points}")
    note = f"{episodes} episodes, 95 % intervals" + (", baselines grey" if baselines else "")
    plain([figure.suptitle("\n".join([title, note] if title else [note]), fontsize=10)])
    return saved(figure, path)
