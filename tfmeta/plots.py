"""Pictures: learning curves, reliability, episodes with predictions, comparisons and rates."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfmeta.calibration import reliability
from tfmeta.files import replacing
from tfmeta.types import Array

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(
        f"Pictures are drawn by matplotlib: pip install matplotlib. Received: {error}"
    ) from error

RIGHT, WRONG = "#1b7837", "#c51b2f"
BAR = "#4477aa"


def learning_curve(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """Draw each metric over the epochs, training and validation in one panel.

    Args:
        history: `"epoch"` (counted from 0, as Keras's `History` does) and one series a metric, as
            Keras names them: `loss`, `val_loss`, `accuracy`, ...
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


def comparison(
    per_episode: Mapping[str, Array],
    intervals: Mapping[str, float],
    path: str | os.PathLike[str],
    *,
    metric: str = "accuracy",
    baselines: Sequence[str] = (),
    title: str = "",
) -> None:
    """Draw the scores of the same episodes, a row each, and their differences from the first one.

    Intervals of two rows may overlap although one of them is better in nearly all episodes: that is
    what the right panel tells, whose intervals are those of paired differences.

    Args:
        per_episode: By name, the best first, `[episodes]`.
        intervals: By name, half the width of the 95 % interval of the paired difference.
        path: The image file to write.
        metric: `"accuracy"`, drawn in per cent, or what else it is.
        baselines: Names that are drawn in grey.
        title: A line above the picture.
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
    right.axvline(0, color="black", linewidth=0.8)
    left.set_yticks(np.arange(len(names)), [textwrap.fill(name, 32) for name in names])
    left.set_ylim(len(names) - 0.5, -0.8)
    per_cent, points = (" (%)", " (points)") if metric == "accuracy" else ("", "")
    left.set_xlabel(metric + per_cent)
    right.set_xlabel(f"paired difference from the best{points}")
    note = f"{episodes} episodes, 95 % intervals" + (", baselines grey" if baselines else "")
    figure.suptitle("\n".join([title, note] if title else [note]), fontsize=10)
    _save(figure, path)


def inner_rates(
    rates: Array,
    losses: Array,
    accuracies: Array | None,
    suggested: float,
    path: str | os.PathLike[str],
    *,
    steps: int = 1,
    title: str = "",
) -> None:
    """Draw the query loss after adaptation over the inner learning rate, and the accuracy below.

    Rates that diverge are crosses at the upper edge.

    Args:
        rates: `[rates]`.
        losses: `[rates, episodes]`, infinite where a rate diverges.
        accuracies: `[rates, episodes]`, or `None`.
        suggested: The rate that is marked.
        path: The image file to write.
        steps: How many inner steps were taken.
        title: A line above the picture.
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
    figure.suptitle("\n".join([title, taken] if title else [taken]), fontsize=10)
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
