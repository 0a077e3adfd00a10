"""Double precision for all, so that other formulas stand out from rounding."""

import pytest


@pytest.fixture(autouse=True)
def double_precision(float64: None) -> None:
    """Have each test compute in double precision."""
