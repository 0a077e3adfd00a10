"""What training has logged, over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfmeta.plots.style import MARKS, SERIES, Path, plain, saved


def learning_curve(history: Mapping[str, Sequence[float]], path: Path | None = None) -> Figure:
    """Draw each metric over the epochs, training and validation in one panel.

    Args:
        history: `"epoch"` (counted from 0, as Keras's `History` does) and one series a metric, as
            Keras names them: `loss`, `val_loss`, `accuracy`, ...
        path: The image file to write, if there is to be one.

    Returns:
        The figure.
    """
    names = [name for name in history if name != "epoch" and not name.startswith("val_")]
    names.sort(key=lambda name: (name != "loss", name))
    figure = Figure(figsize=(4.5 * len(names), 3.4), layout="constrained")
    epochs = np.asarray(history["epoch"]) + 1
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axes.plot(epochs, history[name], marker=".", label="training")
        if f"val_{name}" in history:
            axes.plot(epochs, history[f"val_{name}"], marker=".", label="validation")
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    return saved(figure, path)


def learning_curves(
    histories: Mapping[str, Mapping[str, Sequence[float]]],
    metric: str = "loss",
    path: Path | None = None,
) -> Figure:
    """Draw one metric of several runs over the epochs, training dotted and validation drawn out.

    Args:
        histories: By the name of the run, what `learning_curve` takes. A run that did not log the
            metric is left out.
        metric: Which, without the `val_` of validation.
        path: The image file to write, if there is to be one.

    Returns:
        The figure.

    Raises:
        ValueError: If no run has the metric.
    """
    kept = [
        (i, name, history)
        for i, (name, history) in enumerate(histories.items())
        if metric in history or f"val_{metric}" in history
    ]
    if not kept:
        raise ValueError(f"`metric` must be one that a run has logged. Received: metric={metric!r}")
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    for i, name, history in kept:
        epochs = np.asarray(history["epoch"]) + 1
        style: dict[str, Any] = {
            "color": SERIES[i % len(SERIES)],
            "marker": MARKS[i % len(MARKS)],
            "markersize": 4,
        }
        of = f"{name}, " if len(histories) > 1 else ""
        for key, line, what in ((metric, ":", "training"), (f"val_{metric}", "-", "validation")):
            if key in history:
                axes.plot(epochs, history[key], **style, linestyle=line, label=f"{of}{what}")
    axes.set(xlabel="epoch", ylabel=metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    legend = figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    plain(legend.get_texts())
    return saved(figure, path)
