"""Pictures: a learning curve, a reliability diagram, and an episode with its predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfmeta.calibration import reliability
from tfmeta.files import replacing
from tfmeta.types import Array

RIGHT, WRONG = "#1b7837", "#c51b2f"
BAR = "#4477aa"


def learning_curve(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """Draw each metric over the epochs, training and validation in one panel.

    Args:
        history: `"epoch"` (counted from 0) and one series a metric, as Keras names them: `loss`,
            `val_loss`, `accuracy`, ...
        path: The image file to write.
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
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def reliability_diagram(
    probabilities: Array,
    labels: Array,
    path: str | os.PathLike[str],
    bins: int = 15,
    title: str = "",
) -> None:
    """Draw accuracy against confidence, and below how many predictions have each confidence.

    Bars that end below the diagonal are too sure of themselves, those above it not sure enough. The
    red gap to the bin's mean confidence stands on the bar, or hangs down into it.

    Args:
        probabilities: `[n, ways]`.
        labels: Integers `[n]`.
        path: The image file to write.
        bins: Bins of equal width between 0 and 1.
        title: A line above the picture.
    """
    found = reliability(probabilities, labels, bins)
    full = found.count > 0
    middle, width = (found.edges[:-1] + found.edges[1:])[full] / 2, 1 / bins
    share = found.count[full] / found.count.sum()
    accuracy, confidence = found.accuracy[full], found.confidence[full]
    figure = Figure(figsize=(4.2, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.bar(middle, accuracy, width, color=BAR, edgecolor="white", label="accuracy")
    gap = confidence - accuracy
    upper.bar(
        *(middle, gap, width, accuracy),
        **{"color": WRONG, "alpha": 0.35, "edgecolor": WRONG, "label": "gap to confidence"},
    )
    upper.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    error = f"expected calibration error {100 * found.error:.2f} %"
    figure.suptitle("\n".join([title, error] if title else [error]), fontsize=10)
    lower.bar(middle, 100 * share, width, color="0.6", edgecolor="white")
    lower.axvline(share @ confidence, color="black", label="mean confidence")
    lower.axvline(share @ accuracy, color="black", linestyle="--", label="accuracy")
    lower.set(xlabel="confidence", ylabel="queries (%)")
    # Any corner inside may have bars.
    for axes, height in ((upper, 1.0), (lower, 1.02)):
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, height), ncols=2, fontsize=8, frameon=False
        )
    _save(figure, path)


def episode(
    support_x: Array,
    support_y: Array,
    query_x: Array,
    query_y: Array,
    predictions: Array,
    path: str | os.PathLike[str],
    title: str = "",
) -> None:
    """Draw one episode: a row a class, its support images left, its queries right.

    Below each query stands the class that was predicted; the wrong ones are red.

    Args:
        support_x: Images `[ways*shots, height, width, channels]` in `[0, 1]` or uint8.
        support_y: `[ways*shots]`, the integers `0..ways-1`.
        query_x: `[ways*queries, height, width, channels]`.
        query_y: `[ways*queries]`.
        predictions: Predicted classes `[ways*queries]`.
        path: The image file to write.
        title: A line above the picture.
    """
    ways = int(max(support_y.max(), query_y.max())) + 1
    shots = int(np.bincount(support_y, minlength=ways).max())
    queries = int(np.bincount(query_y, minlength=ways).max())
    height = 0.6 + 1.1 * ways
    figure = Figure(figsize=(1.0 + 0.9 * (shots + queries), height))
    grid = figure.subplots(
        ways,
        shots + queries + 1,
        squeeze=False,
        # The narrow empty column keeps support and queries apart.
        gridspec_kw={"width_ratios": [1.0] * shots + [0.35] + [1.0] * queries},
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for way in range(ways):
        for axes, image in zip(grid[way, :shots], support_x[support_y == way], strict=False):
            _image(axes, image, f"class {way + 1}", "black")
        of_way = query_y == way
        cells = zip(grid[way, shots + 1 :], query_x[of_way], predictions[of_way], strict=False)
        for axes, image, predicted in cells:
            right = predicted == way
            _image(
                axes,
                image,
                f"{predicted + 1}" if right else f"{predicted + 1} ✗",
                RIGHT if right else WRONG,
            )
    heading = {"x": 0.0, "ha": "left", "fontsize": 9, "style": "italic"}
    grid[0, 0].set_title("support", **heading)
    grid[0, shots + 1].set_title("queries, with the predicted class", **heading)
    # The room for the title, in inches, must not grow with the number of ways.
    figure.subplots_adjust(top=1 - 0.6 / height)
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height)
    _save(figure, path)


def _image(axes: Axes, image: Array, caption: str, color: str) -> None:
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.imshow(image, cmap="gray_r" if image.shape[-1] == 1 else None)
    axes.set_xlabel(caption, color=color, fontsize=8, labelpad=2)
    axes.spines[:].set(color=color, linewidth=2 if color == WRONG else 0.8)


def _save(figure: Figure, path: Any) -> None:
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120, bbox_inches="tight")
