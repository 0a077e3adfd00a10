"""The scores, those of simple methods, and their paired differences."""

from __future__ import annotations

import math

from tfmeta import plots
from tfmeta.reporting.markup import Markup, join, table, tag
from tfmeta.reporting.measuring import Measured
from tfmeta.reporting.pictures import figure_tag, page_style
from tfmeta.reporting.sections.words import difference, figure, more, note, score


def summary(measured: Measured) -> Markup:
    """Return a card for each learner, and below in words what is to be known first."""
    cards = []
    for name, found in measured.evaluations.items():
        lines = [
            tag("h3", name),
            tag("p", score(found.per_episode, found.metric), class_="score"),
            tag("p", _kind(measured), class_="note"),
        ]
        if found.transductive:
            text = "transductive: the queries of an episode are answered together"
            lines.append(tag("p", text, class_="note"))
        cards.append(tag("div", *lines, class_="card"))
    said = [tag("p", words) for words in verdict(measured)]
    for name, found in measured.evaluations.items():
        before = f"{name}: " if len(measured.evaluations) > 1 else ""
        said += [tag("p", f"{before}{words}", class_="warning") for words in found.warnings]
    return tag("div", tag("div", cards, class_="cards"), said, class_="summary")


def _kind(measured: Measured) -> str:
    if measured.episodes == 1:
        return f"{measured.metric}, of 1 episode: no interval"
    return f"{measured.metric}, mean of {measured.episodes} episodes with its 95 % interval"


def verdict(measured: Measured) -> list[str]:
    """Return in words which learner is better, by a paired comparison."""
    comparison = measured.comparison
    best, *others = [name for name in comparison.ranking if name in measured.evaluations]
    said = []
    for name in others:
        found = comparison.difference(best, name)
        amount = _amount(abs(found.mean), found.ci95, measured.metric)
        if math.isnan(found.p_value):
            said.append(
                f"{best} scores better than {name} by {amount}; one episode proves nothing."
            )
        elif found.significant:
            said.append(f"{best} is better than {name} by {amount}, {_chance(found.p_value)}.")
        else:
            said.append(
                f"{best} and {name} cannot be told apart: they differ by {amount}, "
                f"{_chance(found.p_value)}."
            )
    return said


def _amount(mean: float, interval: float, metric: str) -> str:
    factor, digits, unit = (100, 2, " points") if metric == "accuracy" else (1, 4, "")
    known = "" if math.isnan(interval) else f" ± {factor * interval:.{digits}f}"
    return f"{factor * mean:.{digits}f}{known}{unit}"


def _chance(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def section(measured: Measured) -> tuple[str, Markup]:
    """Return the table of all scores, and a picture of it."""
    comparison, metric = measured.comparison, measured.metric
    learners = list(measured.evaluations)
    rows = []
    for name in comparison.ranking:
        own = name in measured.evaluations
        cells: list[object] = [
            tag("strong", name) if own else name,
            score(comparison.per_episode[name], metric),
        ]
        for learner in learners:
            same = learner == name
            cells.append("" if same else difference(comparison.difference(learner, name), metric))
        rows.append(cells)
    head: list[object] = ["", metric, *(f"{learner} less this" for learner in learners)]
    parts: list[object] = [table(head, rows, class_="numbers")]
    for what, why in comparison.left_out.items():
        parts.append(note(f"Left out: {what}, for {why}."))
    parts.append(
        note(
            "All are scored on the same episodes, so that differences are taken episode by episode "
            "(paired) and have an interval of their own, which is usually narrower than the "
            "scores' intervals suggest. Those that exclude zero are bold. Each p-value is that of "
            "one paired t-test; among twenty of them one below 0.05 is to be expected by chance."
        )
    )
    if metric != "accuracy":
        r2 = [f"{name} {found.r2:.4f}" for name, found in measured.evaluations.items()]
        parts.append(note(f"R²: {', '.join(r2)}. A lower error is better."))
    if len(comparison.per_episode) > 1:
        best = comparison.ranking[0]
        with page_style():
            drawn = plots.comparison(
                {name: comparison.per_episode[name] for name in comparison.ranking},
                {name: comparison.difference(name, best).ci95 for name in comparison.ranking},
                metric=metric,
                baselines=comparison.baselines,
            )
            image = figure_tag(drawn, "The scores of the table, and differences from the best")
        parts.append(more("The same as a picture", figure(image)))
    return "Scores", join(parts)
