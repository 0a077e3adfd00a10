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


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_only_whole_epochs_are_marked(epochs: int) -> None:
    history = {"epoch": [*range(epochs)], "loss": [1.0] * epochs}
    for figure in (plots.learning_curve(history), plots.learning_curves({"one": history})):
        (axes,) = figure.axes
        low, high = axes.get_xlim()
        marked = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert marked
        assert all(tick == round(tick) for tick in marked)


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


def test_an_episode_has_the_names_of_its_classes() -> None:
    images = np.zeros((2, 4, 4, 1), np.float32)
    labels = np.array([0, 1])
    given = (images, labels, images, labels, labels[::-1])
    names = ["$cat_{$", "a dog of a breed that has no short name"]
    shown = [axes for axes in plots.episode(*given, class_names=names).axes if axes.images]
    captions = [axes.get_xlabel() for axes in shown]
    long = "a dog of…rt name"
    assert captions == ["$cat_{$", f"{long} ✗", long, "$cat_{$ ✗"]
    assert not any(axes.xaxis.label.get_parse_math() for axes in shown)
    with pytest.raises(ValueError, match=r"a name for each of the 2 classes\. Received: 1"):
        plots.episode(*given, class_names=["one"])


def test_figures_are_returned_and_written_where_there_is_a_path(
    tmp_path: Path, figures: list[Figure]
) -> None:
    p, y = np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 0])
    history = {"epoch": [0], "loss": [1.0]}
    scores = {"a": np.array([0.5, 0.7])}
    x, labels = np.zeros((1, 4, 4, 1)), np.array([0])
    for draw in (
        lambda path: plots.learning_curve(history, path),
        lambda path: plots.learning_curves({"a": history}, "loss", path),
        lambda path: plots.reliability_diagram(p, y, path),
        lambda path: plots.accuracy_by_class({"a": np.array([0.5])}, ["one"], path),
        lambda path: plots.confusion(np.eye(1), ["one"], path),
        lambda path: plots.comparison(scores, {"a": 0.0}, path),
        lambda path: plots.episode(x, labels, x, labels, labels, path),
        lambda path: plots.inner_rates(
            np.array([0.1]), np.ones([1, 3]), np.ones([1, 3]), 0.1, path
        ),
    ):
        assert isinstance(draw(None), Figure)
        assert figures == []
        assert [draw(tmp_path / "figure.png")] == figures
        assert (tmp_path / "figure.png").stat().st_size > 1000
        figures.clear()


def test_curves_of_several_runs_are_in_one_panel() -> None:
    histories = {
        "one": {"epoch": [0, 1], "loss": [3.0, 2.0], "val_loss": [4.0, 5.0]},
        "two$": {"epoch": [0], "loss": [1.0]},
        "three": {"epoch": [0], "accuracy": [0.5]},
    }
    (axes,) = plots.learning_curves(histories, "loss").axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert lines == {
        "one, training": [3.0, 2.0],
        "one, validation": [4.0, 5.0],
        "two$, training": [1.0],
    }
    with pytest.raises(ValueError, match=r"`metric` must be one .* Received: metric='f1'"):
        plots.learning_curves(histories, "f1")


@pytest.mark.parametrize("several", [False, True])
def test_accuracy_by_class_has_a_row_a_class(several: bool) -> None:
    accuracy = {"a": np.array([0.25, np.nan, 1.0])}
    if several:
        accuracy["b"] = np.array([0.5, np.nan, 0.5])
    (axes,) = plots.accuracy_by_class(accuracy, ["x", "$y_{", "z"], chance=0.2).axes
    names = axes.get_yticklabels()
    assert [name.get_text() for name in names] == ["x", "$y_{", "z"]
    assert not any(name.get_parse_math() for name in names)
    marks = {line.get_label(): line.get_xdata() for line in axes.lines}
    assert marks.pop("chance") == [20, 20]
    for name, values in accuracy.items():
        np.testing.assert_array_equal(marks[name], 100 * values)
    with pytest.raises(ValueError, match=r"each of the 1 classes\. Received: 3 of 'a'"):
        plots.accuracy_by_class(accuracy, ["x"])


def test_a_confusion_matrix_has_a_number_in_each_cell_that_is_not_empty() -> None:
    rates = np.array([[0.75, 0.25, np.nan], [0.0, 1.0, 0.004], [np.nan, 0.5, 0.5]])
    (axes,) = plots.confusion(rates, ["x", "y", "$z_{"], title="t").axes
    found = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert found == {
        *[((0.5, 0.5), "75"), ((1.5, 0.5), "25"), ((1.5, 1.5), "100")],
        *[((1.5, 2.5), "50"), ((2.5, 2.5), "50")],
    }
    assert axes.yaxis_inverted()  # the first class is at the top
    with pytest.raises(ValueError, match=r"`rates` must be \[2, 2\].*shape=\(3, 3\)"):
        plots.confusion(rates, ["x", "y"])


@pytest.mark.parametrize("metric", ["accuracy", "mean squared error"])
def test_a_comparison_has_a_row_each(metric: str, tmp_path: Path, figures: list[Figure]) -> None:
    per_episode = {"one": np.array([0.9, 0.7]), "the other": np.array([0.8, 0.2])}
    plots.comparison(
        per_episode,
        {"one": 0.0, "the other": 0.25},
        tmp_path / "comparison.png",
        metric=metric,
        baselines=["the other"],
    )
    left, right = figures[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["one", "the other"]
    said = [[text.get_text() for text in axes.texts] for axes in (left, right)]
    deviation = 1.96 * np.std([0.9, 0.7], ddof=1) / np.sqrt(2)
    if metric == "accuracy":
        assert said[0][0] == f"80.0 ± {100 * deviation:.1f}"
        assert said[1] == ["−30.0 ± 25.0"]
    else:
        assert said[0][0] == f"0.8000 ± {deviation:.4f}"
        assert said[1] == ["−0.3000 ± 0.2500"]
    assert "baselines grey" in figures[0].get_suptitle()


@pytest.mark.parametrize("episodes", [1, 3])
def test_rates_that_diverge_are_crosses(
    episodes: int, tmp_path: Path, figures: list[Figure]
) -> None:
    rates = np.array([0.1, 1.0, 10.0])
    losses = np.array([2.0, 1.0, np.inf])[:, None] + np.zeros(episodes)
    accuracies = np.array([0.3, 0.6, np.nan])[:, None] + np.zeros(episodes)
    plots.inner_rates(rates, losses, accuracies, 0.5, tmp_path / "rates.png", steps=2)
    above, below = figures[0].axes
    assert above.lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert below.lines[0].get_ydata().tolist() == [30.0, 60.0]
    crosses = [line for line in above.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert [float(line.get_xdata()[0]) for line in crosses] == [10.0]
    assert "after 2 inner steps" in figures[0].get_suptitle()
    plots.inner_rates(rates[:2], losses[:2], None, 0.5, tmp_path / "rates.png")
    assert len(figures[1].axes) == 1
