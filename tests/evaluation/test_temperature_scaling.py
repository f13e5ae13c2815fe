"""Temperature scaling and the scores of calibration, beside plain computations of the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevlm.choice_calibration import scale_logprobs
from edgevlm.errors import InputError
from edgevlm.evaluation import calibration, temperature_scaling
from edgevlm.evaluation.temperature_scaling import ScoredChoices, cross_fit, fit_temperature


def drawn(
    seed: int, questions: int, temperature: float = 1.0, choices: int = 5, per_image: int = 1
) -> ScoredChoices:
    """Return questions whose right choices are drawn from ``softmax(l / temperature)``."""
    generator = np.random.default_rng(seed)
    logprobs = scale_logprobs(generator.normal(scale=4, size=(questions, choices)), 1.0)
    likely = np.exp(scale_logprobs(logprobs, temperature)).cumsum(axis=1)
    right = (likely < generator.random((questions, 1))).sum(axis=1).clip(max=choices - 1)
    return ScoredChoices(logprobs, right, np.arange(questions) // per_image)


def padded(scored: ScoredChoices) -> ScoredChoices:
    """Return the same with two choices more that do not exist."""
    width = ((0, 0), (0, 2))
    logprobs = np.pad(scored.logprobs, width, constant_values=-np.inf)
    return ScoredChoices(logprobs, scored.right, scored.groups)


def plain_softmax(logprobs: Sequence[float], temperature: float) -> list[float]:
    weights = [math.exp(one / temperature) for one in logprobs]
    return [weight / sum(weights) for weight in weights]


def plain_likelihood(scored: ScoredChoices, temperature: float) -> float:
    """Return the mean negative log-likelihood, computed without NumPy."""
    rows = zip(scored.logprobs.tolist(), scored.right.tolist(), strict=True)
    losses = [-math.log(plain_softmax(row, temperature)[right]) for row, right in rows]
    return sum(losses) / len(losses)


# The fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature: float) -> None:
    scored = drawn(1, 4000, temperature)
    assert fit_temperature(scored) == pytest.approx(temperature, rel=0.06)
    low, high = temperature_scaling.temperature_interval(scored)
    assert low < temperature < high < 1.3 * low


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.4, 3))
def test_no_other_temperature_is_more_likely(seed: int, temperature: float) -> None:
    scored = drawn(seed, 40, temperature)
    try:
        found = fit_temperature(scored)
    except InputError:
        assume(False)
    best = plain_likelihood(scored, found)
    for factor in (0.3, 0.9, 0.999, 1.001, 1.1, 3):
        assert best <= plain_likelihood(scored, found * factor)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.4, 3))
def test_temperature_scales_with_the_log_probabilities(seed: int, factor: float) -> None:
    scored = drawn(seed, 300)
    scaled = ScoredChoices(scored.logprobs * factor, scored.right, scored.groups)
    assert fit_temperature(scaled) == pytest.approx(factor * fit_temperature(scored))


def test_choices_that_do_not_exist_change_nothing() -> None:
    scored = drawn(3, 300)
    assert fit_temperature(padded(scored)) == fit_temperature(scored)
    assert np.array_equal(cross_fit(padded(scored))[:, :-2], cross_fit(scored))
    one, other = calibration.calibrate(scored), calibration.calibrate(padded(scored))
    assert one == other


@pytest.mark.parametrize(
    ("right", "complaint"),
    [("best", "chooses right on nearly all of them"), ("worst", "no better than a guess")],
)
def test_questions_that_determine_no_temperature(right: str, complaint: str) -> None:
    logprobs = drawn(4, 60).logprobs
    chosen = logprobs.argmax(axis=1) if right == "best" else logprobs.argmin(axis=1)
    with pytest.raises(InputError, match=f"the 60 questions determine no temperature.*{complaint}"):
        fit_temperature(ScoredChoices(logprobs, chosen, np.arange(60)))


def test_a_question_is_scaled_by_other_images_only() -> None:
    """What is right for one image has no part in the temperature that its own questions get."""
    scored = drawn(5, 120, per_image=3)
    before = cross_fit(scored)
    changed = scored.right.copy()
    changed[30:33] = (changed[30:33] + 1) % 5
    after = cross_fit(ScoredChoices(scored.logprobs, changed, scored.groups))
    assert np.array_equal(after[30:33], before[30:33])
    different = (after != before).any(axis=1).reshape(-1, 3)
    assert (different.all(axis=1) == different.any(axis=1)).all()
    assert 0.8 < different.mean() < 1
    assert np.allclose(np.exp(after).sum(axis=1), 1)
    with pytest.raises(InputError, match="are about 9 different images; at least 10 are needed"):
        cross_fit(drawn(5, 27, per_image=3))


def test_the_interval_is_that_of_resampled_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temperature_scaling, "RESAMPLES", 100)
    scored = drawn(6, 120, 1.5, per_image=2)
    found = temperature_scaling.temperature_interval(scored)
    generator = np.random.default_rng(0)
    fits = []
    for _ in range(100):
        rows = (generator.integers(60, size=60)[:, None] * 2 + [0, 1]).ravel()
        fits.append(
            fit_temperature(
                ScoredChoices(scored.logprobs[rows], scored.right[rows], scored.groups[rows])
            )
        )
    assert found == pytest.approx(np.quantile(fits, (0.025, 0.975)).tolist(), rel=0.01)


# The scores ---------------------------------------------------------------------------------------


def plain_error(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Return the expected calibration error by its definition, bin for bin."""
    error = 0.0
    for number in range(15):
        inside = [
            index
            for index, value in enumerate(confidence)
            if number / 15 < value <= (number + 1) / 15
        ]
        if inside:
            mean = sum(confidence[index] for index in inside) / len(inside)
            share = sum(right[index] for index in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(mean - share)
    return error


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 7]))
def test_scores_are_those_of_their_definitions(seed: int, choices: int) -> None:
    scored = drawn(seed, 150, choices=choices, per_image=2)
    scaled = scale_logprobs(scored.logprobs, 0.7)
    found = calibration.calibration_scores(scaled, scored)
    probabilities = [plain_softmax(row, 0.7) for row in scored.logprobs.tolist()]
    rights = scored.right.tolist()
    confidence = [max(row) for row in probabilities]
    correct = [
        row.index(max(row)) == right for row, right in zip(probabilities, rights, strict=True)
    ]
    assert found.calibration_error.mean == pytest.approx(plain_error(confidence, correct))
    brier = [
        sum((one - (index == right)) ** 2 for index, one in enumerate(row))
        for row, right in zip(probabilities, rights, strict=True)
    ]
    assert found.brier.mean == pytest.approx(sum(brier) / 150)
    assert found.negative_log_likelihood.mean == pytest.approx(plain_likelihood(scored, 0.7))
    assert sum(one.questions for one in found.bins) == 150
    assert sum(one.questions * one.right for one in found.bins) == pytest.approx(sum(correct))
    by_table = sum(one.questions * abs(one.confidence - one.right) for one in found.bins) / 150
    assert by_table == pytest.approx(found.calibration_error.mean)


