"""How many threads can compute at once, as measured: cores that other programs use do not count.

llama.cpp's threads wait for each other after each node of a graph, and spin while they wait. If one of them
has lost its core to another program, a wait lasts until the operating system gives the core back. On two busy
cores a token of a small model can take a hundred times as long with two threads as with one.
"""

from __future__ import annotations

import time
from typing import NamedTuple

WINDOW = 0.05
"""Seconds of computing from which the limit is decided."""

MIN_SHARE = 0.85
"""Share of the time that each thread must get, or there are too many of them. Threads that have a core to
themselves get more than 0.95."""

MIN_PAUSE, MAX_PAUSE = 1.0, 60.0
"""Seconds without an attempt to use more threads after one that failed; they double with each failure."""


class Clocks(NamedTuple):
    """Three clocks, in seconds."""

    wall: float
    thread: float
    """CPU time of this thread."""
    process: float
    """CPU time of all threads of the process."""

    @classmethod
    def now(cls) -> Clocks:
        """Read the clocks."""
        return cls(time.monotonic(), time.thread_time(), time.process_time())


class ThreadLimit:
    """Limits threads to the number that recently got their cores. Begins with one thread.

    Args:
        threads: the most threads.
    """

    def __init__(self, threads: int) -> None:
        self._max = threads
        self.limit = 1
        """Threads that have probably a core each."""
        self._threads = 1
        self._wall = self._cpu = 0.0
        self._pause = MIN_PAUSE
        self._paused_until = 0.0

    def add(self, threads: int, start: Clocks) -> None:
        """Add what was computed since `start` by this number of threads, one of them the caller's."""
        wall, thread, process = (now - then for now, then in zip(Clocks.now(), start, strict=True))
        self.record(threads, wall, min(thread, process / threads), start.wall + wall)

    def record(self, threads: int, wall: float, cpu: float, now: float) -> None:
        """Add a measurement.

        Args:
            threads: threads that computed.
            wall: seconds from begin to end.
            cpu: seconds that each of the threads had a core, on average.
            now: seconds of a monotonic clock.
        """
        if threads != self._threads:
            self._threads, self._wall, self._cpu = threads, 0.0, 0.0
        self._wall += wall
        self._cpu += cpu
        if self._wall < WINDOW:
            return
        share = self._cpu / self._wall
        self._wall = self._cpu = 0.0
        if share >= MIN_SHARE:
            if threads > 1:
                self._pause = MIN_PAUSE
            if threads >= self.limit:
                wanted = threads if now < self._paused_until else 2 * threads
                self.limit = min(wanted, self._max)
        elif threads > 1:
            self.limit = min(self.limit, max(1, int(share * threads)))
            self._paused_until = now + self._pause
            self._pause = min(2 * self._pause, MAX_PAUSE)
