"""95 % intervals: of a share of right answers, and of a mean over items by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959964  # 97.5 % quantile of the normal distribution
_RESAMPLES = 2000


@dataclass(frozen=True)
class Share:
    """A share of right answers (0 to 1) with its 95 % interval."""

    share: float
    low: float
    high: float


def wilson(right: float, items: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share of `right` out of `items`.

    The method is that of E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", Journal of the American Statistical Association 22 (1927), 209-212. For scores between
    0 and 1 the interval is too wide rather than too narrow: their variance is at most that of scores
    of 0 and 1 with the same mean.
    """
    share, square = right / items, _Z * _Z
    middle = (share + square / (2 * items)) / (1 + square / items)
    spread = math.sqrt(share * (1 - share) / items + square / (4 * items * items))
    reach = _Z * spread / (1 + square / items)
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))  # rounding


def share_of(scores: Sequence[float]) -> Share:
    """Return the mean of scores from 0 to 1, at least one."""
    right = sum(scores)
    return Share(right / len(scores), *wilson(right, len(scores)))


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval."""

    mean: float
    low: float | None
    """None: there is one item, which says nothing about others."""
    high: float | None


def bootstrap(totals: Sequence[float], counts: Sequence[float] | None = None) -> Mean:
    """Return ``sum(totals) / sum(counts)`` with its 95 % percentile interval of the bootstrap over items.

    Items are drawn again, not positions: positions of one answer depend on each other. The method is that of
    B. Efron, "Bootstrap methods: another look at the jackknife", The Annals of Statistics 7 (1979), 1-26. The
    draws are the same each time.

    Args:
        totals: the sum over each item, at least one.
        counts: how many values the sum of each item has; None: one.
    """
    sums = np.asarray(totals, np.float64)
    sizes = np.ones_like(sums) if counts is None else np.asarray(counts, np.float64)
    mean = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return Mean(mean, None, None)
    generator = np.random.default_rng(0)
    means = []
    for _ in range(_RESAMPLES):
        drawn = generator.integers(len(sums), size=len(sums))
        means.append(sums[drawn].sum() / sizes[drawn].sum())
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return Mean(mean, low, high)
