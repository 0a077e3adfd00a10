"""Which classes are told apart, and which are taken for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from tfmeta.plots.style import MARKS, SERIES, Path, ink, plain, saved, short
from tfmeta.types import Array

_LONGEST_NAME = 28


def accuracy_by_class(
    accuracy: Mapping[str, Array],
    class_names: Sequence[str],
    path: Path | None = None,
    chance: float | None = None,
) -> Figure:
    """Draw how many queries of each class are right, a row a class and a mark a learner.

    Args:
        accuracy: By the learner's name `[classes]`, from 0 to 1; NaN where a class had no queries.
        class_names: Their names, in the order in which the rows are drawn.
        path: The image file to write, if there is to be one.
        chance: What guessing would have, drawn as a line.

    Returns:
        The figure.

    Raises:
        ValueError: If there is not a number for each class.

    Example:
        >>> plots.accuracy_by_class({"maml": np.array([0.5, 0.9])}, ["cat", "dog"], chance=0.2)
    """
    for name, values in accuracy.items():
        if len(values) != len(class_names):
            raise ValueError(
                "`accuracy` must have a number for each of the "
                f"{len(class_names)} classes. Received: {len(values)} of {name!r}"
            )
    rows = np.arange(len(class_names))
    figure = Figure(figsize=(4.6, 1.0 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    every = 100 * np.array(list(accuracy.values()))
    if len(accuracy) > 1:
        known = ~np.isnan(every).all(axis=0)
        low, high = np.nanmin(every[:, known], 0), np.nanmax(every[:, known], 0)
        axes.hlines(rows[known], low, high, color="0.6", linewidth=0.8)
    else:
        axes.hlines(rows, 0, np.nan_to_num(every[0]), color="0.6", linewidth=0.8)
    for i, (name, values) in enumerate(zip(accuracy, every, strict=True)):
        style: dict[str, Any] = {"color": SERIES[i % len(SERIES)], "markersize": 5, "label": name}
        # Marks of equal numbers stand beside each other.
        aside = 0.2 * (i - (len(accuracy) - 1) / 2)
        axes.plot(values, rows + aside, MARKS[i % len(MARKS)], **style, clip_on=False)
    if chance is not None:
        axes.axvline(100 * chance, color=ink(), linewidth=0.8, linestyle="--", label="chance")
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6), xlabel="queries that are right (%)")
    axes.set_yticks(rows, [short(name, _LONGEST_NAME) for name in class_names], fontsize=8)
    axes.tick_params(axis="y", length=0, pad=8)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    plain(axes.get_yticklabels())
    if len(accuracy) > 1 or chance is not None:
        legend = figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
        plain(legend.get_texts())
    return saved(figure, path)


def confusion(
    rates: Array, class_names: Sequence[str], path: Path | None = None, title: str = ""
) -> Figure:
    """Draw how often one class is taken for another, a row the true class, a column the answer.

    In few-shot episodes two classes can be confused only where both were drawn. So a cell is meant
    to be the share of the queries of the row's class, of episodes that had the column's class as
    well, that got the column's as the answer; rows need not sum to one then.

    Args:
        rates: `[classes, classes]`, from 0 to 1; NaN where two classes never met.
        class_names: Their names.
        path: The image file to write, if there is to be one.
        title: A line above the picture.

    Returns:
        The figure.

    Raises:
        ValueError: If `rates` are not a square with a row for each name.
    """
    ways = len(class_names)
    if np.shape(rates) != (ways, ways):
        raise ValueError(
            f"`rates` must be [{ways}, {ways}], as there are names. Received: "
            f"shape={np.shape(rates)}"
        )
    side = max(2.2, 0.3 * ways)
    figure = Figure(figsize=(side + 1.6, side + 1.4), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["Blues"]
    # Vector squares: a picture would be blurred where it is enlarged.
    axes.pcolormesh(100 * rates, cmap=colours, vmin=0, vmax=100, edgecolors="none")
    axes.invert_yaxis()
    axes.set_aspect("equal")
    names = [short(name, _LONGEST_NAME) for name in class_names]
    middles = np.arange(ways) + 0.5
    axes.set_xticks(middles, names, rotation=90, fontsize=8)
    axes.set_yticks(middles, names, fontsize=8)
    plain([*axes.get_xticklabels(), *axes.get_yticklabels()])
    axes.tick_params(length=0)
    axes.set(xlabel="answer (%)", ylabel="class")
    for row, column in np.ndindex(ways, ways):
        rate = rates[row, column]
        if not np.isnan(rate) and rate >= 0.005:
            letters = "white" if rate > 0.5 else "#102030"
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": 7,
                "color": letters,
            }
            axes.text(column + 0.5, row + 0.5, f"{100 * rate:.0f}", **style)
    plain([axes.set_title(title, fontsize=10)])
    return saved(figure, path)
