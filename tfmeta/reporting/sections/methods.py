"""On which machine what was measured, and how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfmeta.reporting.markup import Markup, join, table, tag
from tfmeta.reporting.measuring import Measured
from tfmeta.reporting.sections.words import note


def section(
    machine: Mapping[str, str],
    measured: Measured,
    commands: Mapping[str, Sequence[str]],
    own: Sequence[str],
) -> tuple[str, Markup]:
    """Return what was measured with, and the commands to repeat it."""
    rows: list[list[object]] = [[name, value] for name, value in machine.items()]
    rows += [[f"seconds, {name}", f"{seconds:.1f}"] for name, seconds in measured.seconds.items()]
    parts: list[object] = [
        table(["", "measured on"], rows),
        note(
            f"The seconds are those of {measured.episodes} episodes, with the references and with "
            "what TensorFlow compiles first. Where a learner was trained is not known here."
        ),
        tag("h3", "To repeat it"),
    ]
    if not own and not any(commands.values()):
        parts.append(note("Made in Python, by tfmeta.report: no commands are known."))
    for name, of in commands.items():
        if of:
            parts += [tag("h4", name), _code(of)]
    if own:
        parts += [tag("h4", "This report"), _code(own)]
    return "Machine and commands", join(parts)


def _code(lines: Sequence[str]) -> Markup:
    return tag("pre", [tag("code", line, "\n") for line in lines])
