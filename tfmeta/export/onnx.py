"""ONNX files of adapted models, by the converter tf2onnx."""

from __future__ import annotations

import os
import re
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmeta.export.device import checked_example, model_function
from tfmeta.export.one_file import check_free_file, write_file

# The first two fields of the message: the version of the format, and who made it.
_BEGINS = re.compile(rb"\x08.\x12", re.DOTALL)


def onnx(adapted: keras.Model, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an adapted model as an ONNX file: `query_x` → `predictions`, the batch size free.

    Args:
        adapted: What `MetaLearner.adapt` returned, or any built Keras model of one input and one
            output.
        path: The file to write, as a rule with the suffix `.onnx`.
        overwrite: Whether an ONNX file at `path` may be replaced; nothing else ever is.

    Raises:
        ImportError: If tf2onnx is not installed.
        TypeError: If `adapted` is no Keras model, or a learner.
        ValueError: If the model is not built, has several inputs or outputs, or an operation that
            ONNX does not have; the error names it.
        FileExistsError: If there is something at `path`, unless `overwrite`.
        OSError: If `path` cannot be written.

    Example:
        ```python
        tfmeta.export.onnx(learner.adapt(support_x, support_y), "letters.onnx")
        session = onnxruntime.InferenceSession("letters.onnx")
        (predictions,) = session.run(["predictions"], {"query_x": images})
        ```
    """
    if not isinstance(adapted, keras.Model) or hasattr(adapted, "adapt_task"):
        raise TypeError(
            "`adapted` must be an adapted model, an ordinary keras.Model; a learner's gradients "
            f"have no form in ONNX. Received: adapted={adapted!r}"
        )
    example = checked_example("adapted", adapted)
    try:
        import tf2onnx
    except ImportError as error:
        raise ImportError(
            "tfmeta.export.onnx needs tf2onnx, which is not installed: pip install 'tfmeta[onnx]'"
        ) from error
    check_free_file(path, overwrite, "an ONNX file", _BEGINS)
    function = _without_captures(model_function(adapted, example))
    spec = tf.TensorSpec([None, *example.shape[1:]], example.dtype, name="query_x")
    made, _ = tf2onnx.convert.from_function(function, [spec])
    known = {"", "ai.onnx", "ai.onnx.ml"}
    missing = sorted({node.op_type for node in made.graph.node if node.domain not in known})
    if missing:
        raise ValueError(
            "`adapted` must be made of operations that ONNX has. Received: one that needs "
            f"{', '.join(missing)}"
        )
    write_file(path, made.SerializeToString())


def _without_captures(traced: Any) -> Any:
    """Return a function whose graph holds as constants what `traced` takes from outside.

    The converter would make inputs of it, as of the middle in a Prototypical Network's head.
    """
    graph = traced.graph
    outside = {inside.name: np.asarray(value) for value, inside in graph.captures}
    (query_x,) = (x for x in traced.inputs if x.name not in outside)
    definition = graph.as_graph_def()

    def predict(query_x_: Any) -> Any:
        constants = {name: tf.constant(value) for name, value in outside.items()}
        (predictions,) = tf.graph_util.import_graph_def(
            definition,
            input_map={query_x.name: query_x_, **constants},
            return_elements=[x.name for x in traced.outputs],
        )
        return {"predictions": predictions}

    return tf.function(predict, autograph=False)