def test_bins_have_their_upper_end() -> None:
    ends = np.array([1 / 15, 0.2, 0.5, 0.8, 1.0])
    assert calibration._bin_of(ends).tolist() == [0, 2, 7, 11, 14]
    assert calibration._bin_of(ends[:-1] + 1e-9).tolist() == [1, 3, 7, 12]


def test_the_interval_of_the_error_holds_the_true_error() -> None:
    """Percentiles would not: the error of a resample is higher than that of the sample."""

    def confidence_and_right(
        generator: np.random.Generator, questions: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        confidence = generator.uniform(0.3, 1, questions)
        return confidence, (generator.random(questions) < confidence**1.2).astype(float)

    generator = np.random.default_rng(0)
    confidence, _ = confidence_and_right(generator, 300_000)
    truth = float(np.mean(confidence - confidence**1.2))
    held = 0
    for _ in range(40):
        confidence, right = confidence_and_right(generator, 300)
        found = calibration._calibration_error(confidence, right, np.arange(300))
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
    assert held >= 34


def test_perfect_probabilities_have_the_error_of_chance() -> None:
    errors = []
    for seed in range(20):
        scored = drawn(seed, 400)
        found = calibration.calibration_scores(scored.logprobs, scored)
        errors.append(found.calibration_error.mean / found.chance_error)
    assert np.mean(errors) == pytest.approx(1, abs=0.15)


def test_too_sure_a_model_is_calibrated_on_questions_held_out() -> None:
    result = calibration.calibrate(drawn(8, 1500, temperature=3.0))
    before, after = result.before, result.after
    assert before.calibration_error.mean > 0.15
    assert after.calibration_error.mean < 2 * after.chance_error
    assert after.negative_log_likelihood.mean < before.negative_log_likelihood.mean
    assert after.brier.mean < before.brier.mean
    assert result.low < 3 < result.high
