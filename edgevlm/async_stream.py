"""Streams for asyncio: each runs a `ChunkStream` in a thread of its own."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.model_lock import ChunkStream
from edgevlm.errors import InputError
from edgevlm.results import Answer, Chunk, collect
from edgevlm.runtimes.forks import is_forked

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class AsyncChunkStream(AsyncIterator[Chunk]):
    """The chunks of one answer, for asyncio. They can be read once.

    A thread of its own reads the images, waits for the model and computes a chunk when one is asked for. It
    ends with the answer, after an error, and when the task that reads is cancelled. To stop early, use the
    stream as an asynchronous context manager, call `aclose`, or drop it.

    Args:
        start: begins the answer, which the signal cancels; called in the thread, with the caller's context
            variables.
    """

    def __init__(self, start: Callable[[CancelSignal], ChunkStream]) -> None:
        self._signal = CancelSignal()
        self._start = start
        self._chunks: ChunkStream | None = None
        self._thread = _Thread()
        self._closing: Future[None] | None = None
        """The end of the work; None before `_stop`."""

    async def __anext__(self) -> Chunk:
        """Compute the next chunk.

        Raises:
            InputError: no event loop of asyncio runs.
            EdgeVLMError: as the synchronous method, with the same type and traceback.
        """
        chunk = None if self._closing else await self._run(self._read)
        if chunk is None or chunk.finish_reason is not None:
            self._stop()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Stop the answer and wait until the work has stopped. May be called again."""
        # If this wait is cancelled, the work stops nevertheless.
        await asyncio.shield(asyncio.wrap_future(self._stop()))

    async def _run(self, function: Callable[[], T]) -> T:
        """Run a function in the thread. An error ends the answer; so does a caller that is cancelled."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise InputError(
                "no event loop of asyncio runs here; in other frameworks call the method without 'a' in a "
                "thread, such as trio.to_thread.run_sync(vlm.ask, image, question)"
            ) from None
        try:
            return await asyncio.wrap_future(self._thread.submit(function), loop=loop)
        except BaseException:  # also GeneratorExit, if the event loop drops the task
            self._stop()
            raise

    def _open(self) -> ChunkStream:
        if self._chunks is None:
            self._chunks = self._start(self._signal)
        return self._chunks

    def _read(self) -> Chunk | None:
        return next(self._open(), None)

    def _collect(self) -> Answer:
        return collect(self._open())

    def _stop(self) -> Future[None]:
        """Cancel the work and end the thread. Return at once, also in the garbage collector."""
        if self._closing is None:
            self._signal.cancel()
            self._closing = self._thread.end(self._close)
        return self._closing

    def _close(self) -> None:
        if self._chunks is not None:
            self._chunks.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_closing") and not is_forked():
            self._stop()


async def collect_async(stream: AsyncChunkStream) -> Answer:
    """Read a stream to its end, in one call of its thread, and return the whole answer."""
    answer = await stream._run(stream._collect)
    stream._stop()
    return answer


class _Thread:
    """A thread that runs functions one after another, with the context variables of its creator.

    It starts with the first function. A thread that waits does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = False

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run a function after those before it."""
        if not self._started:
            self._started = True
            threading.Thread(
                target=_work, args=(self._jobs,), name="edgevlm-async", daemon=True
            ).start()
        return self._put(function)

    def end(self, function: Callable[[], None]) -> Future[None]:
        """Run a last function if others have been run, and end.

        It takes no lock that its own thread may hold, so the garbage collector may call it.
        """
        if self._started:
            future = self._put(function)
            self._jobs.put(None)
        else:
            future = Future()
            future.set_result(None)
        return future

    def _put(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.put(functools.partial(_run, future, self._context, function))
        return future


_Job: TypeAlias = Callable[[], None]


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # the stream that it refers to may be dropped now


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
