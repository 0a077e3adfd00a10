"""How far predicted probabilities can be believed."""

from __future__ import annotations

from matplotlib.figure import Figure

from tfmeta.calibration import reliability
from tfmeta.plots.style import BAR, WRONG, Path, ink, plain, saved
from tfmeta.types import Array


def reliability_diagram(
    probabilities: Array,
    labels: Array,
    path: Path | None = None,
    bins: int = 15,
    title: str = "",
) -> Figure:
    """Draw accuracy against confidence, and below how many predictions have each confidence.

    Bars that end below the diagonal are too sure of themselves, those above it not sure enough. The
    red gap to the bin's mean confidence stands on the bar, or hangs down into it.

    Args:
        probabilities: `[n, ways]`.
        labels: Integers `[n]`.
        path: The image file to write, if there is to be one.
        bins: Bins of equal width between 0 and 1.
        title: A line above the picture.

    Returns:
        The figure.
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
    upper.plot([0, 1], [0, 1], color=ink(), linewidth=0.8, linestyle="--")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    error = f"expected calibration error {100 * found.error:.2f} %"
    plain([figure.suptitle("\n".join([title, error] if title else [error]), fontsize=10)])
    lower.bar(middle, 100 * share, width, color="0.6", edgecolor="white")
    lower.axvline(share @ confidence, color=ink(), label="mean confidence")
    lower.axvline(share @ accuracy, color=ink(), linestyle="--", label="accuracy")
    lower.set(xlabel="confidence", ylabel="queries (%)")
    # Any corner inside may have bars.
    for axes, height in ((upper, 1.0), (lower, 1.02)):
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, height), ncols=2, fontsize=8, frameon=False
        )
    return saved(figure, path)
