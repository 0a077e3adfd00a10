"""Double precision for all, so that other formulas stand out from rounding."""

from collections.abc import Iterator

import keras
import pytest


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before)
    keras.config.set_dtype_policy(policy)
