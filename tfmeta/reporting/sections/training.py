"""What the learners were trained with, and what training has logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfmeta import plots
from tfmeta.reporting.markup import Markup, join, table, tag
from tfmeta.reporting.pictures import figure_tag, page_style
from tfmeta.reporting.sections.words import figure, more, note


def settings(of: Mapping[str, Mapping[str, object]]) -> tuple[str, Markup]:
    """Return the settings of the runs, a column each, those that differ first and marked."""
    names = list(dict.fromkeys(name for values in of.values() for name in values))
    if not names:
        return "Settings", note("None were given.")
    different: list[list[object]] = []
    same: list[list[object]] = []
    for name in names:
        values = [_written(found[name]) if name in found else "–" for found in of.values()]
        if len(set(values)) > 1:
            different.append([tag("strong", name), *values])
        else:
            same.append([name, values[0]])
    if len(of) == 1:
        return "Settings", table(["setting", *of], same)
    parts: list[object] = []
    if different:
        parts.append(note(f"{len(different)} of {len(names)} settings differ:"))
        parts.append(table(["", *of], different, class_="differ"))
    else:
        parts.append(note("All settings are the same."))
    if same:
        parts.append(
            more(f"{len(same)} settings that all have in common", table(["setting", "all"], same))
        )
    return "Settings", join(parts)


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_written(v)}" for key, v in value.items()) or "–"
    if isinstance(value, list | tuple):
        return " × ".join(map(_written, value))
    return "–" if value is None else str(value)


def curves(of: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[str, Markup]:
    """Return a picture for each metric that was logged, and the numbers of the last epoch."""
    there = {name: history for name, history in of.items() if history.get("epoch")}
    if not there:
        return "Learning curves", note("No history of training is known.")
    logged = [key for history in there.values() for key in history if key != "epoch"]
    metrics = list(dict.fromkeys(key.removeprefix("val_") for key in logged))
    metrics.sort(key=lambda name: (name != "loss", name))
    with page_style():
        images = [
            figure_tag(
                plots.learning_curves(there, metric),
                f"{metric} over the epochs of {', '.join(there)}",
            )
            for metric in metrics
        ]
    columns = list(dict.fromkeys(logged))
    rows = [
        [
            name,
            len(history["epoch"]),
            *(f"{history[key][-1]:.4f}" if key in history else "–" for key in columns),
        ]
        for name, history in there.items()
    ]
    text = "Dotted lines are of training classes, the others of validation classes."
    last = table(["", "epochs", *columns], rows, class_="numbers")
    return "Learning curves", join(figure(*images, caption=text), more("The last epoch", last))
