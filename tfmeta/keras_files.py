"""Models that Keras saved, read from files that may be damaged or anybody's."""

from __future__ import annotations

import os

import keras


def read_model(path: str | os.PathLike[str]) -> keras.Model:
    """Return the model of a file, which runs no code but Keras's and that of installed packages.

    Raises:
        ValueError: If it is damaged, or of classes that cannot be imported here.
    """
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    # What is wrong with a file comes as ValueError, KeyError, BadZipFile, ...
    except Exception as error:
        reason = _innermost(error)
        if "keras_hub" in reason:
            reason += " It has layers of KerasHub: pip install 'tfmeta[hub]'"
        raise ValueError(
            f"'{path}' must be a model that Keras saved, of classes that it knows. "
            f"Received: {reason}"
        ) from error


def _innermost(error: Exception) -> str:
    """Return the reason itself, which Keras puts after the configurations of all that is around."""
    text = str(error).rpartition("Exception encountered: ")[2]
    for more in ("Full object config", "\n\nconfig={"):
        text = text.partition(more)[0]
    return f"{type(error).__name__}: {text.strip()}"
