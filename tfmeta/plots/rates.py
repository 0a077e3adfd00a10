"""The loss after adaptation over the inner learning rate."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from tfmeta.plots.style import BAR, RIGHT, WRONG, Path, plain, saved
from tfmeta.types import Array


def inner_rates(
    rates: Array,
    losses: Array,
    accuracies: Array | None,
    suggested: float,
    path: Path | None = None,
    *,
    steps: int = 1,
    title: str = "",
) -> Figure:
    """Draw the query loss after adaptation over the inner learning rate, and the accuracy below.

    Rates that diverge are crosses at the upper edge.

    Args:
        rates: `[rates]`.
        losses: `[rates, episodes]`, infinite where a rate diverges.
        accuracies: `[rates, episodes]`, or `None`.
        suggested: The rate that is marked.
        path: The image file to write, if there is to be one.
        steps: How many inner steps were taken.
        title: A line above the picture.

    Returns:
        The figure.
    """
    panels = 1 if accuracies is None else 2
    figure = Figure(figsize=(4.8, 1.0 + 2.1 * panels), layout="constrained")
    every = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    finite = np.isfinite(losses).all(1)
    series = [("query loss", losses, 1.0)]
    if accuracies is not None:
        series.append(("accuracy (%)", accuracies, 100.0))
    for axes, (label, values, factor) in zip(every, series, strict=True):
        kept = factor * values[finite]
        half = 1.96 * kept.std(1, ddof=1) / np.sqrt(kept.shape[1]) if kept.shape[1] > 1 else None
        middle = kept.mean(1)
        axes.errorbar(rates[finite], middle, half, color=BAR, marker=".", capsize=2)
        axes.axvline(suggested, color=RIGHT, linestyle="--", label=f"suggested: {suggested:g}")
        axes.set(ylabel=label, xscale="log")
        axes.grid(alpha=0.3)
    top = every[0]
    least, start = losses[finite].mean(1).min(), losses[finite][0].mean()
    # Losses beyond any use would flatten the part that matters.
    room = max(start - least, 1e-3 * abs(start), 1e-12)
    highest = max(losses[finite].mean(1).max(), start)
    if highest > start + 2 * room:
        top.set_ylim(least - 0.3 * room, start + 2 * room)
    for rate in rates[~finite]:
        top.plot(rate, 0.95, "x", color=WRONG, transform=top.get_xaxis_transform(), clip_on=False)
    if not finite.all():
        top.plot([], [], "x", color=WRONG, label="diverges")
    top.legend(fontsize=8)
    every[-1].set_xlabel("inner learning rate")
    taken = f"after {steps} inner step{'s' * (steps > 1)}, {losses.shape[1]} episodes"
    plain([figure.suptitle("\n".join([title, taken] if title else [taken]), fontsize=10)])
    return saved(figure, path)
