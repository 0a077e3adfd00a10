"""What the devices that compute here have room for."""

from __future__ import annotations

import functools

from tfmeta.foreign.of_tensorflow import memory_of_gpus
from tfmeta.kernels import gpus

# Bytes that are worth having in flight on a CPU: more of them would only fall out of its caches.
_ON_A_CPU = 192 * 2**20
# A GPU holds weights, data and what an operation needs beside its result, too.
_SHARE_OF_A_GPU = 0.5


@functools.cache
def room() -> int:
    """Return how many bytes the activations of all tasks in flight may have.

    On a GPU they are a share of the memory that TensorFlow may take, of the smallest if there are
    several: there one large operation is faster than many small ones.
    """
    if not gpus():
        return _ON_A_CPU
    return int(_SHARE_OF_A_GPU * min(memory_of_gpus()))
