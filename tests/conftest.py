"""What all tests share: a quiet TensorFlow, and the real data where there are any."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data, with `tfds/` and `splits/` in it."""
    variable = os.environ.get("TFMETA_DATA_DIR")
    folder = Path(variable) if variable else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data in TFMETA_DATA_DIR; there is no folder {folder}")
    return folder
