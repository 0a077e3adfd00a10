"""Scores of the same episodes as lines of a table."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tfmeta.paired import Difference
from tfmeta.types import Array


def ci95(per_episode: Array) -> float:
    """Return `1.96 s / √n`, half the width of the interval of a mean; NaN for one episode."""
    n = len(per_episode)
    return float(1.96 * per_episode.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")


def written(value: float, interval: float, metric: str, unit: str = " %") -> str:
    """Return a score as text, or a difference.

    Args:
        value: The mean.
        interval: Half the width of its interval, which is not written where it is NaN or 0.
        metric: What it is; accuracy is written in per cent.
        unit: What stands after an accuracy.
    """
    factor, digits = (100, 2) if metric == "accuracy" else (1, 4)
    text = f"{factor * value:.{digits}f}"
    # Of equal numbers the deviation may be rounded.
    known = f" ± {factor * interval:.{digits}f}" if interval > 1e-12 else ""
    return text + known + (unit if metric == "accuracy" else "")


def in_words(name: str, worse_than: Iterable[tuple[str, Difference]], metric: str) -> str:
    """Return a sentence that says whom one does worse than, and by how much.

    Args:
        name: Who does worse.
        worse_than: The others, with its differences from them.
        metric: What they are scored by.
    """
    said = [
        f"{other} (by {written(abs(d.mean), d.ci95, metric, ' points')})"
        for other, d in sorted(worse_than, key=lambda pair: -abs(pair[1].mean))
    ]
    *most, last = said
    return f"{name} does worse than {', '.join(most)}{' and ' if most else ''}{last}."


def is_worse(difference: Difference, metric: str) -> bool:
    """Return whether a difference is to the worse, by more than chance."""
    lower = difference.mean < 0
    return difference.significant and lower == (metric == "accuracy")


def table(
    rows: Iterable[tuple[str, Array, Difference | None]], metric: str, *, p_values: bool
) -> list[str]:
    """Return a line for each row: its name, its score, and a difference.

    Args:
        rows: Name, scores by episode, and the difference to be shown.
        metric: What they are scored by.
        p_values: Whether differences have them.
    """
    cells = []
    for name, scores, difference in rows:
        shown = written(float(scores.mean()), ci95(scores), metric)
        cells.append((name, shown, *written_difference(difference, metric, p_values)))
    widths = [max(len(row[i]) for row in cells) for i in range(3)] if cells else []
    return [
        f"  {name:{widths[0]}}  {shown:>{widths[1]}}  {by:>{widths[2]}}  {p}".rstrip()
        for name, shown, by, p in cells
    ]


def written_difference(
    difference: Difference | None, metric: str, p_values: bool
) -> tuple[str, str]:
    """Return a difference with its sign, and its p-value if that is asked for and known."""
    if difference is None:
        return "", ""
    if not np.any(difference.per_episode):
        return "the same", ""
    sign = "−" if difference.mean < 0 else "+"
    p = difference.p_value
    of_chance = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    shown = p_values and not np.isnan(p)
    return (
        sign + written(abs(difference.mean), difference.ci95, metric, ""),
        of_chance if shown else "",
    )
