"""Tests of the 95 % intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgevlm.evaluation.intervals import bootstrap, wilson


@pytest.mark.parametrize(("right", "items"), [(81, 263), (0, 10), (10, 10), (3.5, 7), (1, 1)])
def test_wilson_bounds_solve_its_equation(right: float, items: int) -> None:
    """Each bound p is as many standard errors at p from the share as the interval says."""
    share = right / items
    low, high = wilson(right, items)
    assert 0 <= low <= share <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            error = math.sqrt(bound * (1 - bound) / items)
            assert abs(share - bound) / error == pytest.approx(1.959964, abs=1e-6)


def test_wilson_of_a_published_example() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_the_bootstrap_covers_the_true_mean_as_often_as_it_says() -> None:
    """Over 200 samples of a skewed distribution; a percentile interval of 40 values covers a little less."""
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        found = bootstrap(generator.exponential(2.0, 40).tolist())
        assert found.low is not None and found.high is not None
        covered += found.low <= 2.0 <= found.high
    assert 178 <= covered <= 198


def test_the_bootstrap_is_as_wide_as_the_standard_error_of_items() -> None:
    """Positions of one item are the same, so that only the number of items counts."""
    values = np.random.default_rng(1).normal(5.0, 1.0, 400)
    counts = np.full(400, 10)
    found = bootstrap((values * counts).tolist(), counts.tolist())
    assert found.low is not None and found.high is not None
    assert found.mean == pytest.approx(values.mean())
    error = values.std() / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_long_answers_count_more() -> None:
    assert bootstrap([1.0, 0.0], [1, 3]).mean == 0.25


def test_one_item_has_no_interval() -> None:
    found = bootstrap([3.0], [6])
    assert (found.mean, found.low, found.high) == (0.5, None, None)
