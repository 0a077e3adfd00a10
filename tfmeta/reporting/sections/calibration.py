"""How far the predicted probabilities can be believed."""

from __future__ import annotations

from tfmeta import plots
from tfmeta.evaluation import Uncertainty
from tfmeta.reporting.markup import Markup, join, table
from tfmeta.reporting.measuring import Measured
from tfmeta.reporting.pictures import figure_tag, page_style
from tfmeta.reporting.sections.words import figure, note


def section(measured: Measured) -> tuple[str, Markup]:
    """Return a reliability diagram for each learner, and the scores of the probabilities."""
    found = measured.uncertainties
    if not found:
        return "Calibration", note("Told only where an example has one class.")
    rows: list[list[object]] = [
        ["queries", *(str(len(of.labels)) for of in found.values())],
        ["accuracy", *(f"{100 * of.accuracy:.2f} %" for of in found.values())],
        ["mean confidence", *(f"{100 * _confidence(of):.2f} %" for of in found.values())],
        [
            "expected calibration error",
            *(f"{100 * of.expected_calibration_error():.2f} %" for of in found.values()),
        ],
        [
            "negative log likelihood",
            *(f"{of.negative_log_likelihood:.4f}" for of in found.values()),
        ],
        ["Brier score", *(f"{of.brier_score:.4f}" for of in found.values())],
        [
            "area under the rejection curve",
            *(f"{100 * of.rejection_area:.2f} %" for of in found.values()),
        ],
    ]
    with page_style():
        images = [
            figure_tag(
                plots.reliability_diagram(of.probabilities, of.labels, title=name),
                f"Reliability diagram of {name}",
            )
            for name, of in found.items()
        ]
    caption = (
        "Bars that end below the diagonal are of predictions that are too sure of themselves, "
        "those above it of such that are not sure enough. 15 bins."
    )
    return "Calibration", join(
        table(["", *found], rows, class_="numbers"),
        note(
            "Accuracy is of all queries together here. A lower expected calibration error, "
            "negative log likelihood and Brier score are better; a larger area under the rejection "
            "curve, the mean accuracy of the surest predictions for each share of them that is "
            "kept. Probabilities are those of the logits, at temperature 1: a temperature that is "
            "fitted on validation classes (tfmeta.uncertainty) may mend what is wrong here."
        ),
        figure(*images, caption=caption),
    )


def _confidence(of: Uncertainty) -> float:
    return float(of.probabilities.max(axis=1).mean())
