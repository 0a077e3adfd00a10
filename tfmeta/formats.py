"""The formats of a classifier's model: how each is written and read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmeta import export
from tfmeta.files import replacing
from tfmeta.threshold import Threshold
from tfmeta.types import Array


class Format(NamedTuple):
    """How a model of one task is kept.

    Attributes:
        file: The name of its file or folder.
        write: Writes `(model, path, class_names, preprocessing, unknown)`.
        read: A path to a function of a batch that returns logits.
        prepares: Whether the preprocessing is in the file, so that a batch is of uint8 images;
            otherwise it is of what the model takes.
    """

    file: str
    write: Callable[
        [keras.Model, Path, Sequence[str], export.Preprocessing, Threshold | None], None
    ]
    read: Callable[[Path], Any]
    prepares: bool = False


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_keras(model: keras.Model, path: Path, *_: Any) -> None:
    with replacing(path) as beside:
        model.save(beside)


def _read_keras(path: Path) -> keras.Model:
    return keras.models.load_model(path, compile=False)


def _write_saved_model(
    model: keras.Model,
    path: Path,
    names: Sequence[str],
    preprocessing: export.Preprocessing,
    unknown: Threshold | None,
) -> None:
    export.saved_model(
        model,
        path,
        class_names=names,
        preprocessing=preprocessing,
        unknown=unknown,
        overwrite=True,
    )


def _read_saved_model(path: Path) -> Callable[[Array], Array]:
    model = tf.saved_model.load(path)
    return lambda images: np.asarray(model.predict(query_x=images)["predictions"])


def _write_tflite(model: keras.Model, path: Path, *_: Any) -> None:
    export.lite(model, path, overwrite=True)


def _read_tflite(path: Path) -> Callable[[Array], Array]:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            f"'{path}' needs LiteRT to be read: pip install ai-edge-litert"
        ) from error
    interpreter = Interpreter(str(path))
    model = interpreter.get_signature_runner("serving_default")
    (name,) = model.get_input_details()

    def logits(x: Array) -> Array:
        outputs = model(**{name: x})
        return np.asarray(outputs.get("predictions", next(iter(outputs.values()))))

    return logits


FORMATS = {
    "keras": Format("model.keras", _write_keras, _read_keras),
    "saved_model": Format("saved_model", _write_saved_model, _read_saved_model, prepares=True),
    "tflite": Format("model.tflite", _write_tflite, _read_tflite),
}
