"""One HTML file of what learners do on the same episodes."""

from __future__ import annotations

from tfmeta.reporting.given import Reported
from tfmeta.reporting.measuring import Measured
from tfmeta.reporting.writing import check_free, report

__all__ = ["Measured", "Reported", "check_free", "report"]
