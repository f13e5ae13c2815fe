"""The thread that runs the model, and its queue: first come, first served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from edgevlm.errors import CancelledError, EdgeVLMError
from edgevlm.inputs.images import load_image
from edgevlm.options import GenerationOptions
from edgevlm.results import Chunk
from edgevlm.server.errors import RequestError, to_request_error
from edgevlm.server.metrics import Metrics
from edgevlm.vlm import VLM

_logger = logging.getLogger(__name__)

MAX_REMEMBERED_TIMES = 32
"""Limit of remembered answer times, which estimate the time of the next answer."""


class _Job:
    """A request in the queue. It is created and read in the event loop, and filled by the worker."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], options: GenerationOptions) -> None:
        self.messages = messages
        self.options = options
        self.abandoned = threading.Event()
        self._cancel: Callable[[], object] = self.abandoned.set
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

    def put(self, event: Chunk | Exception) -> None:
        """Add a chunk or an error; called by the worker's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop may be closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def start(self, cancel: Callable[[], object]) -> None:
        """Tell how the answer that begins is cancelled; called by the worker's thread."""
        self._cancel = cancel
        if self.abandoned.is_set():
            cancel()

    def abandon(self) -> None:
        """Stop the work on this request; called in the event loop."""
        self.abandoned.set()
        self._cancel()

    async def get(self) -> Chunk:
        """Wait for the next chunk.

        Raises:
            RequestError: the request cannot be answered.
        """
        event = await self._events.get()
        if isinstance(event, EdgeVLMError):
            raise to_request_error(event) from event
        if isinstance(event, Exception):
            raise event
        return event


class Worker:
    """Answers requests one after the other in a thread.

    Args:
        vlm: the model; nothing else uses it.
        max_waiting: the limit of requests that wait for the one that is being answered.
        metrics: the metrics of the server.
    """

    def __init__(self, vlm: VLM, max_waiting: int, metrics: Metrics) -> None:
        self._vlm = vlm
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unfinished = 0
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=MAX_REMEMBERED_TIMES)
        self._progress: float | None = None
        """Time of the last progress of the request that is being answered; None if there is none."""
        self._thread = threading.Thread(target=self._work, name="edgevlm-worker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests that wait for the one that is being answered."""
        return max(0, self._unfinished - 1)

    @property
    def stalled_seconds(self) -> float:
        """Seconds without progress of the request that is being answered; 0 if there is none."""
        progress = self._progress
        return 0.0 if progress is None else time.monotonic() - progress

    async def answer(
        self, messages: Sequence[Mapping[str, Any]], options: GenerationOptions
    ) -> AsyncGenerator[Chunk, None]:
        """Yield an answer in chunks. Closing the generator stops the work on the request.

        Args:
            messages: as for `VLM.stream_generate`.
            options: as for `VLM.stream_generate`.

        Raises:
            RequestError: the queue is full, or the request cannot be answered.
        """
        with self._lock:
            if self._unfinished > self._max_waiting:
                raise RequestError(
                    503,
                    f"{self._unfinished} requests are being answered or wait, which is the limit; "
                    f"try again later",
                    code="queue_full",
                    headers={"Retry-After": str(self._seconds_until_room())},
                )
            self._unfinished += 1
        job = _Job(messages, options)
        self._jobs.put(job)
        try:
            while True:
                chunk = await job.get()
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            job.abandon()

    def close(self) -> None:
        """Stop after the requests in the queue, and wait for this."""
        self._jobs.put(None)
        self._thread.join()

    def _seconds_until_room(self) -> int:
        """Estimate the time of one answer, at least one second."""
        return max(1, math.ceil(fmean(self._seconds))) if self._seconds else 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._progress = start = time.monotonic()
            try:
                self._answer(job)
            except CancelledError:
                self._metrics.count_abandoned()
            except Exception as error:
                if not isinstance(error, EdgeVLMError):
                    _logger.exception("a request failed")
                job.put(error)
                self._metrics.count_failed(error)
            finally:
                self._progress = None
                with self._lock:
                    self._unfinished -= 1
                    self._seconds.append(time.monotonic() - start)

    def _answer(self, job: _Job) -> None:
        if job.abandoned.is_set():
            self._metrics.count_abandoned()
            return
        messages = []
        for message in job.messages:
            parts = []
            for part in message["content"]:
                self._progress = time.monotonic()
                if job.abandoned.is_set():
                    self._metrics.count_abandoned()
                    return
                parts.append(_decode_image(part))
            messages.append({**message, "content": parts})
        with contextlib.closing(self._vlm.stream_generate(messages, **job.options)) as chunks:
            job.start(chunks.cancel)
            for chunk in chunks:
                self._progress = time.monotonic()
                job.put(chunk)
                if chunk.stats is not None:
                    self._metrics.count_answered(chunk.stats)


def _decode_image(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a content part with the pixels of its image instead of the file."""
    return {**part, "image": load_image(part["image"])} if part["type"] == "image" else part
