"""How well probabilities of choices are calibrated: scores with intervals, and the reliability table.

| score | of one question | best |
|---|---|---|
| expected calibration error | | 0 |
| negative log-likelihood | minus the logarithm of the right choice's probability | 0 |
| Brier score | sum over the choices of (probability - 1 if right else probability)², 0 to 2 | 0 |

For the expected calibration error the questions are put into 15 bins of the same width by their confidence,
the highest probability. It is the mean over the questions of the distance between a bin's mean confidence and
its share of right choices. M. P. Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian
Binning", AAAI 2015; C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. The Brier score is
that of G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78
(1950).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.choice_calibration import scale_logprobs
from edgevlm.errors import InputError
from edgevlm.evaluation import temperature_scaling
from edgevlm.evaluation.dataset import Item
from edgevlm.evaluation.intervals import Mean, bootstrap
from edgevlm.evaluation.runner import load_images
from edgevlm.evaluation.temperature_scaling import ScoredChoices
from edgevlm.vlm import VLM

BINS = 15
MIN_QUESTIONS = 50
"""With fewer questions all figures are too uncertain."""

_SIMULATIONS = 200


@dataclass(frozen=True)
class ReliabilityBin:
    """The questions whose confidence is in one interval."""

    low: float
    """Not part of the interval."""
    high: float
    questions: int
    confidence: float
    """Mean confidence."""
    right: float
    """Share of right choices, 0 to 1."""


@dataclass(frozen=True)
class CalibrationScores:
    """Scores of the probabilities of one model on several questions."""

    calibration_error: Mean
    """Expected calibration error."""
    chance_error: float
    """Expected calibration error that perfect probabilities would have by chance, with so many questions."""
    negative_log_likelihood: Mean
    brier: Mean
    bins: tuple[ReliabilityBin, ...]
    """Bins that have questions, from the lowest confidence."""


@dataclass(frozen=True)
class CalibrationResult:
    """A temperature, and what it changes on questions that it was not fitted to."""

    questions: int
    right: float
    """Share of right choices, 0 to 1. A temperature does not change it."""
    temperature: float
    """Fitted to all questions."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    before: CalibrationScores
    """At temperature 1."""
    after: CalibrationScores
    """Each question at a temperature of other questions, see `temperature_scaling.cross_fit`."""


def score_choices(
    vlm: VLM, items: Sequence[Item], progress: Callable[[int], None] = lambda done: None
) -> ScoredChoices:
    """Let a model score the choices of items, all of which have choices.

    Args:
        vlm: the model.
        items: the items.
        progress: called after each item with the number of items that are done.

    Raises:
        InputError: there are fewer than 50 items.
    """
    if len(items) < MIN_QUESTIONS:
        raise InputError(
            f"{len(items)} questions have 'choices'; at least {MIN_QUESTIONS} are needed, and some hundreds "
            f"are better"
        )
    width = max(len(item.choices) for item in items)
    logprobs = np.full((len(items), width), -np.inf)
    right = np.zeros(len(items), np.int64)
    groups: dict[tuple[str, ...], int] = {}
    group_of_item = np.zeros(len(items), np.int64)
    for index, item in enumerate(items):
        images = load_images(item.images)
        scores = vlm.score(images, item.turns[0], item.choices)
        logprobs[index, : len(scores)] = [score.logprob for score in scores]
        right[index] = int(np.argmax(item.choice_scores()))
        # Questions without an image do not depend on each other.
        names = tuple(image.name for image in item.images) or (f"question {index}",)
        group_of_item[index] = groups.setdefault(names, len(groups))
        progress(index + 1)
    return ScoredChoices(logprobs, right, group_of_item)


