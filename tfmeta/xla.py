"""Whether XLA compiles what is being traced."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext


def in_xla() -> bool:
    """Return whether the graph that is being traced is XLA's to compile.

    XLA drops assertions. But their conditions would make constants of all that their messages need,
    images, labels and weights, and constants are part of what tells programs apart: it would
    compile anew at every step.
    """
    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )
