"""Report of a calibration, as text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgevlm.evaluation.calibration import CalibrationResult, CalibrationScores
from edgevlm.evaluation.report import table, with_interval


def markdown(result: CalibrationResult) -> str:
    """Return the temperature, the scores before and after it, and the reliability tables."""
    before, after = result.before, result.after
    scores = table(
        ("score, lower is better (95 % interval)", "temperature 1", "after, on held-out questions"),
        [
            (
                "expected calibration error",
                with_interval(before.calibration_error, 1, ".3f"),
                with_interval(after.calibration_error, 1, ".3f"),
            ),
            (
                "the same of perfect probabilities, by chance",
                f"{before.chance_error:.3f}",
                f"{after.chance_error:.3f}",
            ),
            (
                "negative log-likelihood",
                with_interval(before.negative_log_likelihood, 1, ".3f"),
                with_interval(after.negative_log_likelihood, 1, ".3f"),
            ),
            (
                "Brier score",
                with_interval(before.brier, 1, ".3f"),
                with_interval(after.brier, 1, ".3f"),
            ),
        ],
    )
    summary = (
        f"{result.questions} questions, chosen right {100 * result.right:.1f} %; temperature "
        f"{result.temperature:.2f} (95 % interval {result.low:.2f} to {result.high:.2f})"
    )
    if result.low <= 1 <= result.high:
        summary += (
            "\nThe interval contains 1: these questions do not show that a temperature is needed."
        )
    return "\n\n".join(
        (
            summary,
            scores,
            "Reliability at temperature 1:",
            _reliability(before),
            "Reliability after, on held-out questions:",
            _reliability(after),
        )
    )


def _reliability(scores: CalibrationScores) -> str:
    return table(
        ("confidence", "questions", "mean confidence", "right"),
        [
            (
                f"{one.low:.2f} to {one.high:.2f}",
                str(one.questions),
                f"{one.confidence:.3f}",
                f"{one.right:.3f}",
            )
            for one in scores.bins
        ],
    )


def as_dict(result: CalibrationResult) -> dict[str, Any]:
    """Return the result for JSON; shares and errors are from 0 to 1."""
    return dataclasses.asdict(result)
