"""Arguments that make no sense: each call of a kernel ends well, or in an error that names one.

A crash of the process is what these tests are looking for.
"""

from __future__ import annotations

import operator
import os
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.test_core import GOOD_GATHER, GOOD_SAMPLE
from tfmeta import _core, kernels, ops

# Of each function; all together are some 34,000 calls under a sanitizer, and else 10,000.
EXAMPLES, CALLS_EACH = 100 if "TFMETA_SANITIZED" in os.environ else 30, 20

# Sizes that fit, that don't, and that overflow when they are multiplied.
INTEGERS = st.sampled_from(
    [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 17, 2**40, 2**60, 2**63 - 1, 2**63, 2**64]
)
FLOATS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1e300, float("nan"), float("inf")])
DTYPES = [
    "uint8",
    "uint16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    ">f4",
    "complex64",
    "bool",
    "U3",
    "O",
]


@st.composite
def arrays(draw: Any) -> Any:
    """Return an array of some type, shape, layout and content."""
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5]), max_size=5))
    dtype = draw(st.sampled_from([*DTYPES, None]))
    x = np.zeros(shape, "int64" if dtype is None else dtype)
    if x.dtype.kind in "iuf" and x.size:
        x.reshape(-1)[-1] = draw(st.sampled_from([0, 1, 2, 100]))
        if x.dtype.kind != "u" and draw(st.booleans()):
            x.reshape(-1)[0] = -1
        if x.dtype.kind == "f" and draw(st.booleans()):
            x.reshape(-1)[0] = np.nan
    layout = draw(st.sampled_from(["plain", "read-only", "reversed", "transposed", "every other"]))
    if layout == "read-only":
        x.flags.writeable = False
    elif x.ndim and layout != "plain":
        x = {"reversed": x[::-1], "transposed": x.T, "every other": x[..., ::2]}[layout]
    return x


STRANGE = st.one_of(
    INTEGERS, FLOATS, arrays(), st.sampled_from([None, True, "3", (1, 2), (2, 1), [], {}])
)


def operation(kernel: Any) -> Any:
    """Return a kernel that is given tensors and numbers of 64 bits, as TensorFlow's graphs do it.

    What of an eager call TensorFlow cannot make these of may well crash, but in TensorFlow.
    """

    def call(threads: Any, window: Any = None, **operands: Any) -> Any:
        numbers = [int(np.int64(operator.index(n))) for n in [*(window or ()), threads]]
        tensors = {name: tf.constant(value) for name, value in operands.items()}
        attributes = {} if window is None else {"window": numbers[:-1]}
        return kernel(**tensors, **attributes, threads=numbers[-1])

    return call


EMBEDDINGS = np.ones([2, 4, 3], np.float32)
LABELS = np.array([[0, 1, 1, 0]] * 2)
PAIRS = {"queries": EMBEDDINGS, "prototypes": np.ones([2, 5, 3], np.float32)}
SIZES = ([2, 4, 4, 6], [3, 3, 3, 8], [2, 2, 2, 8], [2, 2, 2, 6])
IMAGES, KERNEL, MAPS, POOLED = (np.ones(s, np.float32) for s in SIZES)
MATRIX = np.ones([2, 3, 3], np.float32)
WINDOW = [3, 3, 1, 1, 0, 0, 4, 4, 2, 2, 2]
AUGMENTATIONS = {"places": 3, "rows": 8, "columns": 9, "seed": 0, "step": 0, "tasks": 2, "first": 0}

