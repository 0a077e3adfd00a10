"""What a report is given besides episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tfmeta.meta_learner import MetaLearner

# By which a file is known to be a report, at its beginning.
GENERATOR = '<meta name="generator" content="tfmeta report">'


@dataclasses.dataclass(frozen=True)
class Reported:
    """A learner, and what a report can tell of how it came about.

    Args:
        learner: The learner.
        settings: What it was trained with, by name; differences between learners are marked.
        history: What training has logged, as `tfmeta.plots.learning_curve` takes it; by default
            what `fit` has logged in this process.
        commands: By which it was made and can be scored again.

    Example:

    ```python
    from tfmeta.reporting import Reported

    one = Reported(learner, {"inner rate": 0.4, "steps": 5})
    tfmeta.report({"maml": one, "prototypical": other}, test_sampler, "report.html")
    ```
    """

    learner: MetaLearner
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    history: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    commands: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class About:
    """What a page says of itself.

    Attributes:
        title: Its heading.
        facts: On the episodes, by name.
        commands: Which have made the report.
        machine: What it was measured on, by name.
    """

    title: str
    facts: Mapping[str, object]
    commands: Sequence[str]
    machine: Mapping[str, str]
