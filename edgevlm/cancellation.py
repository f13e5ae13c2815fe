"""Cancelling a request: one signal that all its steps see, from any thread.

A step that computes in a native library registers a function that interrupts it. So a request stops within
one node of a graph, not only between two steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgevlm.errors import CancelledError


class CancelSignal:
    """Tells the steps of one request to stop. Thread-safe, also for signal handlers."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a signal handler may interrupt its own thread
        self._interrupts: list[Callable[[], object]] = []
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """True after `cancel`."""
        return self._cancelled

    def cancel(self) -> None:
        """Interrupt the steps that compute, and refuse all later ones. Return at once."""
        with self._lock:
            self._cancelled = True
            for interrupt in tuple(self._interrupts):
                interrupt()

    def check(self) -> None:
        """Raise an error if the request is cancelled.

        Raises:
            CancelledError: it is.
        """
        if self._cancelled:
            raise CancelledError("this answer was cancelled before its end")

    @contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Iterator[None]:
        """Call `interrupt` if the request is cancelled while the block runs.

        It is never called after the block, so it cannot stop the work of another request.

        Args:
            interrupt: makes the computation in the block fail soon. It returns at once, and may be called
                before the computation starts.

        Raises:
            CancelledError: the request is cancelled already.
        """
        with self._lock:
            self._interrupts.append(interrupt)
        try:
            self.check()
            yield
        finally:
            with self._lock:  # waits for a `cancel` in another thread
                self._interrupts.remove(interrupt)
