"""An episode and what was predicted for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfmeta.plots.style import RIGHT, WRONG, Path, ink, plain, saved, short
from tfmeta.types import Array


def episode(
    support_x: Array,
    support_y: Array,
    query_x: Array,
    query_y: Array,
    predictions: Array,
    path: Path | None = None,
    title: str = "",
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw one episode: a row a class, its support images left, its queries right.

    Below each query stands the class that was predicted; the wrong ones are red.

    Args:
        support_x: Images `[ways*shots, height, width, channels]` in `[0, 1]` or uint8.
        support_y: `[ways*shots]`, the integers `0..ways-1`.
        query_x: `[ways*queries, height, width, channels]`.
        query_y: `[ways*queries]`.
        predictions: Predicted classes `[ways*queries]`.
        path: The image file to write, if there is to be one.
        title: A line above the picture.
        class_names: What the classes `0..ways-1` are called; "class 1" and so on without them.

    Returns:
        The figure.

    Raises:
        ValueError: If there are fewer names than classes.
    """
    ways = int(max(support_y.max(), query_y.max())) + 1
    shots = int(np.bincount(support_y, minlength=ways).max())
    queries = int(np.bincount(query_y, minlength=ways).max())
    answers = [f"{way + 1}" for way in range(ways)]
    called = [f"class {number}" for number in answers]
    if class_names is not None:
        if len(class_names) < ways:
            raise ValueError(
                f"`class_names` must have a name for each of the {ways} classes. Received: "
                f"{len(class_names)}"
            )
        called = answers = [short(name, 16) for name in class_names]
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
            _image(axes, image, called[way], ink())
        of_way = query_y == way
        cells = zip(grid[way, shots + 1 :], query_x[of_way], predictions[of_way], strict=False)
        for axes, image, predicted in cells:
            right = predicted == way
            _image(
                axes,
                image,
                answers[predicted] if right else f"{answers[predicted]} ✗",
                RIGHT if right else WRONG,
            )
    heading = {"x": 0.0, "ha": "left", "fontsize": 9, "style": "italic"}
    grid[0, 0].set_title("support", **heading)
    grid[0, shots + 1].set_title("queries, with the predicted class", **heading)
    # The room for the title, in inches, must not grow with the number of ways.
    figure.subplots_adjust(top=1 - 0.6 / height)
    plain([figure.suptitle(title, fontsize=10, y=1 - 0.1 / height)])
    return saved(figure, path)


def _image(axes: Axes, image: Array, caption: str, color: str) -> None:
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.imshow(image, cmap="gray_r" if image.shape[-1] == 1 else None)
    axes.set_xlabel(caption, color=color, fontsize=8, labelpad=2)
    plain([axes.xaxis.label])
    axes.spines[:].set(color=color, linewidth=2 if color == WRONG else 0.8)
