"""Temperature scaling: fit one temperature to scored choices, and apply it to questions that were held out.

The temperature T has the smallest mean negative log-likelihood of the right choices under ``softmax(l / T)``,
where l are the log-probabilities of the choices. In 1 / T this is convex, so the minimum is where the slope
is 0. C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, describe the method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.choice_calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, scale_logprobs
from edgevlm.errors import InputError

FOLDS = 10
RESAMPLES = 2000

_GRID = 200  # temperatures at which the slopes are computed for the bootstrap


@dataclass(frozen=True)
class ScoredChoices:
    """Log-probabilities of the choices of several questions."""

    logprobs: NDArray[np.float64]
    """``[questions, choices]``, natural logarithms; minus infinity where a question has fewer choices."""
    right: NDArray[np.int64]
    """``[questions]``, the index of the right choice."""
    groups: NDArray[np.int64]
    """``[questions]``, from 0. Questions about the same images have the same number."""

    def select(self, chosen: NDArray[np.bool_]) -> ScoredChoices:
        """Return the questions where `chosen` ``[questions]`` is true."""
        return ScoredChoices(self.logprobs[chosen], self.right[chosen], self.groups[chosen])


def sum_over_groups(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum ``[groups, ...]`` of the values ``[questions, ...]`` of each group."""
    sums = np.zeros((int(groups.max()) + 1, *values.shape[1:]))
    np.add.at(sums, groups, values)
    return sums


def bootstrap_sums(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sums over resampled questions, for the bootstrap.

    Groups are drawn with replacement, as many as there are, since the questions of a group depend on each
    other. The draws are the same each time.

    Args:
        values: ``[questions, values]``.
        groups: ``[questions]``.

    Returns:
        float64 ``[RESAMPLES, values]``.
    """
    sums = sum_over_groups(values, groups)
    generator = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(generator.integers(len(sums), size=len(sums)), minlength=len(sums))
        found.append(drawn @ sums)
    return np.stack(found)


def _slopes(scored: ScoredChoices, temperature: float) -> NDArray[np.float64]:
    """Return for each question the derivative of its negative log-likelihood with respect to 1 / T."""
    known = np.where(np.isfinite(scored.logprobs), scored.logprobs, 0.0)
    expected = (np.exp(scale_logprobs(scored.logprobs, temperature)) * known).sum(axis=1)
    slopes: NDArray[np.float64] = expected - known[np.arange(len(known)), scored.right]
    return slopes


def fit_temperature(scored: ScoredChoices) -> float:
    """Return the temperature with the smallest mean negative log-likelihood.

    Raises:
        InputError: there is no minimum from 0.05 to 20, since the model is nearly always right, or no better
            than a guess.
    """
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    # The slope in 1 / T falls as T rises.
    if _slopes(scored, MIN_TEMPERATURE).sum() <= 0:
        raise InputError(
            f"the {len(scored.right)} questions determine no temperature: the model chooses right on nearly "
            f"all of them; add questions that it finds hard"
        )
    if _slopes(scored, MAX_TEMPERATURE).sum() >= 0:
        raise InputError(
            f"the {len(scored.right)} questions determine no temperature: the model chooses no better than a "
            f"guess; check the choices, which must be worded as the model would answer"
        )
    for _ in range(60):
        middle = (low + high) / 2
        if _slopes(scored, math.exp(middle)).sum() > 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def temperature_interval(scored: ScoredChoices) -> tuple[float, float]:
    """Return the 95 % interval of the temperature: percentiles of the bootstrap over groups."""
    grid = np.linspace(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE), _GRID)
    slopes = np.stack([_slopes(scored, math.exp(at)) for at in grid], axis=1)
    drawn = bootstrap_sums(slopes, scored.groups)
    # The slope falls along the grid: the minimum is between the last positive value and the next one.
    last = np.clip((drawn > 0).sum(axis=1) - 1, 0, _GRID - 2)
    rows = np.arange(len(drawn))
    before, after = drawn[rows, last], drawn[rows, last + 1]
    share = np.clip(before / np.where(before > after, before - after, 1.0), 0.0, 1.0)
    found = np.exp(grid[last] + share * (grid[1] - grid[0]))
    low, high = np.quantile(found, (0.025, 0.975)).tolist()
    return low, high


def cross_fit(scored: ScoredChoices) -> NDArray[np.float64]:
    """Return log-probabilities of which each question was scaled by a temperature of other questions.

    The groups are shared out to `FOLDS` folds. The temperature for a fold is fitted to the other folds. The
    folds are the same each time.

    Returns:
        float64 ``[questions, choices]``, normalized.

    Raises:
        InputError: as `fit_temperature`, or there are fewer groups than folds.
    """
    groups = int(scored.groups.max()) + 1
    if groups < FOLDS:
        raise InputError(
            f"the questions are about {groups} different images; at least {FOLDS} are needed"
        )
    fold_of_group = np.random.default_rng(0).permutation(groups) % FOLDS
    folds = fold_of_group[scored.groups]
    scaled = np.empty_like(scored.logprobs)
    for fold in range(FOLDS):
        held_out = folds == fold
        temperature = fit_temperature(scored.select(~held_out))
        scaled[held_out] = scale_logprobs(scored.logprobs[held_out], temperature)
    return scaled
