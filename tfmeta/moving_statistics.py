"""Moving statistics of batch normalisation, on which evaluation relies."""

from __future__ import annotations

import logging

import keras

from tfmeta.functional import batch_norm_layers

# How much of the statistics from before a training may be left in them.
_LEFT_OVER = 0.01


def warn_of_lagging(model: keras.Model, steps: int) -> None:
    """Say in the log if so many steps of training were too few for the moving statistics.

    Of what they were before the first step, momentum^steps is left: more than 1 % is said.
    """
    lagging = {layer.momentum: layer.name for layer in batch_norm_layers(model)}
    momentum = max(lagging, default=0.0)
    if momentum**steps > _LEFT_OVER:
        logging.getLogger("tfmeta").warning(
            "After %d steps of training, the running statistics of batch normalisation, which "
            "evaluation uses, still hold %.0f %% of what they were before it: the momentum of "
            "layer %r is %g. Train for more steps, or with a smaller momentum, as in "
            "BatchNormalization(momentum=0.9).",
            steps,
            100 * momentum**steps,
            lagging[momentum],
            momentum,
        )
