"""How numbers and runs are written in all parts."""

from __future__ import annotations

from collections.abc import Sequence

from tfmeta.paired import Difference
from tfmeta.reporting.markup import Markup, join, tag
from tfmeta.score_table import ci95, written, written_difference
from tfmeta.types import Array


def score(per_episode: Array, metric: str) -> str:
    """Return a mean with its interval."""
    return written(float(per_episode.mean()), ci95(per_episode), metric)


def difference(found: Difference, metric: str) -> Markup:
    """Return a difference with its interval, and below its p-value; bold where it is no chance."""
    shown, p = written_difference(found, metric, p_values=True)
    return join(
        tag("strong" if found.significant else "span", shown), tag("small", p) if p else None
    )


def note(*text: object) -> Markup:
    """Return a paragraph on how something is to be read."""
    return tag("p", *text, class_="note")


def figure(*images: object, caption: object = None) -> Markup:
    """Return pictures that stand side by side as far as there is room."""
    below = None if caption is None else tag("figcaption", caption)
    boxes = [tag("div", image, class_="picture") for image in images]
    return tag("figure", tag("div", boxes, class_="pictures"), below)


def more(summary: str, *content: object, on_paper: bool = True) -> Markup:
    """Return what is shown when it is asked for, and on paper unless it is too long for that."""
    kind = None if on_paper else "screen"
    return tag("details", tag("summary", summary), *content, class_=kind)


def listed(names: Sequence[object]) -> str:
    """Return names as in a sentence."""
    *most, last = map(str, names)
    return f"{', '.join(most)} and {last}" if most else last
