"""The C++ kernels that are TensorFlow operations, where they can be used.

They run on a CPU in single precision. XLA cannot compile them, and on a GPU TensorFlow's own are
faster than a way to the CPU and back: there, and where the extension cannot be loaded, callers take
TensorFlow's operations.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext


def usable(*tensors: Any) -> bool:
    """Return whether the kernels can take these tensors, where the caller is being traced."""
    return (
        all(x.dtype == tf.float32 for x in tensors)
        and not GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
        and not tf.config.list_physical_devices("GPU")
        and _library() is not None
    )


def batch_norm_second(
    dy: Any, x: Any, gamma: Any, a: Any, p: Any, q: Any, epsilon: float
) -> tuple[Any, Any, Any]:
    """Return the adjoints of `dy`, `x` and `gamma`; see `tfmeta.packed.normalization`."""
    to_dy, to_x, to_gamma = _library().tfmeta_batch_norm_second(
        dy=dy, x=x, gamma=gamma, a=a, p=p, q=q, epsilon=epsilon
    )
    return to_dy, to_x, to_gamma


def max_pool(x: Any, size: Any, strides: Any, padding: str) -> Any:
    """Return the largest of each window; of its derivatives the second is a kernel.

    Args:
        x: `[n, height, width, channels]`, the last three known.
        size: `(height, width)` of a window.
        strides: For height and width.
        padding: `"SAME"` or `"VALID"`.
    """
    fixed = tf.stop_gradient(x)
    y = tf.nn.max_pool2d(fixed, size, strides, padding)
    how = {"ksize": [1, *size, 1], "strides": [1, *strides, 1], "padding": padding}
    out = y.shape[1:3]
    before = [
        max((o - 1) * s + k - n, 0) // 2 if padding == "SAME" else 0
        for o, s, k, n in zip(out, strides, size, x.shape[1:3], strict=True)
    ]
    window = [*size, *strides, *before, *out]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def put(dy: Any) -> Any:
        """Return `dy` where the largest of each window is."""
        dx = tf.raw_ops.MaxPoolGrad(orig_input=fixed, orig_output=y, grad=dy, **how)
        return dx, take

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def take(a: Any) -> Any:
        """Return what of `a` is where the largest of each window is: the adjoint of `put`."""
        taken = _library().tfmeta_max_pool_take(x=fixed, values=a, window=window)
        taken.set_shape(y.shape)
        return taken, put

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def pooled(x: Any) -> Any:
        del x
        return y, put

    return pooled(x)


@functools.cache
def _library() -> Any:
    for file in Path(__file__).parent.glob("_tf_ops*.so"):
        try:
            return tf.load_op_library(str(file))
        except tf.errors.NotFoundError:
            # Of another platform, or another C library than this one's.
            continue
    return None
