"""`tfmeta.report`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmeta.agreement import ignored_class
from tfmeta.checks import check_count
from tfmeta.files import replacing
from tfmeta.meta_learner import MetaLearner
from tfmeta.reporting.given import GENERATOR, About, Reported
from tfmeta.reporting.machine import machine
from tfmeta.reporting.markup import visible
from tfmeta.reporting.measuring import Measured, measure
from tfmeta.types import Sampler

# Where in a file it must say that it is a report.
_BEGINNING = 1024


def report(
    learners: MetaLearner | Reported | Mapping[str, MetaLearner | Reported],
    sampler: Sampler | Any,
    path: str | os.PathLike[str],
    episodes: int = 600,
    *,
    references: bool = True,
    from_logits: bool = True,
    title: str | None = None,
    facts: Mapping[str, object] | None = None,
    commands: Sequence[str] = (),
    overwrite: bool = False,
    verbose: bool = True,
) -> Measured:
    """Write one HTML file of what learners do on the same episodes, which are those of `evaluate`.

    It needs no network and no JavaScript: scores with paired differences, settings, learning
    curves, some episodes with the predictions, accuracy by class and confusions, the hardest
    classes, calibration, and what it was measured on. All numbers come from one pass over the
    episodes, and are those that `tfmeta.evaluate` and `tfmeta.uncertainty` return of them.

    Which classes an episode has is known of an `EpisodeSampler`, or of what has its `draw_classes`
    and a `source` with `class_names`; of others the parts about classes are left out, in words.

    Args:
        learners: A learner, or several by name; a `tfmeta.reporting.Reported` in the place of a
            learner tells of its settings, its history and its commands, too.
        sampler: An `EpisodeSampler`, or whatever has its `batch`, or a `tf.data.Dataset` of
            `(inputs, targets)`.
        path: The file to write. An older report is replaced, anything else is not.
        episodes: How many, at least 1.
        references: Whether to score simple methods on the same episodes, as `tfmeta.evaluate` does.
        from_logits: Whether the learners predict logits, or else probabilities.
        title: The page's heading.
        facts: What is to be said of the episodes at the top, by name.
        commands: Which have made this report.
        overwrite: Whether a file that is no report may be replaced.
        verbose: Whether to show a progress bar.

    Returns:
        A `tfmeta.reporting.Measured`, with the numbers.

    Raises:
        FileExistsError: If there is a file at `path` that is no report, and `overwrite` is false.
        IsADirectoryError: If there is a folder.
        FileNotFoundError: If there is no folder for it.
        TypeError: If an argument is of another type.
        ValueError: If there are no learners, or episodes cannot be scored, as in `tfmeta.evaluate`.

    Example:

    ```python
    tfmeta.report({"maml": one, "prototypical": other}, test_sampler, "report.html")
    ```
    """
    # Pictures take long to import, and few need them.
    from tfmeta.reporting.page import page

    check_count("episodes", episodes)
    check_free(path, overwrite)
    reported = _checked(learners)
    measured = measure(
        {name: of.learner for name, of in reported.items()},
        sampler,
        episodes,
        references=references,
        from_logits=from_logits,
        verbose=verbose,
    )
    about = About(
        title or " and ".join(reported) + ": few-shot report",
        {**_facts_of(sampler), **(facts or {}), "episodes": episodes},
        commands,
        machine(),
    )
    text = page(reported, measured, sampler, about)
    with replacing(path) as beside:
        # A name of a file need not be text.
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    return measured


def check_free(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise unless a report may be written to a file; see `report`."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"`path` must be a file to write. Received: '{path}', a folder")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"`path` must be in a folder that there is. Received: '{path}', without the folder "
            f"'{path.absolute().parent}'"
        )
    if os.path.lexists(path) and not overwrite and not _is_report(path):
        raise FileExistsError(
            f"'{path}' exists and is no report; choose another path, or replace it with "
            "overwrite=True (--overwrite)"
        )


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(_BEGINNING)


def _checked(learners: Any) -> dict[str, Reported]:
    """Return what is reported by name; raise unless they are learners that can be compared."""
    if isinstance(learners, MetaLearner | Reported):
        only = learners if isinstance(learners, MetaLearner) else learners.learner
        learners = {type(only).__name__: learners}
    if not isinstance(learners, Mapping):
        raise TypeError(
            "`learners` must be a learner, or a dict of names and learners. Received: "
            f"learners={type(learners).__name__}"
        )
    if not learners:
        raise ValueError("`learners` must have at least one learner. Received: learners={}")
    found = {}
    for name, given in learners.items():
        if not isinstance(name, str):
            raise TypeError(f"`learners` must have names for keys. Received: {name!r}")
        reported = given if isinstance(given, Reported) else Reported(given)
        if not isinstance(reported.learner, MetaLearner):
            raise TypeError(
                "`learners` must be learners of tfmeta, or tfmeta.reporting.Reported of such. "
                f"Received: {name!r}: {reported.learner!r}"
            )
        # Runs are called as their folders are, whose names need not be text.
        found[visible(name)] = _with_history(reported)
    ignored = {name: ignored_class(of.learner.loss) for name, of in found.items()}
    if len(set(ignored.values())) > 1:
        raise ValueError(
            "`learners` must have losses that leave out the same class, to be scored by the same "
            f"queries. Received: ignore_class={ignored}"
        )
    return found


def _with_history(of: Reported) -> Reported:
    """Return a learner with what `fit` has logged, where nothing else is said."""
    logged: Any = getattr(of.learner, "history", None)
    if of.history or not getattr(logged, "epoch", None):
        return of
    return Reported(of.learner, of.settings, {"epoch": logged.epoch, **logged.history}, of.commands)


def _facts_of(sampler: Any) -> dict[str, object]:
    source = getattr(sampler, "source", None)
    named = {
        "data": getattr(source, "description", None),
        "classes": getattr(source, "num_classes", None),
        **{name: getattr(sampler, name, None) for name in ("ways", "shots", "queries", "seed")},
    }
    return {
        name: " to ".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in named.items()
        if isinstance(value, int | str | tuple)
    }
