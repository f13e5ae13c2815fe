"""One request at a time: a lock that requests hold, and the streams that hold it.

A model is held by a request, not by a thread: web frameworks read each chunk of a stream in another thread,
and a thread that holds an unfinished stream may serve the next request. A stream holds the model from its
first chunk until its end, `ChunkStream.close`, or until nothing refers to it any more. Requests that wait are
served in the order in which they came.

Signal handlers and the garbage collector may close streams in the middle of any function of this module. So
it waits only for locks that its own thread cannot hold, and changes a list in one step of the interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, NamedTuple

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import BusyError, CancelledError, ClosedError, DeadlineError
from edgevlm.results import Chunk
from edgevlm.runtimes.forks import check_not_forked, is_forked

if TYPE_CHECKING:
    from typing_extensions import Self

WAIT_SECONDS = 30.0
"""Default of ``wait_timeout``."""

MAX_WAIT_SECONDS = 1e6
"""Longest ``wait_timeout``, except None."""

_CHECK_SECONDS = 0.25
"""How often a waiting request checks whether anybody reads the stream before it. All else wakes it."""

_COLLECT_SECONDS = 1.0
"""Time without a reader after which the next request collects garbage: the stream may be in a cycle."""

CLOSED = "the model is closed; load it again"


class _Waiting(NamedTuple):
    """A request that waits for the model. The first one that came is the least."""

    arrival: int
    """As of its `CancelSignal`."""
    thread: int
    """Id of its thread."""
    gate: threading.Lock
    """Held until the request is woken; any thread may open it."""

    def wake(self) -> None:
        """Let it check whether it may go on. Safe in signal handlers."""
        with contextlib.suppress(RuntimeError):  # it is awake
            self.gate.release()


class ModelLock:
    """Lets one request at a time use a model.

    Args:
        free: method that releases the model's memory; called once, when the model is closed and nothing uses
            it. Held weakly: its object owns this lock.
        wait_timeout: seconds that a request waits while nobody reads the stream that holds the model; None:
            no limit. While the model computes, requests wait without a limit.
    """

    def __init__(self, free: Callable[[], None], wait_timeout: float | None = WAIT_SECONDS) -> None:
        self._free = weakref.WeakMethod(free)
        self._freed = False
        self._wait_timeout = wait_timeout
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._computing: int | None = None
        """Id of the thread in which the model computes."""
        self._idle_since: float | None = None
        """Time at which the stream that holds the model stopped computing; None while it computes."""
        self._stream: weakref.ref[ChunkStream] | None = None
        self._holder: CancelSignal | None = None
        """Signal of the request that holds the model."""
        self.closed = False

    @contextlib.contextmanager
    def hold(self, cancel: CancelSignal | None = None) -> Iterator[CancelSignal]:
        """Use the model without a stream.

        Args:
            cancel: signal of the request; None: a new one.

        Yields:
            The signal, which `close` cancels.

        Raises:
            CancelledError, DeadlineError: as the signal.
            BusyError: nobody reads the stream that holds the model, or nobody can read it during this wait.
            ClosedError: the model is closed, or this process was forked from one that used a model.
        """
        cancel = cancel or CancelSignal()
        self.acquire(cancel)
        try:
            with self.computing():
                yield cancel
        except CancelledError:
            if self.closed and cancel.cancelled:
                raise ClosedError(CLOSED) from None
            raise
        finally:
            self.release()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Mark that this thread computes with the model."""
        self._computing, self._idle_since = threading.get_ident(), None
        try:
            yield
        finally:
            self._computing, self._idle_since = None, time.monotonic()

    def acquire(self, cancel: CancelSignal, stream: ChunkStream | None = None) -> None:
        """Wait until no other request uses the model and none waits that came earlier; errors as of `hold`.

        Args:
            cancel: signal of the request. It ends the wait, too.
            stream: the stream of the request, if it has one.

        Raises:
            CancelledError: the request was cancelled while it waited.
        """
        check_not_forked()
        if not self.closed:
            self._wait(cancel)
            self._holder = cancel
            self._stream = None if stream is None else weakref.ref(stream)
            if not self.closed:
                return
            self.release()
        raise ClosedError(CLOSED)

    def check_open(self) -> None:
        """Check that nobody has closed the model.

        Raises:
            ClosedError: somebody has.
        """
        if self.closed:
            raise ClosedError(CLOSED)

    def is_held_by(self, cancel: CancelSignal) -> bool:
        """Return True if the request with this signal holds the model."""
        return self._holder is cancel

    def release(self) -> None:
        """Let the next request use the model. If the model was closed meanwhile, free it."""
        self._stream = self._holder = self._idle_since = None
        if self.closed:
            self._free_once()
        self._lock.release()
        self._wake_first()

    def close(self) -> None:
        """Cancel the request that holds the model, wait until it has stopped, and free the model.

        If this very thread computes with it, as in a signal handler, return at once; the model is freed when
        the step ends.
        """
        self.closed = True
        if is_forked():
            return  # the memory is the parent's, and its threads would be waited for
        holder, stream = self._holder, None if self._stream is None else self._stream()
        if stream is not None:
            stream.cancel()
        elif holder is not None:
            holder.cancel()
        if self._computing == threading.get_ident():
            return
        with self._lock:
            self._free_once()

    def _free_once(self) -> None:
        free = self._free()
        if free is not None and not self._freed:
            self._freed = True
            free()

    def _wait(self, cancel: CancelSignal) -> None:
        """Take the lock when it is this request's turn."""
        thread = threading.get_ident()
        if thread == self._computing or thread in [other.thread for other in tuple(self._waiting)]:
            raise BusyError(
                "this very thread computes with the model or waits for it: this request comes from a signal "
                "handler or a callback; make it after the other request has returned"
            )
        request = _Waiting(cancel.arrival, thread, threading.Lock())
        request.gate.acquire()
        self._waiting.append(request)
        taken = False
        try:
            taken = self._take(request)
            if not taken:
                with cancel.interrupting(request.wake):
                    self._wait_for_turn(request, cancel)
                    taken = True
        finally:
            self._waiting.remove(request)
            if not taken:
                self._wake_first()

    def _take(self, request: _Waiting) -> bool:
        """Take the lock if it is free and no other request came earlier."""
        return min(self._waiting) is request and self._lock.acquire(blocking=False)

    def _wake_first(self) -> None:
        first = min(self._waiting, default=None)
        if first is not None:
            first.wake()

    def _wait_for_turn(self, request: _Waiting, cancel: CancelSignal) -> None:
        if _is_only_thread():
            gc.collect()
            if self._take(request):
                return
            raise BusyError(
                "an unfinished stream holds this model, and no other thread is there to end it; read it to "
                "its end or close() it before the next request"
            )
        start = time.monotonic()
        collected = False
        while not self._take(request):
            if self.closed:
                raise ClosedError(CLOSED)
            cancel.check()
            timed_out = self._patience(start) == 0
            if not collected and (timed_out or self._is_abandoned(request)):
                gc.collect()
                collected = True
            elif timed_out:
                raise BusyError(
                    f"nobody has read the stream that holds this model for {self._wait_timeout:g} s "
                    "(wait_timeout); read it to its end or close() it"
                )
            else:
                request.gate.acquire(
                    timeout=min(self._patience(start), cancel.remaining, _CHECK_SECONDS)
                )

    def _is_abandoned(self, request: _Waiting) -> bool:
        """Return True if this request is the next one, and perhaps nothing refers to the stream before it."""
        idle_since = self._idle_since
        return (
            idle_since is not None
            and time.monotonic() - idle_since >= _COLLECT_SECONDS
            and min(self._waiting) is request
        )

    def _patience(self, start: float) -> float:
        """Return the seconds that a request continues to wait, if it waits since `start`."""
        idle_since = self._idle_since
        if self._wait_timeout is None or idle_since is None:
            return math.inf
        return max(0.0, self._wait_timeout - (time.monotonic() - max(idle_since, start)))


