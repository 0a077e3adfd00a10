"""Which learning rate an inner loop can do with, found before meta-training begins."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.agreement import ignored_class
from tfmeta.algorithms.gradient_based import GradientBased
from tfmeta.checks import check_count, check_rates
from tfmeta.losses import task_losses
from tfmeta.same_parts import at_rate
from tfmeta.scoring import share_right
from tfmeta.types import Array, Sampler

# From 0.001 to 10, three to a decade.
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# Meta-batches have so many tasks.
_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class InnerRates:
    """What a few episodes say of the rates of an inner loop; it prints as a table.

    Attributes:
        rate: The one to take: half of that with the least loss.
        rates: `[rates]`, those that were tried, from the least one up.
        losses: `[rates, episodes]`, the query loss after adaptation; infinite for a rate with which
            one of the episodes diverges.
        accuracies: `[rates, episodes]` in the same way, NaN there; `None` in regression.
        steps: How many inner steps were taken.

    Example:
        >>> found = tfmeta.suggest_inner_rate(learner, validation_sampler)
        >>> print(found)
        >>> found.plot("rates.png")
        >>> learner = tfmeta.MAML(model, inner_learning_rate=found.rate)
    """

    rate: float
    rates: Array
    losses: Array
    accuracies: Array | None
    steps: int

    def plot(self, path: str | os.PathLike[str], title: str = "") -> None:
        """Draw loss and accuracy over the rates.

        Args:
            path: The image file to write.
            title: A line above the picture.
        """
        from tfmeta import plots

        plots.inner_rates(
            self.rates, self.losses, self.accuracies, self.rate, path, steps=self.steps, title=title
        )

    def __str__(self) -> str:
        """Return the rates as a table."""
        head = f"Query loss after {self.steps} inner step{'s' * (self.steps > 1)}"
        rows = [f"{head}, {self.losses.shape[1]} episodes; suggested rate {self.rate:g}"]
        best = int(np.argmin(self.losses.mean(1)))
        for i, rate in enumerate(self.rates):
            loss = self.losses[i].mean()
            row = f"  {rate:8g}  {loss:10.4g}" if np.isfinite(loss) else f"  {rate:8g}    diverges"
            if self.accuracies is not None and np.isfinite(loss):
                row += f"  {100 * self.accuracies[i].mean():6.2f} %"
            rows.append(row + "  least loss" * (i == best))
        return "\n".join(rows)


def suggest_inner_rate(
    learner: GradientBased,
    sampler: Sampler,
    episodes: int = 32,
    *,
    rates: Sequence[float] = RATES,
    steps: int | None = None,
    verbose: bool = True,
) -> InnerRates:
    """Look for the learning rate that an inner loop can be meta-trained with.

    Each rate is tried on the same episodes: the learner adapts from its weights as they are, with
    that rate for all steps and all weights, and the loss of the queries is what counts, its mean
    over episodes: the loss that meta-training begins with. Accuracy would be a poor guide, for an
    untrained network's is hardly better than chance. A rate with which a loss is not finite in any
    episode is out.

    Suggested is half of the rate with the least loss. Meta-training makes gradients longer, so that
    the longest step that still helps an untrained network is soon too long.

    The learner stays as it is, its own rate included: make another one with the rate that was
    found. Learnt rates begin there, too.

    Args:
        learner: A learner with an inner loop, compiled with its loss; trained or not.
        sampler: An `EpisodeSampler`, a `FunctionSampler`, or whatever has their `batch`; of
            validation classes, for a learner that was trained.
        episodes: How many, at least 1.
        rates: Those to try, positive and all different.
        steps: How many inner steps are taken; those of training if `None`.
        verbose: Whether to show a progress bar.

    Returns:
        An `InnerRates`: `.rate`, a table when printed, and `.plot`.

    Raises:
        TypeError: If `learner` has no inner loop, `sampler` no `batch`, or a number is none.
        ValueError: If a number is out of range, the learner is not compiled, the episodes don't fit
            it, or every rate diverges.

    Example:
        >>> rate = tfmeta.suggest_inner_rate(learner, sampler).rate
    """
    rates, steps = _checked(learner, sampler, episodes, rates, steps)
    sizes = [min(_AT_ONCE, episodes - i) for i in range(0, episodes, _AT_ONCE)]
    drawn = [sampler.batch(step, size) for step, size in enumerate(sizes)]
    drawn = [(inputs, tf.nest.map_structure(np.asarray, targets)) for inputs, targets in drawn]
    learner.check_inputs(*drawn[0])
    chosen = tf.Variable(rates[0], dtype=learner.variable_dtype, trainable=False)
    tried = at_rate(learner, chosen, steps)
    progress = keras.utils.Progbar(len(rates), verbose=int(verbose), unit_name="rate")
    losses = np.full([len(rates), episodes], np.inf)
    accuracies = np.full([len(rates), episodes], np.nan)
    targets = drawn[0][1]
    classes = not tf.nest.is_nested(targets) and np.issubdtype(targets.dtype, np.integer)
    ignored = ignored_class(learner.loss) if classes else None
    for i, rate in enumerate(rates):
        chosen.assign(rate)
        found = _scores(learner, tried, drawn, classes, ignored)
        if found is not None:
            losses[i], accuracies[i] = found
        progress.update(i + 1)
    if not np.isfinite(losses).any():
        raise ValueError(
            "`rates` must have one with which the learner does not diverge. Received: "
            f"rates={list(rates)}"
        )
    rate = float(f"{rates[int(np.argmin(losses.mean(1)))] / 2:.3g}")
    return InnerRates(rate, np.array(rates), losses, accuracies if classes else None, steps)


def _checked(
    learner: Any, sampler: Any, episodes: Any, rates: Any, steps: Any
) -> tuple[tuple[float, ...], int]:
    """Return the rates from the least one up, and how many steps; raise unless all fits."""
    if not isinstance(learner, GradientBased):
        raise TypeError(
            f"`learner` must be one with an inner loop, as tfmeta.MAML. Received: {learner!r}"
        )
    if not learner.compiled or learner.loss is None:
        raise ValueError(
            "`learner` must have a loss: call compile(loss=...) first. Received: a learner without"
        )
    if not hasattr(sampler, "batch"):
        raise TypeError(f"`sampler` must be a sampler. Received: sampler={sampler!r}")
    check_count("episodes", episodes)
    checked = check_rates("rates", rates)
    if not isinstance(checked, tuple) or len(set(checked)) < len(checked):
        raise ValueError(f"`rates` must be numbers that all differ. Received: rates={rates!r}")
    steps = learner.inner_steps if steps is None else check_count("steps", steps)
    return tuple(sorted(checked)), steps


def _scores(
    learner: GradientBased,
    tried: GradientBased,
    drawn: list[Any],
    classes: bool,
    ignored: int | None,
) -> tuple[Array, Array] | None:
    """Return loss and accuracy of each episode, or `None` where one diverges."""
    losses: list[Array] = []
    accuracies: list[float] = []
    for inputs, targets in drawn:
        try:
            predicted, _ = tried.predict_with_notes(inputs)
        except ValueError as error:
            # The assertion that each support loss is finite, which the inner loop has.
            if not isinstance(error.__cause__, tf.errors.InvalidArgumentError):
                raise
            return None
        mask = inputs.get("query_mask")
        y, y_pred = tf.nest.map_structure(tf.convert_to_tensor, [targets, predicted])
        real = None if mask is None else tf.convert_to_tensor(mask)
        # Keras has metrics of the losses of several outputs, which are to stay as they are.
        with keras.StatelessScope():
            found = task_losses(learner, None, y, y_pred, None, training=False, mask=real)
        losses.append(np.asarray(found))
        if not np.isfinite(losses[-1]).all():
            return None
        if classes:
            answers = predicted.argmax(-1)
            counted = np.ones(targets.shape[:2], bool) if mask is None else np.asarray(mask)
            accuracies += map(share_right, answers, targets, counted, itertools.repeat(ignored))
    return np.concatenate(losses), np.array(accuracies) if classes else np.array(np.nan)
