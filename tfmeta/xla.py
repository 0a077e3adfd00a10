"""Whether XLA compiles what is being traced."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext


def in_xla() -> bool:
    """Return whether the graph that is being traced is XLA's to compile.

    One that is exported, and compiled where it is loaded, is not known to be.
    """
    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )
