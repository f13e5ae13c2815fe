"""The thread that runs the model, and its queue: first come, first served.

Requests that wait at the same time are decoded together, if their settings allow it. Others are answered
alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import CancelledError, DeadlineError, EdgeVLMError
from edgevlm.inputs.images import load_image
from edgevlm.options import MIN_WITHIN, Generation, GenerationOptions
from edgevlm.questions import Conversation, WaitingConversations
from edgevlm.results import Chunk
from edgevlm.server.errors import RequestError, to_request_error
from edgevlm.server.metrics import Metrics
from edgevlm.vlm import VLM

_logger = logging.getLogger(__name__)

MAX_REMEMBERED_TIMES = 32
"""Limit of remembered answer times, which estimate the time of the next answer."""

MAX_TOGETHER = 32
"""Most requests that are decoded together before others that use the model have their turn."""


class _Job:
    """A request in the queue. It is created and read in the event loop, and filled by the worker."""

    def __init__(
        self, messages: Sequence[Mapping[str, Any]], options: GenerationOptions, arrival: float
    ) -> None:
        self.messages = messages
        self._options = options
        self._arrival = arrival
        self.abandoned = threading.Event()
        self._cancel: Callable[[], object] = self.abandoned.set
        self.started = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Chunk | Exception] = asyncio.Queue()

    @functools.cached_property
    def greedy(self) -> bool:
        """True if the answer can be decoded together with others."""
        try:
            generation = Generation(**self._options)
        except EdgeVLMError:
            return False  # the client gets the error when its turn comes
        return generation.draftable and generation.within is None

    def conversation(self, cancel: CancelSignal) -> Conversation:
        """Return the request for `VLM.stream_many`."""
        return Conversation(self.load_messages, Generation(**self._options), cancel)

    def load_messages(self) -> list[Mapping[str, Any]]:
        """Return the messages with the pixels of their images instead of the files.

        Raises:
            CancelledError: the client has left.
        """
        messages: list[Mapping[str, Any]] = []
        for message in self.messages:
            parts = []
            for part in message["content"]:
                if self.abandoned.is_set():
                    raise CancelledError("the client disconnected")
                parts.append(_decode_image(part))
            messages.append({**message, "content": parts})
        return messages

    @property
    def options(self) -> GenerationOptions:
        """The options for `VLM.stream_generate`, with the time that is left now.

        Raises:
            DeadlineError: no time is left.
        """
        within = self._options.get("within")
        if within is None:
            return self._options
        left = within - (time.monotonic() - self._arrival)
        if left < MIN_WITHIN:
            raise DeadlineError(
                f"the {within:g} s of this request (timeout) were over before its turn came; allow more"
            )
        return {**self._options, "within": left}

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
    """Answers requests in a thread: those that wait at the same time together, if their settings allow it.

    Args:
        vlm: the model; nothing else uses it.
        max_waiting: the limit of requests that wait for the one that is being answered.
        metrics: the metrics of the server.
    """

    def __init__(self, vlm: VLM, max_waiting: int, metrics: Metrics) -> None:
        self._vlm = vlm
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._jobs: deque[_Job | None] = deque()
        self._unfinished = self._answering = 0
        self._lock = threading.Condition()
        self._seconds: deque[float] = deque(maxlen=MAX_REMEMBERED_TIMES)
        self._progress: float | None = None
        """Time of the last progress of the requests that are being answered; None if there is none."""
        self._thread = threading.Thread(target=self._work, name="edgevlm-worker", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests that wait for those that are being answered."""
        return max(0, self._unfinished - max(1, self._answering))

    @property
    def stalled_seconds(self) -> float:
        """Seconds without progress of the requests that are being answered; 0 if there is none."""
        progress = self._progress
        return 0.0 if progress is None else time.monotonic() - progress

    async def answer(
        self,
        messages: Sequence[Mapping[str, Any]],
        options: GenerationOptions,
        arrival: float | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Yield an answer in chunks. Closing the generator stops the work on the request.

        Args:
            messages: as for `VLM.stream_generate`.
            options: as for `VLM.stream_generate`; ``within`` counts from `arrival`.
            arrival: time of ``time.monotonic`` at which the request came; None: now.

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
        job = _Job(messages, options, time.monotonic() if arrival is None else arrival)
        self._put(job)
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
        self._put(None)
        self._thread.join()

    def _put(self, job: _Job | None) -> None:
        with self._lock:
            self._jobs.append(job)
            self._lock.notify()

    def _seconds_until_room(self) -> int:
        """Estimate the time of one answer, at least one second."""
        return max(1, math.ceil(fmean(self._seconds))) if self._seconds else 1

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._jobs)
                job = self._jobs.popleft()
                following = self._jobs[0] if self._jobs else None
            if job is None:
                return
            self._progress = job.started = time.monotonic()
            if following and following.greedy and job.greedy:
                self._answer_together(job)
            else:
                self._answer(job)
            self._progress, self._answering = None, 0

    def _answer(self, job: _Job) -> None:
        """Answer a request alone."""
        self._answering = 1
        try:
            messages = job.load_messages()
            with contextlib.closing(self._vlm.stream_generate(messages, **job.options)) as chunks:
                job.start(chunks.cancel)
                for chunk in chunks:
                    self._tell(job, chunk)
        except Exception as error:
            self._end(job, error)
        else:
            self._end(job)

    def _answer_together(self, first: _Job) -> None:
        """Answer a request together with those that wait, and with those that come meanwhile."""
        jobs: dict[int, _Job] = {}
        waiting: WaitingConversations = deque()
        numbers = itertools.count()

        def add(job: _Job) -> None:
            cancel = CancelSignal()
            job.start(cancel.cancel)
            number = next(numbers)
            jobs[number] = job
            waiting.append((number, job.conversation(cancel)))

        add(first)
        left = MAX_TOGETHER - 1
        try:
            with contextlib.closing(self._vlm.stream_many(waiting)) as events:
                while left and (job := self._take_greedy()):
                    add(job)
                    left -= 1
                for number, event in events:
                    if isinstance(event, Exception):
                        self._end(jobs.pop(number), event)
                    else:
                        self._tell(jobs[number], event)
                        if event.finish_reason is not None:
                            self._end(jobs.pop(number))
                    while left and (job := self._take_greedy()):
                        add(job)
                        left -= 1
                    self._answering = len(jobs) - len(waiting)
        except Exception as error:
            unbegun = [jobs.pop(number) for number, _ in waiting] if self._answering else []
            for job in jobs.values():
                self._end(job, error)
            with self._lock:
                self._jobs.extendleft(reversed(unbegun))

    def _take_greedy(self) -> _Job | None:
        """Take the first request from the queue if it can be decoded together with others."""
        with self._lock:
            job = self._jobs[0] if self._jobs else None
            return self._jobs.popleft() if job and job.greedy else None

    def _tell(self, job: _Job, chunk: Chunk) -> None:
        self._progress = time.monotonic()
        job.put(chunk)
        if chunk.stats is not None:
            self._metrics.count_answered(chunk.stats)

    def _end(self, job: _Job, error: Exception | None = None) -> None:
        """Count a request that has ended, and tell its client the error."""
        if isinstance(error, CancelledError) and not isinstance(error, DeadlineError):
            self._metrics.count_abandoned()
        elif error is not None:
            if not isinstance(error, EdgeVLMError):
                _logger.error("a request failed", exc_info=error)
            self._metrics.count_failed(error)
            job.put(error)
        with self._lock:
            self._unfinished -= 1
            self._seconds.append(time.monotonic() - job.started)


def _decode_image(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a content part with the pixels of its image instead of the file."""
    return {**part, "image": load_image(part["image"])} if part["type"] == "image" else part
