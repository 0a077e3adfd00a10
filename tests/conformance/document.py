"""docs/keras.md, written from the tables that the tests go by.

python -m tests.conformance.document > docs/keras.md
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tests.conformance import recipes, test_losses, test_metrics
from tfmeta.packed.rules import RULES

FILE = Path(__file__).parents[2] / "docs" / "keras.md"

# What learners refuse beyond that, each with a test of its words.
REFUSED = {
    '`reduction=None` or `"none"` of a loss': "a task then has no loss, but one for each example",
    "a loss of probabilities (`from_logits=False`) for a learner that returns logits": (
        "it would be computed of the wrong numbers, and a Prototypical Network would not move"
    ),
    "`keras.losses.CTC` in learners that differentiate through inner steps": (
        "it has no second derivative; `tfmeta.FOMAML` takes it"
    ),
    "the activation softsign there": "it has no second derivative either",
    "recurrent layers with `stateful=True`": "examples of a task do not go on where others ended",
    "recurrent layers with `use_cudnn=True` there": "cuDNN's have no second derivative",
    "models quantised to float8": (
        "their scales are overwritten by gradients; quantise what `adapt` returns"
    ),
    '`BatchNormalization(renorm=True)` with another `batch_norm` than `"running"`': (
        "it never uses the statistics of a batch alone"
    ),
    "constraints and layers that write to their weights in `ImplicitMAML`": (
        "its gradient is that of a solution where the inner gradient is zero"
    ),
    "constraints in `AmortizedBayesianMAML`": "draws of the weights would not keep to them",
    "layers without a rule in `BayesianMAML`": "particles are computed side by side always",
    "`class_weight` with generators": "give `sample_weight` `[tasks, queries]`",
}


PAGE = """# What of Keras works, and how

Any loss, metric and layer gives what it gives in Keras itself: `tests/conformance` holds every one
that there is in `keras.losses`, `keras.metrics` and `keras.layers`, with each argument of the
losses and of the layers below, to Keras's own numbers. This page is written from the tables of
those tests.

## The loss of a task

There is one: the compiled loss of the task's own examples, with masks, weights, `loss_weights` and
penalties, as Keras computes it of a batch. It is the support loss of the inner loop, the outer
loss, what `fit` logs and what `evaluate` returns. That of a meta-batch is the mean over its tasks,
however many queries each has, or the sum where the loss was made with `reduction="sum"`.
`class_weight` and `sample_weight` weigh queries.

Metrics see the queries of all tasks one after another, as one batch of Keras's.

## What is refused

{refused}
## Tasks side by side

Layers in this table are computed for several tasks at once, if no other argument than those named
here is off its default. All else goes in turn, which gives the same numbers and is said once, with
the layer's name.

{packed}
These go in turn, and why:

{in_turn}
## What was not tried

{not_tried}"""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


def written() -> str:
    """Return the page."""
    rules = sorted((cls.__name__, rule.arguments.split()) for cls, rule in RULES.items())
    return PAGE.format(
        refused=_table(("what", "why"), REFUSED.items()),
        packed=_table(
            ("layer", "arguments"),
            ((f"`{name}`", " ".join(f"`{x}`" for x in arguments)) for name, arguments in rules),
        ),
        in_turn=_table(
            ("argument", "why"),
            [
                *((f"`{name}`", why) for name, why in recipes.IN_TURN.items()),
                *(
                    (f"`{name}` of `{layer}`, some values", why)
                    for (layer, name), (_, why) in recipes.VALUES_IN_TURN.items()
                ),
            ],
        ),
        not_tried=_table(
            ("what", "why"),
            [
                *((f"`keras.losses.{n}`", why) for n, why in test_losses.APART.items()),
                *((f"`keras.metrics.{n}`", why) for n, why in test_metrics.APART.items()),
                *((f"`keras.layers.{n}`", w) for n, w in recipes.NOT_LAYERS_OF_A_MODEL.items()),
                *((f"`{a}` of `{n}`", why) for (n, a), why in recipes.NOT_TRIED.items()),
            ],
        ),
    )


if __name__ == "__main__":
    print(written(), end="")
