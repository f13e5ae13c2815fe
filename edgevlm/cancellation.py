"""Cancelling a request: one signal that all its steps see, from any thread or at a deadline.

A step that computes in a native library registers a function that interrupts it. So a request stops within
one node of a graph, not only between two steps.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgevlm.errors import CancelledError, DeadlineError

STOP_SECONDS = 0.02
"""Time before a deadline at which work stops: what runs needs a moment to stop, and the answer to reach its
reader. At most half of the time of the request."""


_arrivals = itertools.count()


class CancelSignal:
    """Tells the steps of one request to stop. Thread-safe, also for signal handlers.

    Args:
        within: seconds that the request may take; None for no limit.
        elapsed: seconds that it has taken so far.
    """

    def __init__(self, within: float | None = None, elapsed: float = 0.0) -> None:
        self.arrival = next(_arrivals)
        """Place of the request among all requests of this process, in the order in which they came."""
        self._within: float | None = None
        self._deadline = math.inf
        self.limit(within, elapsed)
        self._lock = threading.RLock()  # reentrant: a signal handler may interrupt its own thread
        self._interrupts: list[Callable[[], object]] = []
        self._cancelled = False
        self._expired = False

    def limit(self, within: float | None, elapsed: float = 0.0) -> None:
        """Set the deadline of a request that has not begun to compute; arguments as of the class."""
        if within is not None:
            margin = min(STOP_SECONDS, within / 2)
            self._within = within
            self._deadline = time.monotonic() + within - elapsed - margin

    @property
    def cancelled(self) -> bool:
        """True after `cancel`; an expired deadline does not count."""
        return self._cancelled

    @property
    def remaining(self) -> float:
        """Seconds until the deadline, less a margin; infinite without one."""
        return max(0.0, self._deadline - time.monotonic())

    @property
    def expired(self) -> bool:
        """True after the deadline, less a margin."""
        if self.remaining == 0:
            self._expired = True
        return self._expired

    def cancel(self) -> None:
        """Interrupt the steps that compute, and refuse all later ones. Return at once."""
        self._cancelled = True
        self._interrupt()

    def _expire(self) -> None:
        self._expired = True  # also if the timer's clock is a little ahead
        self._interrupt()

    def _interrupt(self) -> None:
        with self._lock:
            for interrupt in tuple(self._interrupts):
                interrupt()

    def check(self) -> None:
        """Raise an error if the request must stop.

        Raises:
            DeadlineError: its deadline has expired.
            CancelledError: it was cancelled.
        """
        if self._cancelled:
            raise CancelledError("this answer was cancelled before its end")
        if self.expired:
            raise DeadlineError(
                f"the {self._within:g} s of this request (within) were over before the first token of its "
                "answer; allow more, or ask about smaller or fewer images"
            )

    @contextmanager
    def timer(self) -> Iterator[None]:
        """Interrupt the steps that compute in the block when the deadline expires."""
        if self._within is None:
            yield
            return
        timer = threading.Timer(self.remaining, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Call `interrupt` if the request is cancelled, or expires, while the block runs.

        It is never called after the block, so it cannot stop the work of another request.

        Args:
            interrupt: makes the computation in the block fail soon. It returns at once, and may be called
                before the computation starts.

        Raises:
            CancelledError, DeadlineError: as `check`.
        """
        with self._lock:
            self._interrupts.append(interrupt)
        try:
            self.check()
            yield
        finally:
            with self._lock:  # waits for a `cancel` in another thread
                self._interrupts.remove(interrupt)
