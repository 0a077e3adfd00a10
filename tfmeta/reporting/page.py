"""The page of a report: what was measured, section by section."""

from __future__ import annotations

from collections.abc import Mapping

from tfmeta.reporting.given import GENERATOR, About, Reported
from tfmeta.reporting.markup import Markup, escape, join, tag
from tfmeta.reporting.measuring import Measured
from tfmeta.reporting.sections import calibration, classes, episodes, methods, scores, training
from tfmeta.reporting.style import CSS


def page(
    reported: Mapping[str, Reported], measured: Measured, sampler: object, about: About
) -> str:
    """Return the whole file."""
    found = [
        scores.section(measured),
        training.settings({name: of.settings for name, of in reported.items()}),
        training.curves({name: of.history for name, of in reported.items()}),
        episodes.section(measured, sampler),
        classes.section(measured),
        classes.hardest(measured, sampler),
        calibration.section(measured),
        methods.section(
            about.machine,
            measured,
            {name: of.commands for name, of in reported.items()},
            about.commands,
        ),
    ]
    facts = [
        tag("div", tag("dt", name), tag("dd", value))
        for name, value in about.facts.items()
        if value not in (None, "")
    ]
    parts = [(f"part{i}", heading, body) for i, (heading, body) in enumerate(found, 1)]
    contents = tag("nav", [tag("a", title, href=f"#{at}") for at, title, _ in parts])
    body = join(
        tag("header", tag("h1", about.title), tag("dl", facts, class_="facts")),
        scores.summary(measured),
        contents,
        tag("main", [tag("section", tag("h2", title), body, id=at) for at, title, body in parts]),
    )
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            GENERATOR,
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            # Even if something slipped through, it could neither run nor reach for anything.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{escape(about.title)}</title>",
            f"<style>{Markup(CSS)}</style></head>",
            f"<body>{body}</body></html>",
            "",
        ]
    )
