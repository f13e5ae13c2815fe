"""Cancelling a request: one signal that all its steps see, from any thread or at a deadline.

A step that computes in a native library registers a function that interrupts it. So a request stops within
one node of a graph, not only between two steps.
"""

from __future__ import annotations

import _thread
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgevlm.errors import CancelledError, DeadlineError

_arrivals = itertools.count()


class CancelSignal:
    """Tells the steps of one request to stop. Thread-safe, also for signal handlers.

    Args:
        within: seconds that the request may take in all, for messages; None for no limit.
        seconds: seconds from now after which its work stops; None: `within`.
    """

    def __init__(self, within: float | None = None, seconds: float | None = None) -> None:
        self.arrival = next(_arrivals)
        """Place of the request among all requests of this process, in the order in which they came."""
        self._within: float | None = None
        self.stops_at = math.inf
        """Time of `time.monotonic` at which the work stops."""
        if within is not None:
            self.limit(within, within if seconds is None else seconds)
        self._lock = threading.RLock()  # reentrant: a signal handler may interrupt its own thread
        self._interrupts: list[Callable[[], object]] = []
        self._cancelled = False
        self._expired = False

    def limit(self, within: float, seconds: float) -> None:
        """Set the deadline of a request that has not begun to compute; arguments as of the class."""
        self._within = within
        self.stops_at = time.monotonic() + seconds

    @property
    def has_deadline(self) -> bool:
        """True if the request has a limit of time."""
        return self._within is not None

    @property
    def cancelled(self) -> bool:
        """True after `cancel`; an expired deadline does not count."""
        return self._cancelled

    @property
    def remaining(self) -> float:
        """Seconds until the work stops, not negative; infinity without a deadline."""
        return max(0.0, self.stops_at - time.monotonic())

    @property
    def expired(self) -> bool:
        """True once the work has to stop because of the deadline."""
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
        if not self.has_deadline:
            yield
            return
        ended = threading.Lock()
        ended.acquire()

        def watch() -> None:
            if not ended.acquire(timeout=self.remaining):
                self._expire()

        # `Thread.start` would wait until the thread runs, which takes tens of milliseconds on busy cores.
        _thread.start_new_thread(watch, ())
        try:
            yield
        finally:
            ended.release()

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
