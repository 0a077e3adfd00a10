"""That the kernels are there, where tests of them would be skipped if they were not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from tfmeta import kernels
from tfmeta.packed.convolution import _pays

IMAGES, FILTERS = (8, 8, 8, 16), (3, 3, 16, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms may do without")
def test_the_library_of_operations_loads_on_linux() -> None:
    assert kernels.library() is not None
    assert kernels.instructions() in ("portable", "avx2", "avx512")


@pytest.mark.skipif(kernels.library() is None, reason="there is no tfmeta._tf_ops")
def test_convolutions_of_plain_instructions_are_left_to_tensorflow() -> None:
    fast = kernels.instructions() != "portable"
    assert _pays(tf.ones(IMAGES), tf.ones(FILTERS), 1, (1, 1)) == fast
    code = (
        "import tensorflow as tf; from tfmeta.packed.convolution import _pays; "
        f"assert not _pays(tf.ones({IMAGES}), tf.ones({FILTERS}), 1, (1, 1))"
    )
    environment = {**os.environ, "TFMETA_MAX_CPU": "portable"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
