"""Files for LiteRT (TensorFlow Lite): adapted models, and learners that adapt on the device."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.export.device import checked_example, learner_functions, model_function
from tfmeta.export.one_file import check_free_file, write_file
from tfmeta.export.writable import writable
from tfmeta.files import scratch
from tfmeta.types import Array

# A FlatBuffer of LiteRT: where its root is, and what it is.
_BEGINS = re.compile(rb".{4}TFL3", re.DOTALL)
# How many representative images are computed at once.
_TOGETHER = 32


def lite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    representative: Array | None = None,
    ways: int | None = None,
    shots: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write a LiteRT file of an adapted model, or of a learner, which then adapts on the device.

    All operations are LiteRT's built-in ones, so that its plain interpreter runs the file; it has
    been loaded and run once before it is put in place.

    An adapted model has the signature `serving_default(query_x)` with the output `predictions`, for
    any number of queries. A learner has `adapt(support_x, support_y)`, whose outputs are what was
    learnt, as named tensors, and `predict(query_x, ...)`, which takes these by their names and
    gives `predictions`: the names and types are those of `MetaLearner.export`. The file checks
    neither labels nor support loss, nor that inputs are finite: give labels that fit, and expect
    NaN where an inner loop diverges.

    Args:
        model: An adapted model, or a built learner; learners with an inner loop must be compiled.
        path: The file to write, as a rule with the suffix `.tflite`.
        representative: Inputs as those of later queries, float32 `[n, ...]`, some hundred or the
            support set at least. With them an adapted model's weights and activations become 8-bit
            integers wherever LiteRT has such an operation; inputs and outputs stay float32.
        ways: Classes of a task, for a learner. Shapes must be static where gradients are computed;
            a learner without an inner loop may go without `ways` and `shots` and take any task.
        shots: Examples of each class in a support set.
        overwrite: Whether a LiteRT file at `path` may be replaced; nothing else ever is.

    Raises:
        ImportError: If LiteRT is not installed.
        TypeError: If an argument is of another type.
        ValueError: If the model is not built, an argument does not fit it, or it has an operation
            that LiteRT has not built in; the error names it.
        FileExistsError: If there is something at `path`, unless `overwrite`.
        OSError: If `path` cannot be written.

    Example:
        ```python
        tfmeta.export.lite(learner, "learner.tflite", ways=5, shots=1)
        interpreter = ai_edge_litert.interpreter.Interpreter("learner.tflite")
        task = interpreter.get_signature_runner("adapt")(support_x=x, support_y=y)
        interpreter.get_signature_runner("predict")(query_x=images, **task)["predictions"]
        ```
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}")
    example = checked_example("model", model)
    interpreter = _interpreter()
    check_free_file(path, overwrite, "a LiteRT file", _BEGINS)
    if hasattr(model, "adapt_task"):
        if representative is not None:
            raise ValueError(
                "`representative` must be None for a learner: gradients need floating point. "
                "Adapted models can be quantised."
            )
        functions, batches = learner_functions(model, ways, shots), None
    else:
        if ways is not None or shots is not None:
            raise ValueError(
                "`ways` and `shots` must be None for an adapted model. "
                f"Received: ways={ways}, shots={shots}"
            )
        function = model_function(model, example)
        batches = None if representative is None else _batches(representative, example, function)
        functions = {"serving_default": function}
    # Beside the file, where the next export finds it if this one is killed.
    with scratch(path) as folder:
        # Nobody differentiates through the functions, and not every gradient can be saved.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        with writable(path):
            tf.saved_model.save(tf.Module(), str(folder), functions, options)
        content = _converted(folder, list(functions), batches)
    _check_runs(interpreter, content)
    write_file(path, content)


def _interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "tfmeta.export.lite needs LiteRT, which is not installed: pip install 'tfmeta[lite]'"
        ) from error
    return Interpreter


def _batches(representative: Any, example: Any, function: Any) -> list[Array]:
    images = np.asarray(representative)
    fits = images.ndim == len(example.shape) and all(
        e in (None, n) for e, n in zip(example.shape[1:], images.shape[1:], strict=True)
    )
    if not fits or len(images) == 0 or images.dtype.kind != "f":
        raise ValueError(
            "`representative` must be floating-point numbers as the model takes them, "
            f"[n, {', '.join(map(str, example.shape[1:]))}]. Received: {images.dtype.name} of "
            f"shape={images.shape}"
        )
    if any("While" in op.type for op in function.graph.get_operations()):
        # TensorFlow's calibrator does not survive it.
        raise ValueError(
            "`representative` must be None for a model with a loop in it, as that of "
            "batch_norm='with_support' or a recurrent layer, which cannot be quantised"
        )
    images = images.astype(np.float32)
    return [images[i : i + _TOGETHER] for i in range(0, len(images), _TOGETHER)]


def _converted(folder: Path, names: list[str], batches: Sequence[Array] | None) -> bytes:
    try:
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), names)
        if batches:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([batch] for batch in batches)
        content: bytes = converter.convert()
    except Exception as error:  # of a class that TensorFlow does not show
        missing = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        if not missing and type(error).__name__ != "ConverterError":
            raise
        said = f"of which its converter says: {next(iter(str(error).splitlines()), '')}"
        what = f"that needs {', '.join(missing)}" if missing else said
        raise ValueError(
            "`model` must be made of what LiteRT has built in, and so must its gradient where a "
            f"learner adapts it. Received: one {what}"
        ) from error
    return content


def _check_runs(interpreter: Any, content: bytes) -> None:
    """Run each signature once, for a delegate may refuse what the converter made."""
    loaded = interpreter(model_content=content)
    try:
        for name in loaded.get_signature_list():
            run = loaded.get_signature_runner(name)
            shapes = {k: d["shape_signature"] for k, d in run.get_input_details().items()}
            given = {
                k: np.zeros([1 if n < 0 else n for n in shapes[k]], d["dtype"])
                for k, d in run.get_input_details().items()
            }
            run(**given)
    except RuntimeError as error:
        raise ValueError(
            f"`model` must be one that LiteRT can run. Received: one it refuses: {error}"
        ) from error
