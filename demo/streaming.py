"""An answer while it is being made: in a thread of its own, which any other can stop.

A stream holds its model until it ends (`edgevlm.engine.model_lock`), and Gradio may leave a stream unread. So
between the two stands a queue: the model never waits for a browser.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from edgevlm.demo.model_pool import Models
from edgevlm.options import GenerationOptions
from edgevlm.results import Chunk, Stats, TokenLogprob


@dataclass(frozen=True, eq=False)  # Gradio tells by the hash whether a state changed: by identity
class Record:
    """An answer and what it was an answer to."""

    label: str | None
    """Of the model, as `Models` offers it."""
    messages: Sequence[Mapping[str, Any]]
    options: GenerationOptions
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    stats: Stats | None = None
    """None as long as it is not finished, and for ever if it was stopped."""


class AnswerStream:
    """Chunks of one answer, read once.

    Args:
        label: of the model.
        messages, options: as `VLM.stream_generate` takes them.
    """

    def __init__(
        self,
        models: Models,
        label: str | None,
        messages: Sequence[Mapping[str, Any]],
        options: GenerationOptions,
    ) -> None:
        self._models = models
        self._label = label
        self._messages = messages
        self._options = options
        self._queue: queue.SimpleQueue[Chunk | Exception | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self.left = False
        """Nobody wants what was answered so far."""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __iter__(self) -> Generator[Chunk, None, None]:
        """Until the answer ends or is stopped.

        Raises:
            EdgeVLMError: whatever the model says against the request.
        """
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                if self._stopped.is_set():
                    return
                yield item
        finally:
            self.stop()

    def stop(self) -> None:
        """Who reads is told at once; the model ends within a token, or after what of the prompt it is at."""
        self._stopped.set()
        self._queue.put(None)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the model is free of this answer; whether it is."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            with (
                self._models.lease(self._label) as loaded,
                closing(loaded.vlm.stream_generate(self._messages, **self._options)) as chunks,
            ):
                while not self._stopped.is_set() and (chunk := next(chunks, None)) is not None:
                    self._queue.put(chunk)
        except Exception as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)


class Running:
    """The answers that browsers wait for, at most one each."""

    def __init__(self) -> None:
        self._streams: dict[str, AnswerStream] = {}
        self._left: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, session: str, stream: AnswerStream) -> None:
        """Another answer of the same page is stopped, and nobody wants it any more."""
        with self._lock:
            earlier = self._streams.get(session)
            self._streams[session] = stream
            self._left.discard(session)
        if earlier is not None:
            earlier.left = True
            earlier.stop()

    def stop(self, session: str) -> None:
        """Does nothing if none is being made."""
        with self._lock:
            stream = self._streams.pop(session, None)
            self._left.discard(session)  # nor is anything kept of a browser that is gone
        if stream is not None:
            stream.stop()

    def leave(self, session: str) -> None:
        """As `stop`; the browser shows something else by then, and must not get what was answered."""
        with self._lock:
            stream = self._streams.pop(session, None)
            self._left.add(session)
        if stream is not None:
            stream.left = True
            stream.stop()

    def was_left(self, session: str) -> bool:
        """Whether the browser left its last answer."""
        with self._lock:
            return session in self._left