def calibrate(scored: ScoredChoices) -> CalibrationResult:
    """Fit a temperature, and measure before and after it on held-out questions.

    Raises:
        InputError: the questions determine no temperature.
    """
    temperature = temperature_scaling.fit_temperature(scored)
    after = temperature_scaling.cross_fit(scored)
    low, high = temperature_scaling.temperature_interval(scored)
    before = scale_logprobs(scored.logprobs, 1.0)
    return CalibrationResult(
        questions=len(scored.right),
        right=float((before.argmax(axis=1) == scored.right).mean()),
        temperature=temperature,
        low=low,
        high=high,
        before=calibration_scores(before, scored),
        after=calibration_scores(after, scored),
    )


def calibration_scores(logprobs: NDArray[np.float64], scored: ScoredChoices) -> CalibrationScores:
    """Return the scores of normalized log-probabilities ``[questions, choices]``.

    Args:
        logprobs: the log-probabilities.
        scored: the right choices, and the groups of the questions.
    """
    rows = np.arange(len(logprobs))
    probabilities = np.exp(logprobs)
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == scored.right).astype(float)
    wanted = np.zeros_like(probabilities)
    wanted[rows, scored.right] = 1
    counts = temperature_scaling.sum_over_groups(np.ones(len(rows)), scored.groups)

    def mean(values: NDArray[np.float64]) -> Mean:
        sums = temperature_scaling.sum_over_groups(values, scored.groups)
        return bootstrap(sums.tolist(), counts.tolist())

    return CalibrationScores(
        calibration_error=_calibration_error(confidence, right, scored.groups),
        chance_error=_chance_error(confidence),
        negative_log_likelihood=mean(-logprobs[rows, scored.right]),
        brier=mean(((probabilities - wanted) ** 2).sum(axis=1)),
        bins=_reliability(confidence, right),
    )


def _bin_of(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the bin of each confidence; bin i has (i / 15, (i + 1) / 15]."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _differences(
    confidence: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return confidence minus right ``[questions, bins]``, in the bin of each question and 0 in others.

    The expected calibration error is the sum over the bins of ``abs(sum over questions) / questions``.
    """
    placed = np.zeros((len(confidence), BINS))
    placed[np.arange(len(confidence)), _bin_of(confidence)] = confidence - right
    return placed


def _calibration_error(
    confidence: NDArray[np.float64], right: NDArray[np.float64], groups: NDArray[np.int64]
) -> Mean:
    """Return the expected calibration error with its 95 % interval of the bootstrap over groups.

    The error of few questions is too high, since chance does not cancel out, and that of a resample is higher
    again by about as much. So the interval is the basic one (twice the error minus the percentiles), and the
    error itself may lie above it. Percentiles would miss the true error nearly always where it is small.
    """
    placed = _differences(confidence, right)
    error = float(np.abs(placed.sum(axis=0)).sum() / len(confidence))
    ones = np.ones((len(placed), 1))
    sums = temperature_scaling.bootstrap_sums(np.hstack([placed, ones]), groups)
    resampled = np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1]
    low, high = np.quantile(resampled, (0.025, 0.975)).tolist()
    return Mean(error, max(0.0, 2 * error - high), max(0.0, 2 * error - low))


def _chance_error(confidence: NDArray[np.float64]) -> float:
    """Return the mean error of simulations in which each question is right with its confidence."""
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(_SIMULATIONS):
        right = (generator.random(len(confidence)) < confidence).astype(float)
        errors.append(np.abs(_differences(confidence, right).sum(axis=0)).sum() / len(confidence))
    return float(np.mean(errors))


def _reliability(
    confidence: NDArray[np.float64], right: NDArray[np.float64]
) -> tuple[ReliabilityBin, ...]:
    found = []
    bins = _bin_of(confidence)
    for index in np.unique(bins).tolist():
        inside = bins == index
        found.append(
            ReliabilityBin(
                low=index / BINS,
                high=(index + 1) / BINS,
                questions=int(inside.sum()),
                confidence=float(confidence[inside].mean()),
                right=float(right[inside].mean()),
            )
        )
    return tuple(found)
