"""Pictures show what they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tfmeta import plots


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in the order in which they are saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *args: object, **kwargs: object) -> None:
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def test_a_learning_curve_has_a_panel_a_metric(tmp_path: Path, figures: list[Figure]) -> None:
    history = {"epoch": [0, 1], "accuracy": [0.1, 0.2], "loss": [3.0, 2.0], "val_loss": [4.0, 5.0]}
    plots.learning_curve(history, tmp_path / "curve.png")
    loss, accuracy = figures[0].axes
    assert (loss.get_title(), accuracy.get_title()) == ("loss", "accuracy")
    assert [line.get_ydata().tolist() for line in loss.lines] == [[3.0, 2.0], [4.0, 5.0]]
    assert loss.lines[0].get_xdata().tolist() == [1, 2]
    assert len(accuracy.lines) == 1
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("channels", [1, 3])
def test_an_episode_marks_wrong_predictions(
    channels: int, tmp_path: Path, figures: list[Figure]
) -> None:
    images = np.random.default_rng(0).random((6, 8, 8, channels), np.float32)
    plots.episode(
        support_x=images[:2],
        support_y=np.array([0, 1]),
        query_x=images[2:],
        query_y=np.array([0, 0, 1, 1]),
        predictions=np.array([0, 1, 1, 1]),
        path=tmp_path / "episode.png",
        title="one wrong",
    )
    shown = [axes for axes in figures[0].axes if axes.images]
    assert len(shown) == 6
    captions = [(axes.get_xlabel(), axes.xaxis.label.get_color()) for axes in shown]
    right, wrong = plots.RIGHT, plots.WRONG
    assert captions == [
        *[("class 1", "black"), ("1", right), ("2 ✗", wrong)],
        *[("class 2", "black"), ("2", right), ("2", right)],
    ]
    assert (tmp_path / "episode.png").stat().st_size > 1000
