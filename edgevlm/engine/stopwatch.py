"""Time of one request, by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Literal

Phase = Literal["wait", "prepare", "encode", "prefill", "decode", "consumer"]
"""``consumer``: the time that the reader of a stream takes between two chunks."""


class Stopwatch:
    """Splits time into phases without a gap: each lasts from the end of the one before."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._ms: defaultdict[Phase, float] = defaultdict(float)

    def lap(self, phase: Phase) -> None:
        """Add the time since the last call to a phase."""
        now = time.perf_counter()
        self._ms[phase] += (now - self._last) * 1000
        self._last = now

    def ms(self, phase: Phase) -> float:
        """Return the milliseconds of a phase."""
        return self._ms[phase]

    @property
    def elapsed(self) -> float:
        """Seconds since the start, with the consumer's."""
        return time.perf_counter() - self._start

    @property
    def total_ms(self) -> float:
        """Milliseconds of all phases but the consumer's."""
        return sum(ms for phase, ms in self._ms.items() if phase != "consumer")
