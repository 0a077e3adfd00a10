"""SavedModels of adapted models and of learners, made of TensorFlow's own operations."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfmeta.copies import resources_of
from tfmeta.export.contents import others, write_list
from tfmeta.export.preprocessing import Preprocessing
from tfmeta.export.serving import example_of_built, learner_signatures, model_signatures
from tfmeta.export.writable import writable
from tfmeta.files import replacing_folder
from tfmeta.foreign.of_keras import layers_of
from tfmeta.layers import BatchAtHandNormalization
from tfmeta.threshold import Threshold


def saved_model(
    adapted: keras.Model,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    unknown: Threshold | None = None,
    overwrite: bool = False,
) -> None:
    """Write an adapted model as a SavedModel, with the names of its classes.

    It has one signature, `serving_default(query_x)`, with the output `predictions` and, where there
    are class names, `labels`, the name of the largest prediction. With a threshold there is
    `unknown` as well, true where the answer is none of the classes; the label is then "unknown".
    The number of queries is free.

    Args:
        adapted: What `MetaLearner.adapt` returned, or any built Keras model of one input and one
            output.
        path: The folder to write.
        class_names: A name for each output.
        preprocessing: How uint8 images of any size become what the model takes; they are then what
            `query_x` is. Without it, `query_x` is what the model takes.
        unknown: What tells which predictions are no answer: `tfmeta.unknown.fit`.
        overwrite: Whether a SavedModel that an export wrote to `path` may be replaced. Nothing else
            ever is: a folder with other files in it is refused, and so is a link.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the model is not built or has several inputs or outputs, `class_names` are
            not one different name an output, one is "unknown" where there is a threshold, or
            `preprocessing` makes something else than the model takes.
        FileExistsError: If there is something at `path` that may not be replaced.
        OSError: If `path` cannot be written.

    Example:
        ```python
        adapted = learner.adapt(support_x, support_y)
        tfmeta.export.saved_model(adapted, "letters", class_names=["alpha", "beta", "gamma"])
        tf.saved_model.load("letters").predict(query_x)["labels"]      # needs no tfmeta
        ```
    """
    if not isinstance(adapted, keras.Model) or hasattr(adapted, "adapt_task"):
        raise TypeError(
            "`adapted` must be an adapted model, an ordinary keras.Model; a learner has an "
            f"`export` of its own. Received: adapted={adapted!r}"
        )
    # Of a subclassed model that was copied Keras makes the weights, and does not call it built.
    if not (adapted.built or adapted.weights):
        raise ValueError(
            f"`adapted` must be built: call it once. Received: a model {adapted.name!r} that is not"
        )
    check_free(path, overwrite)
    example = example_of_built("adapted", adapted)
    signatures = model_signatures(adapted, example, class_names, preprocessing, unknown)
    if any(
        isinstance(x, BatchAtHandNormalization) or getattr(x, "transductive", False)
        for x in layers_of(adapted)
    ):
        _say_transductive(path)
    _write(adapted, path, overwrite, signatures, {"predict": signatures["serving_default"]})


def saved_learner(
    learner: Any,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    unknown: Threshold | None = None,
    overwrite: bool = False,
) -> None:
    """Write a learner as a SavedModel that adapts; `MetaLearner.export` describes it."""
    if not learner.built:
        raise ValueError(
            "`export` is for a learner that is built: call `fit`, or `adapt` once, before. "
            f"Received: a learner {learner.name!r} that is not"
        )
    check_free(path, overwrite)
    signatures = learner_signatures(learner, class_names, preprocessing, unknown)
    if learner.transductive:
        _say_transductive(path)
    methods = {k: f for k, f in signatures.items() if k != "serving_default"}
    _write(learner, path, overwrite, signatures, methods)


def check_free(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise unless a SavedModel may be written to `path`.

    Raises:
        FileExistsError: If `path` holds a SavedModel and `overwrite` is false, holds anything that
            no export wrote, or is a link; an empty folder is free.
    """
    folder = Path(path)
    if not os.path.lexists(folder):
        return
    if folder.is_symlink():
        raise FileExistsError(
            "`path` must be no link, which would be replaced and not what it leads to. Received: "
            f"path='{path}', a link to '{os.readlink(folder)}'"
        )
    if folder.is_dir() and not any(folder.iterdir()):
        return
    strange = others(folder) if folder.is_dir() else [folder.name]
    if strange:
        raise FileExistsError(
            "`path` must be free, or hold a SavedModel and nothing else where overwrite=True. "
            f"Received: path='{path}' with '{strange[0]}', which no export wrote"
        )
    if not overwrite:
        raise FileExistsError(
            f"`path` must be free; overwrite=True replaces the SavedModel there. Received: "
            f"path='{path}'"
        )


def _write(
    model: keras.Model,
    path: str | os.PathLike[str],
    overwrite: bool,
    signatures: dict[str, Any],
    functions: dict[str, Any],
) -> None:
    """Write traced functions of a model: as signatures, and as methods of what is loaded."""
    module = tf.Module()
    for name, function in functions.items():
        setattr(module, name, function)
    # What the functions read, and not the optimizer's and the metrics' as well.
    captured = {id(v): v for function in signatures.values() for v in function.variables}
    module.weights = list(captured.values())
    # Tables of words, which are resources as well.
    module.tables = resources_of(model)
    # Nobody differentiates through them; the gradients would bring metrics along.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with replacing_folder(path) as beside:
        with writable(path):
            tf.saved_model.save(module, str(beside), signatures=signatures, options=options)
            write_list(beside)
        # Again, for tracing takes a while.
        check_free(path, overwrite)


def _say_transductive(path: str | os.PathLike[str]) -> None:
    logging.getLogger("tfmeta").warning(
        "'%s' is transductive (by its head, or by batch_norm='transductive'): its predictions "
        "depend on which queries are asked together.",
        path,
    )
