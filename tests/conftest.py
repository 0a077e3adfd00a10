"""What all tests share: a quiet TensorFlow, and the real data where there are any."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what one worker has to do alone, or the others would wait for it in the end."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
