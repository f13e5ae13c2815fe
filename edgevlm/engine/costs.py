"""What the phases of a request cost on this machine, as measured by earlier requests.

With them the engine reduces images before the work, so that an answer ends before its deadline. They are kept
in the user's cache folder: the first request of the next process knows them.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Literal, TypeAlias

from edgevlm.user_cache import write_cached

CostPhase: TypeAlias = Literal["encode", "prefill", "decode"]
"""``encode``: per embedding of an image; ``prefill``: per position of a prompt; ``decode``: per token."""

PHASES: tuple[CostPhase, ...] = ("encode", "prefill", "decode")

_MEAN_WEIGHT, _DEVIATION_WEIGHT, _DEVIATIONS = 1 / 8, 1 / 4, 4
"""Constants of the estimator by which TCP decides that an answer is overdue (RFC 6298)."""

_SAVE_SECONDS = 10.0
"""Shortest time between two writes to the cache."""


class Costs:
    """Exponential means of measured costs, with their deviations.

    Args:
        path: file in the user's cache folder; None: nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._saved_at = -math.inf
        self._costs: dict[CostPhase, tuple[float, float]] = {} if path is None else _load(path)

    def record(
        self, phase: CostPhase, seconds: float, amount: float, *, stopped: bool = False
    ) -> None:
        """Add a measurement.

        Args:
            seconds: time that the phase took.
            amount: embeddings, positions or tokens.
            stopped: the deadline stopped the phase, so it would have taken longer.
        """
        if amount <= 0:
            return
        cost = seconds / amount
        if phase not in self._costs:
            self._costs[phase] = cost, cost / 2
            return
        mean, deviation = self._costs[phase]
        if stopped and cost <= mean:
            return
        deviation += _DEVIATION_WEIGHT * (abs(cost - mean) - deviation)
        mean += _MEAN_WEIGHT * (cost - mean)
        self._costs[phase] = mean, deviation

    def bound(self, phase: CostPhase) -> float | None:
        """Return the seconds that an embedding, position or token rarely exceeds; None: not measured yet."""
        if phase not in self._costs:
            return None
        mean, deviation = self._costs[phase]
        return mean + _DEVIATIONS * deviation

    def save(self) -> None:
        """Write the costs to the cache, unless this was done a moment ago."""
        if self._path is None or time.monotonic() - self._saved_at < _SAVE_SECONDS:
            return
        self._saved_at = time.monotonic()
        write_cached(self._path, json.dumps(self._costs))


def _load(path: Path) -> dict[CostPhase, tuple[float, float]]:
    """Return costs of the cache; none if there are none, or if the file is damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        costs = {
            phase: (float(stored[phase][0]), float(stored[phase][1]))
            for phase in PHASES
            if phase in stored
        }
    except (OSError, ValueError, TypeError, LookupError):
        return {}
    valid = all(math.isfinite(value) and value >= 0 for cost in costs.values() for value in cost)
    return costs if valid else {}
