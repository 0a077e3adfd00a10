"""Keras computes with TensorFlow, JAX or PyTorch; this package with TensorFlow alone."""

from __future__ import annotations

import os


def check_backend() -> None:
    """Raise unless Keras computes, or will compute, with TensorFlow.

    Raises:
        ImportError: If it is set to do otherwise, by the environment or in its file of settings.
    """
    wanted = os.environ.get("KERAS_BACKEND")
    if wanted and wanted != "tensorflow":  # without which Keras itself may fail, in other words
        raise _other(f"KERAS_BACKEND={wanted!r}")
    import keras

    if (used := keras.config.backend()) != "tensorflow":
        raise _other(f"Keras with the backend {used!r}, from keras.json in its folder of settings")


def _other(received: str) -> ImportError:
    return ImportError(
        "tfmeta needs Keras with the backend 'tensorflow': set the environment variable "
        f"KERAS_BACKEND=tensorflow before Keras is imported. Received: {received}"
    )
