"""What the phases of a request cost on this machine, and how soon work stops, as measured.

With them the engine reduces images before the work and stops in time, so that an answer ends before its
deadline. They are kept in the user's cache folder: the first request of the next process knows them.
"""

from __future__ import annotations

import _thread
import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edgevlm.user_cache import write_cached

CostPhase: TypeAlias = Literal["encode", "prefill", "decode"]
"""``encode``: per embedding of an image; ``prefill``: per position of a prompt; ``decode``: per token."""

PHASES: tuple[CostPhase, ...] = ("encode", "prefill", "decode")

_MEAN_WEIGHT, _DEVIATION_WEIGHT, _DEVIATIONS = 1 / 8, 1 / 4, 4
"""Constants of the estimator by which TCP decides that an answer is overdue (RFC 6298)."""

STOPS = 64
"""Recent stops at a deadline that are kept."""

FIRST_MARGIN, MIN_MARGIN = 0.05, 0.005
"""Seconds before a deadline at which work stops: before anything was measured, and at least."""

MARGIN_FACTOR = 1.5
"""Margin in terms of the slowest of the recent stops. If their times have an exponential tail, one of 400
stops takes longer."""

MAX_MARGIN_SHARE = 0.75
"""Largest margin, as a share of the time of the request."""

_SAVE_SECONDS = 10.0
"""Shortest time between two writes to the cache."""


class Costs:
    """Exponential means of measured costs, with their deviations; and the times of recent stops.

    Args:
        path: file in the user's cache folder; None: nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._saved_at = -math.inf
        self._costs: dict[CostPhase, tuple[float, float]] = {}
        self._stops: deque[float] = deque(maxlen=STOPS)
        if path is not None:
            self._load(path)

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

    def record_stop(self, seconds: float) -> None:
        """Add the time from the moment at which work had to stop until the caller had its answer or error."""
        self._stops.append(seconds)

    def working_time(self, within: float) -> float:
        """Return after how many seconds work must stop, so that the caller rarely waits longer than `within`.

        The margin is larger than the time of any recent stop. It is measured on this machine under its
        present load: how late a thread wakes up, ends a node of a graph and returns.
        """
        margin = max(self._stops) * MARGIN_FACTOR if self._stops else FIRST_MARGIN
        return within - min(max(margin, MIN_MARGIN), within * MAX_MARGIN_SHARE)

    def save(self) -> None:
        """Write the costs to the cache while the caller goes on, unless this was done a moment ago."""
        if self._path is not None and time.monotonic() - self._saved_at >= _SAVE_SECONDS:
            self._saved_at = time.monotonic()
            # `Thread.start` would wait until the thread runs.
            _thread.start_new_thread(write_cached, (self._path, self._text()))

    def close(self) -> None:
        """Write the costs to the cache if `save` was called."""
        if self._path is not None and self._saved_at > -math.inf:
            write_cached(self._path, self._text())

    def _text(self) -> str:
        return json.dumps(self._costs | {"stops": list(self._stops)})

    def _load(self, path: Path) -> None:
        """Take over the costs of the cache, unless there are none or the file is damaged."""
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            costs: dict[CostPhase, tuple[float, float]] = {
                phase: (_seconds(stored[phase][0]), _seconds(stored[phase][1]))
                for phase in PHASES
                if phase in stored
            }
            stops = [_seconds(stop) for stop in stored["stops"]]
        except (OSError, ValueError, TypeError, LookupError):
            return
        self._costs = costs
        self._stops.extend(stops)


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{value!r} is no duration")
    return seconds
