"""The divergence of next-token distributions, compared with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgevlm.divergence import divergence, log_probabilities, same_start


def test_divergence_of_known_distributions() -> None:
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    q = np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]])
    found = divergence(np.log(p).astype(np.float32) + 7, np.log(q).astype(np.float32) - 3)
    assert found.kl == pytest.approx([0.25 * np.log(2), 0], abs=1e-6)
    assert found.same_top.tolist() == [False, True]


def test_log_probabilities_of_large_logits() -> None:
    logs = log_probabilities(np.array([[1e4, 1e4, -1e4]], np.float32))
    assert logs[0] == pytest.approx([-np.log(2), -np.log(2), -2e4 - np.log(2)])


def test_divergence_is_never_negative() -> None:
    logits = np.random.default_rng(0).normal(0, 10, (50, 1000)).astype(np.float32)
    assert divergence(logits, logits + 1).kl.min() >= 0


@pytest.mark.parametrize(
    ("reference", "found", "expected"),
    [((1, 2, 3), (1, 2, 3), 3), ((1, 2, 3), (1, 9, 3), 1), ((1, 2), (1, 2, 3), 2), ((), (1,), 0)],
)
def test_same_start(reference: tuple[int, ...], found: tuple[int, ...], expected: int) -> None:
    assert same_start(reference, found) == expected