class ChunkStream(Iterator[Chunk]):
    """The chunks of one answer. They can be read once, from any thread.

    Use it as a context manager, or call `close` or `cancel`, to stop early. The work stops within a tile of
    an image or a batch of the decoder, and does not affect the answers to later requests.
    """

    def __init__(
        self,
        chunks: Generator[Chunk, None, None],
        lock: ModelLock,
        watch: Stopwatch,
        cancel: CancelSignal,
    ) -> None:
        self._chunks = chunks
        self._lock = lock
        self._watch = watch
        self._signal = cancel
        """Stops the work in `_chunks`."""
        self._reading = threading.RLock()
        """One reader at a time; reentrant, since a signal handler may close what its own thread reads."""
        self._stepping = False
        self._ended = False
        self._cancelled = False

    def __next__(self) -> Chunk:
        """Compute the next chunk.

        Raises:
            BusyError: another stream holds the model and nobody reads it.
            CancelledError: the answer was cancelled before its end.
            DeadlineError: its deadline expired before its first token.
            ClosedError: the model was closed before the end of the answer, or this process was forked from
                one that used a model.
        """
        check_not_forked()
        try:
            with self._reading:
                return self._read()
        finally:
            self._end_if_cancelled()

    def _read(self) -> Chunk:
        if self._stepping:
            raise BusyError("this stream is being read by a caller of this very function")
        if not self._ended:
            try:
                return self._step()
            except DeadlineError:
                self._ended = True
                raise
            except CancelledError:
                self._ended = True
            finally:
                if self._ended or self._signal.cancelled:
                    self._end()
        if self._cancelled:
            if self._lock.closed:
                raise ClosedError("the model was closed before this answer's end; load it again")
            self._signal.check()
        raise StopIteration

    def _step(self) -> Chunk:
        """Compute a chunk. The model is free again after the last one, and after an error."""
        if not self._lock.is_held_by(self._signal):
            self._watch.lap("consumer")
            self._lock.acquire(self._signal, self)
        self._stepping = True
        try:
            with self._lock.computing():
                chunk = next(self._chunks)
        except BaseException:
            self._ended = True
            raise
        finally:
            self._stepping = False
        if chunk.finish_reason is not None:
            self._ended = True
        return chunk

    def close(self) -> None:
        """Stop the answer, wait until the work has stopped, and let the next request use the model.

        The chunks end then, also for a reader in another thread. May be called again, from any thread.
        """
        if is_forked():
            return  # a thread of the parent may have been reading, and would be waited for
        self._signal.cancel()
        with self._reading:
            self._ended = True
            if not self._stepping:
                self._end()

    def cancel(self) -> None:
        """Stop the answer. Return at once.

        The reader gets a CancelledError. May be called again, from any thread and from a signal handler.
        Does nothing after the last chunk.
        """
        if is_forked():
            return
        self._cancelled = self._cancelled or not self._ended
        self._signal.cancel()
        self._end_if_cancelled()

    def _end_if_cancelled(self) -> None:
        """End a cancelled stream that nobody reads. Its reader ends it otherwise, after the step."""
        if self._signal.cancelled and self._reading.acquire(blocking=False):
            try:
                if not self._stepping:
                    self._end()
            finally:
                self._reading.release()

    def _end(self) -> None:
        self._ended = True
        try:
            self._chunks.close()
        finally:
            if self._lock.is_held_by(self._signal):
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_cancelled"):
            self.close()


def _is_only_thread() -> bool:
    """Return True if no other thread of this process runs Python."""
    return len(sys._current_frames()) == 1