# What is called, and arguments that it takes.
FUNCTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sample": (_core.sample, {**GOOD_SAMPLE, "balanced": False, "weighted": False}),
    "gather": (
        _core.gather,
        {**GOOD_GATHER, "augmentations": None, "scale": None, "offset": None},
    ),
    "augmentations": (
        _core.augmentations,
        {**AUGMENTATIONS, "flip": True, "crop": 1, "contrast": 0.1, "cutout": 2},
    ),
    "core.prototypes": (
        _core.prototypes,
        {"embeddings": EMBEDDINGS, "labels": LABELS, "ways": 2, "threads": 1},
    ),
    "core.squared_euclidean": (_core.squared_euclidean, {**PAIRS, "threads": 1}),
    "core.cosine_similarity": (_core.cosine_similarity, {**PAIRS, "threads": 1}),
    "prototypes": (ops.prototypes, {"embeddings": EMBEDDINGS, "labels": LABELS, "ways": 2}),
    "squared_euclidean": (ops.squared_euclidean, PAIRS),
    "cosine_similarity": (ops.cosine_similarity, PAIRS),
}
if kernels.library() is not None:
    library = kernels.library()
    window = {"window": WINDOW, "threads": 1}
    FUNCTIONS |= {
        "convolution": (
            operation(library.tfmeta_convolution),
            {"x": IMAGES, "kernel": KERNEL, **window},
        ),
        "to_input": (
            operation(library.tfmeta_convolution_to_input),
            {"y": MAPS, "kernel": KERNEL, **window},
        ),
        "to_kernel": (
            operation(library.tfmeta_convolution_to_kernel),
            {"x": IMAGES, "y": MAPS, **window},
        ),
        "product": (
            operation(library.tfmeta_product),
            {"x": MATRIX, "kernel": MATRIX, "threads": 1},
        ),
        "product_to_input": (
            operation(library.tfmeta_product_to_input),
            {"y": MATRIX, "kernel": MATRIX, "threads": 1},
        ),
        "product_to_kernel": (
            operation(library.tfmeta_product_to_kernel),
            {"x": MATRIX, "y": MATRIX, "threads": 1},
        ),
        "max_pool_put": (
            operation(library.tfmeta_max_pool_put),
            {"x": IMAGES, "values": POOLED, "window": [2, 2, 2, 2, 0, 0, 2, 2], "threads": 1},
        ),
        "max_pool_take": (
            operation(library.tfmeta_max_pool_take),
            {"x": IMAGES, "values": IMAGES, "window": [2, 2, 2, 2, 0, 0, 2, 2], "threads": 1},
        ),
    }
# What TensorFlow itself says of a tensor that it cannot make does not name the argument.
ERRORS = (
    *(ValueError, TypeError, OverflowError, MemoryError),
    *(tf.errors.InvalidArgumentError, tf.errors.ResourceExhaustedError),
)


@st.composite
def changes(draw: Any, good: dict[str, Any]) -> dict[str, Any]:
    """Return other values for one or two arguments."""
    names = draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=2, unique=True))
    changed = {}
    for name in names:
        value = draw(STRANGE)
        if isinstance(good[name], tuple) and np.shape(value) == ():
            value = None  # of a pair pybind11 asks the length, and answers in words of its own
        if name == "window" and draw(st.booleans()):
            value = [*good[name]]
            value[draw(st.integers(0, len(value) - 1))] = draw(INTEGERS)
        elif isinstance(good[name], np.ndarray) and draw(st.booleans()):
            # Of the right type at least, so that more than the first check is met.
            shape = [*good[name].shape]
            shape[draw(st.integers(0, len(shape) - 1))] += draw(st.sampled_from([-1, 1, 60]))
            value = np.full(shape, draw(st.sampled_from([0, 1, 2])), good[name].dtype)
            if draw(st.booleans()):
                value.flags.writeable = False
        changed[name] = value
    return changed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_argument_crashes(name: str) -> None:
    function, good = FUNCTIONS[name]
    function(**good)
    returned, refusals = 0, []

    @settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(st.lists(changes(good), min_size=CALLS_EACH, max_size=CALLS_EACH))
    def calls(every: list[dict[str, Any]]) -> None:
        nonlocal returned
        for change in every:
            try:
                function(**{**good, **change})
                returned += 1
            except ERRORS as error:
                refusals.append(error)

    calls()
    assert returned
    assert refusals
    assert returned + len(refusals) >= EXAMPLES * CALLS_EACH
    if function.__module__ == _core.__name__:
        for error in refusals:
            named = any(argument in str(error) for argument in good)
            assert named or isinstance(error, MemoryError), error
