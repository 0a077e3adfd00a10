"""Accuracy by class, confusions, and the hardest classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmeta import plots
from tfmeta.reporting.classes import ByClass, Mistake
from tfmeta.reporting.markup import Markup, join, table, tag
from tfmeta.reporting.measuring import Measured
from tfmeta.reporting.pictures import figure_tag, page_style
from tfmeta.reporting.sections.episodes import answer_line, legend
from tfmeta.reporting.sections.examples import Examples, tile
from tfmeta.reporting.sections.words import figure, more, note
from tfmeta.simple_heads import real

# Rows of the picture, of the matrix, and of the table at most; and how many classes are shown.
_DRAWN, _MATRIX, _LISTED, _SHOWN = 30, 20, 2000, 6


def section(measured: Measured) -> tuple[str, Markup]:
    """Return the accuracy of each class and what it is taken for."""
    heading, found = "Accuracy by class and confusions", measured.classes
    if isinstance(found, str):
        return heading, note(f"Not known, for {found}.")
    hardest = found.hardest
    drawn = hardest if len(hardest) <= _DRAWN else hardest[:_DRAWN]
    chance = next(iter(measured.evaluations.values())).references.get("chance")
    with page_style():
        image = figure_tag(
            plots.accuracy_by_class(
                {name: found.accuracy(name)[drawn] for name in found.right},
                [found.class_names[c] for c in drawn],
                chance=None if chance is None else chance.mean,
            ),
            "Accuracy by class; the numbers are in the table below",
        )
    which = "all classes" if drawn is hardest else f"the {_DRAWN} hardest of {len(hardest)} classes"
    fewest = int(found.queries[hardest].min())
    caption = (
        f"Queries that are right, of {which}, the hardest first. A class had {fewest} queries or "
        "more; of few queries the share is uncertain."
    )
    return heading, join(
        figure(image, caption=caption),
        more(
            "All classes as a table", _every_class(found, hardest), on_paper=len(hardest) <= _DRAWN
        ),
        tag("h3", "Confusions"),
        _confusions(found, hardest),
    )


def _every_class(found: ByClass, hardest: list[int]) -> Markup:
    most = {name: found.most_often(name) for name in found.right}
    accuracy = {name: found.accuracy(name) for name in found.right}
    head: list[object] = ["class", "queries"]
    for name in found.right:
        head += [f"{name} (%)", "most often taken for"]
    rows = []
    for c in hardest[:_LISTED]:
        row: list[object] = [found.class_names[c], int(found.queries[c])]
        for name in found.right:
            other, times = most[name].get(c, (None, 0))
            taken = "" if other is None else f"{_called(found, other)} ({times})"
            row += [f"{100 * accuracy[name][c]:.1f}", taken]
        rows.append(row)
    return table(head, rows, class_="numbers")


def _called(found: ByClass, c: int) -> str:
    return found.class_names[c] if c >= 0 else "no class of the task"


def _confusions(found: ByClass, hardest: list[int]) -> Markup:
    """Return a matrix for each learner, and the pairs that are confused most."""
    pairs = {name: found.confused(name) for name in found.right}
    if not any(pairs.values()):
        return note("No query was wrong.")
    chosen = sorted(hardest)
    what = "All classes."
    if len(hardest) > _MATRIX:
        # Of the pairs that are confused most often by any.
        ranked = sorted((p for of in pairs.values() for p in of), key=lambda p: -p[2])
        both = dict.fromkeys(c for pair in ranked for c in pair[:2] if c >= 0)
        chosen = sorted([*both][:_MATRIX])
        what = f"{len(chosen)} of {len(hardest)} classes: those of the pairs confused most often."
    names = [found.class_names[c] for c in chosen]
    with page_style():
        images = [
            figure_tag(
                plots.confusion(found.rates(name, chosen), names, title=name),
                f"Confusion matrix of {name}; the pairs confused most are in the table below",
            )
            for name in found.right
        ]
    caption = (
        f"{what} A cell is the share (%) of the queries of the row's class that got the column's "
        "class as the answer, of those episodes that had both. It is empty where that is 0, and "
        "has no colour where the two never met."
    )
    parts: list[object] = [figure(*images, caption=caption)]
    for name, of in pairs.items():
        rows: list[list[object]] = [
            [
                _called(found, c),
                _called(found, d),
                f"{times} of {met}",
                f"{100 * times / met:.0f} %",
            ]
            for c, d, times, met in of
        ]
        head: list[object] = ["class", "taken for", "times, of queries with both there", "share"]
        parts.append(more(f"The pairs that {name} confuses most often", table(head, rows)))
    return join(parts)


def hardest(measured: Measured, sampler: Any) -> tuple[str, Markup]:
    """Return the classes with the lowest accuracy, with queries that were mistaken."""
    heading, found = "The hardest classes", measured.classes
    if isinstance(found, str):
        return heading, note(f"Not known, for {found}.")
    chosen = [c for c in found.hardest if found.mistakes.get(c)][:_SHOWN]
    if not chosen:
        return heading, note("No query was wrong.")
    learners = list(found.right)
    several = len(learners) > 1
    parts: list[object] = [
        note(
            "The classes with the lowest accuracy"
            + (", on average over the learners" if several else "")
            + ", and the first queries of theirs that were mistaken: left the query, right of it "
            "an example of the class that it was taken for. Of few queries each, some classes are "
            "the hardest by chance. " + (legend(learners) if several else "")
        )
    ]
    for c in chosen:
        scores = ", ".join(
            f"{name + ' ' if several else ''}{100 * found.accuracy(name)[c]:.1f} %"
            for name in learners
        )
        tiles = [_mistake(found, sampler, c, mistake) for mistake in found.mistakes[c]]
        parts.append(
            tag(
                "article",
                tag("h3", found.class_names[c], tag("small", f" {scores} of ", _queries(found, c))),
                tag("div", tiles, class_="tiles"),
                class_="hard",
            )
        )
    return heading, tag("div", *parts)


def _queries(found: ByClass, c: int) -> str:
    return f"{found.queries[c]} queries"


def _mistake(found: ByClass, sampler: Any, c: int, mistake: Mistake) -> Markup:
    """Return a query that was mistaken, which is drawn once more, and what it was taken for."""
    inputs, _ = real(*sampler.batch(mistake.episode, 1))
    shown = Examples(inputs)
    name = found.class_names[c]
    content: list[object] = [shown.show("query_x", mistake.query, f"query of {name}")]
    first = next(answer for answer in mistake.answers.values() if answer != c)
    labels = np.flatnonzero(sampler.draw_classes(mistake.episode, 1)[0] == first)
    if first >= 0 and labels.size:
        of = np.flatnonzero(np.asarray(inputs["support_y"])[0] == labels[0])
        alt = f"support example of {found.class_names[first]}"
        content.append(shown.show("support_x", int(of[0]), alt))
    several = len(mistake.answers) > 1
    lines = [
        answer_line(i if several else None, answer == c, _called(found, answer))
        for i, answer in enumerate(mistake.answers.values())
    ]
    return tile(content, lines, True)
