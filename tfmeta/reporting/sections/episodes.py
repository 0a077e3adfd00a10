"""Some episodes: what was shown, what was asked, and what was answered."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmeta.plots.style import short
from tfmeta.reporting.markup import Markup, join, table, tag
from tfmeta.reporting.measuring import Example, Measured
from tfmeta.reporting.sections.examples import Examples, described, tile
from tfmeta.reporting.sections.words import note
from tfmeta.score_table import written

# What is shown of an episode at most.
_WAYS, _SHOTS, _QUERIES = 10, 5, 8
_LONGEST_NAME = 32


def section(measured: Measured, sampler: Any) -> tuple[str, Markup]:
    """Return the episodes that were kept."""
    names = getattr(getattr(sampler, "source", None), "class_names", None)
    said = []
    if measured.metric == "accuracy":
        said.append(
            "Left what was shown of each class, right the queries and the answers to them; a wrong "
            "one is told by the number of its class."
        )
    if len(measured.evaluations) > 1:
        said.append(legend(list(measured.evaluations)))
    parts: list[object] = [note(" ".join(said))] if said else []
    for example in measured.examples:
        scores = ", ".join(
            f"{name} {written(value, 0.0, measured.metric)}"
            for name, value in example.scores.items()
        )
        head = join(f"Episode {example.number + 1}", tag("small", f" {scores}"))
        if measured.metric != "accuracy":
            body = _targets(example)
        elif example.labels.ndim == 2:
            body = _ways(example, names)
        else:
            body = note("Each example has many answers, which are not shown.")
        parts.append(tag("article", tag("h3", head), note(f"{_upper(example.why)}."), body))
    return "Example episodes", join(parts)


def legend(learners: list[str]) -> str:
    """Return which letter stands for which learner."""
    return ", ".join(f"{letter(i)} is {name}" for i, name in enumerate(learners)) + "."


def letter(i: int) -> str:
    """Return the sign of learner number `i`."""
    return chr(ord("A") + i) if i < 26 else str(i + 1)


def answer_line(i: int | None, right: bool, name: object) -> Markup:
    """Return an answer in a line; `i` is the learner's number, if there are several."""
    sign = tag("b", "✓" if right else "✗", class_="right" if right else "wrong")
    before = "" if i is None else f"{letter(i)} "
    return join(before, sign, "" if right else f" {short(str(name), _LONGEST_NAME)}")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ways(example: Example, names: Any) -> Markup:
    """Return a row for each class: its support examples, and its queries with the answers."""
    shown = Examples(example.inputs)
    support_y, labels = np.asarray(example.inputs["support_y"])[0], example.labels[0]
    several = len(example.answers) > 1

    def called(label: int) -> str:
        if example.classes is None or names is None:
            return f"class {label + 1}"
        known = 0 <= label < len(example.classes) and example.classes[label] >= 0
        return str(names[example.classes[label]]) if known else "no class of the task"

    rows = []
    ways = [int(way) for way in np.unique(support_y) if way >= 0]
    for way in ways[:_WAYS]:
        support = [
            tile([shown.show("support_x", int(i), f"support example of {called(way)}")], [])
            for i in np.flatnonzero(support_y == way)[:_SHOTS]
        ]
        queries = []
        for i in np.flatnonzero(labels == way)[:_QUERIES]:
            answers = [int(found[0][i]) for found in example.answers.values()]
            lines = [
                answer_line(n if several else None, answer == way, answer + 1)
                for n, answer in enumerate(answers)
            ]
            wrong = any(answer != way for answer in answers)
            alt = f"query of {called(way)}, answered {', '.join(map(called, answers))}"
            queries.append(tile([shown.show("query_x", int(i), alt)], lines, wrong))
        rows.append(
            tag(
                "div",
                tag("h4", tag("b", f"{way + 1} "), called(way) if names is not None else None),
                tag("div", support, class_="tiles support"),
                tag("div", queries, class_="tiles"),
                class_="way",
            )
        )
    left_out = _left_out(len(ways), support_y, labels)
    return join(rows, left_out)


def _left_out(ways: int, support_y: Any, labels: Any) -> Markup | None:
    said = []
    for what, there, most in (
        ("classes", ways, _WAYS),
        ("support examples of a class", int(np.bincount(support_y[support_y >= 0]).max()), _SHOTS),
        ("queries of a class", int(np.bincount(labels[labels >= 0]).max(initial=0)), _QUERIES),
    ):
        if there > most:
            said.append(f"{most} of {there} {what}")
    return note(f"Shown are {', '.join(said)}.") if said else None


def _targets(example: Example) -> Markup:
    """Return the first queries of a task of regression."""
    x = example.inputs["query_x"]
    several = isinstance(x, dict | list | tuple)
    rows: list[list[object]] = []
    for i in range(min(_QUERIES, example.labels.shape[1])):
        rows.append(
            [
                "of several parts" if several else described(np.asarray(x)[0][i]),
                described(example.labels[0][i]),
                *(described(found[0][i]) for found in example.answers.values()),
            ]
        )
    return table(["query", "target", *example.answers], rows, class_="numbers")
