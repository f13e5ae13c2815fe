"""Streams for asyncio: each has a thread of its own that works, and few of them work at once.

A program without an event loop does not load asyncio, which takes as long as the rest of this package.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.engine import Engine
from edgevlm.engine.model_lock import ChunkStream
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.errors import InputError
from edgevlm.results import Answer, Chunk, collect
from edgevlm.runtimes.forks import check_not_forked, is_forked

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Self

T = TypeVar("T")

Start: TypeAlias = Callable[[Stopwatch, CancelSignal], ChunkStream]
"""Begins an answer, whose time the stopwatch measures and which the signal cancels."""

MAX_THREADS = 4
"""Requests to one model that have a thread at once, for each event loop: one computes, the others read their
images. More would take time from the event loop, and memory for images that wait."""


class AsyncChunkStream(AsyncIterator[Chunk]):
    """The chunks of one answer, for asyncio. They can be read once.

    A thread of its own reads the images, waits for the model and computes a chunk when one is asked for. It
    ends with the answer, after an error, and when the task that reads is cancelled. To stop early, use the
    stream as an asynchronous context manager, call `aclose`, or drop it.
    """

    def __init__(self, engine: Engine, start: Start, within: float | None) -> None:
        """Prepare a stream of `engine`, which `start` begins in the thread.

        Args:
            within: seconds that the request may take; None for no limit.
        """
        self._engine = engine
        self._within = within
        self._thread = _StreamThread(start)
        self._queued = False

    async def __anext__(self) -> Chunk:
        """Compute the next chunk.

        Raises:
            InputError: no event loop of asyncio runs.
            Exception: as the method without ``a``, with the traceback of the thread.
        """
        chunk = None if self._thread.ended else await self._run(self._thread.read)
        if chunk is None or chunk.finish_reason is not None:
            self._thread.end()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Stop the answer and wait until the work has stopped. May be called again."""
        import asyncio

        if not is_forked():
            self._thread.end()
            # If this wait is cancelled, the work stops nevertheless.
            await asyncio.shield(asyncio.wrap_future(self._thread.closed))

    async def _run(self, function: Callable[[], T]) -> T | None:
        """Run a function in the thread. An error ends the answer; so does a caller that is cancelled.

        Returns:
            Its result, or None if the stream was closed before it began.
        """
        import asyncio

        check_not_forked()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise InputError(
                "no event loop of asyncio runs here; in another framework call the method without 'a' in a "
                "thread, as in trio.to_thread.run_sync(vlm.ask, image, question)"
            ) from None
        try:
            if not self._queued:
                self._queued = True
                await self._wait_for_turn(loop)
            if self._thread.ended:
                return None
            return await asyncio.wrap_future(self._thread.submit(function), loop=loop)
        except BaseException:  # also GeneratorExit, if the event loop drops the task
            self._thread.end()
            raise

    async def _wait_for_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until few other requests have threads; not longer than this request may take."""
        turns = _turns.setdefault(self._engine, WeakKeyDictionary()).setdefault(loop, _Turns())

        def leave(_: Future[None]) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(turns.leave)

        if await turns.enter(self._within):
            self._thread.closed.add_done_callback(leave)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_thread") and not is_forked():
            self._thread.end()


async def collect_async(stream: AsyncChunkStream) -> Answer:
    """Read a stream to its end, in one call of its thread, and return the whole answer."""
    answer = await stream._run(stream._thread.collect)
    assert answer is not None, "nobody else closes this stream"
    stream._thread.end()
    return answer


class _Turns:
    """The requests of one event loop to one model: those that have a thread, and the others in order."""

    def __init__(self) -> None:
        self._threads = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, timeout: float | None) -> bool:
        """Wait until it is the caller's turn. Return False if the time is over before."""
        import asyncio

        if self._threads < MAX_THREADS:
            self._threads += 1
            return True
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait([turn], timeout=timeout)
        except BaseException:
            if turn.done():
                self.leave()
            raise
        finally:
            if not turn.done():
                self._waiting.remove(turn)
        return turn.done()

    def leave(self) -> None:
        """Pass a turn that `enter` has given to the next request."""
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._threads -= 1


_turns: WeakKeyDictionary[Engine, WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns]] = (
    WeakKeyDictionary()
)


class _StreamThread:
    """A thread that owns a stream and runs functions one after another.

    It starts with the first function. A thread that waits does not keep the process from ending. Since the
    thread refers to the stream, the garbage collector does not touch what the thread works on.
    """

    def __init__(self, start: Start) -> None:
        self.closed: Future[None] = Future()
        """Done when the work has stopped after `end`."""
        self.ended = False
        """True after `end`."""
        self._start: Start | None = start
        self._stream: ChunkStream | None = None
        self._watch = Stopwatch()
        self._signal = CancelSignal()
        self._context = contextvars.copy_context()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = False

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run a function after those before it, with the context variables of this object's creator."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._work, name="edgevlm-async", daemon=True).start()
        future: Future[T] = Future()
        self._jobs.put(functools.partial(_run, future, self._context, function))
        return future

    def end(self) -> None:
        """Cancel the stream, close it in the thread, and end the thread. Return at once.

        It takes no lock that its own thread may hold, so the garbage collector may call it.
        """
        if self.ended:
            return
        self.ended = True
        self._signal.cancel()
        if self._started:
            self._jobs.put(functools.partial(_run, self.closed, self._context, self._close))
            self._jobs.put(None)
        else:
            self.closed.set_result(None)

    def read(self) -> Chunk | None:
        """Return the next chunk, or None after the last one; called in the thread."""
        return next(self._open(), None)

    def collect(self) -> Answer:
        """Return the whole answer; called in the thread."""
        return collect(self._open())

    def _open(self) -> ChunkStream:
        if self._stream is None:
            assert self._start is not None
            self._watch.lap("wait")
            self._stream = self._start(self._watch, self._signal)
            self._start = None  # it refers to the images
        return self._stream

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it refers to the event loop


def _run(future: Future[T], context: contextvars.Context, function: Callable[[], T]) -> None:
    """Run a function and pass its result or its error to a future."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = context.run(function)
    except BaseException as error:  # for the task that waits
        future.set_exception(error)
        del future  # else the error's traceback would refer to the error
    else:
        future.set_result(result)
