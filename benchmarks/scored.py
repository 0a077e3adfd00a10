"""What a row of published figures says of a trained learner: its score, and what gave it."""

from __future__ import annotations

import time
from typing import Any

import keras
import tensorflow as tf

import tfmeta


def scored(
    learner: tfmeta.MetaLearner, sampler: tfmeta.data.EpisodeSampler, episodes: int, *data: Any
) -> dict[str, Any]:
    """Return the score on test episodes, or why there is none; time, device, versions and data."""
    start = time.perf_counter()
    result: dict[str, Any] = {}
    try:
        score = tfmeta.evaluate(learner, sampler, episodes, verbose=False)
        result |= {"accuracy": 100 * score.mean, "ci95": 100 * score.ci95, "episodes": episodes}
    except ValueError as error:  # a training that diverged predicts NaN
        result["failed"] = str(error)[:300]
    gpus = tf.config.list_physical_devices("GPU")
    details = tf.config.experimental.get_device_details
    return {
        **result,
        "evaluation_seconds": time.perf_counter() - start,
        "device": details(gpus[0])["device_name"] if gpus else "CPU",
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "data": [part.description for part in data],
    }
