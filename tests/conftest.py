"""What all tests share: a quiet TensorFlow, and the real data where there are any."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest

# What has been imported stays: the garbage collector need not look through it again and again.
gc.collect()
gc.freeze()
# And less often than usual: tracing makes many objects that stay for a while.
gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Let go of what the tests of a module made, and look at what they leave no more.

    What TensorFlow and Keras keep, of all modules before, would be gone through again by each full
    collection, half a minute of them in the end, and `keras.utils.clear_session` makes one.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data, with `tfds/` and `splits/` in it."""
    variable = os.environ.get("TFMETA_DATA_DIR")
    folder = Path(variable) if variable else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data in TFMETA_DATA_DIR; there is no folder {folder}")
    return folder


@pytest.fixture
def float64() -> Iterator[None]:
    """Compute in double precision, so that errors of the method stand out from rounding."""
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)


# The files that take longest, first. Workers are given whole files, so that what the fixtures of a
# module make is made once; one that took a long file last would have the others wait.
LONGEST = (
    *("algorithms/test_common", "test_distribution", "test_packed", "conformance/", "test_export"),
    *("algorithms/test_any_model", "algorithms/test_maml", "test_tuning", "test_copies"),
    *("test_cli", "test_documents", "test_compilations", "test_resume", "algorithms/"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: next((i for i, x in enumerate(LONGEST) if x in item.nodeid), 99))
