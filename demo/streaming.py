"""Answers that are computed in threads of their own and can be stopped from any thread.

A stream holds its model until it ends (`edgevlm.engine.model_lock`), and Gradio may leave a stream unread. A
queue between the two lets the model go on, whatever the browser does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from edgevlm.boxes import Box, Point
from edgevlm.demo.model_pool import ModelPool
from edgevlm.errors import CancelledError
from edgevlm.options import GenerationOptions
from edgevlm.results import Chunk, Stats, TokenLogprob


@dataclass(frozen=True, eq=False)  # Gradio compares states by hash; this hash is the identity
class AnswerRecord:
    """An answer with its request."""

    label: str | None
    """Label of the model in the `ModelPool`."""
    messages: Sequence[Mapping[str, Any]]
    options: GenerationOptions
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    stats: Stats | None = None
    """None for an answer that is not finished or was stopped."""
    locations: tuple[Box | Point, ...] = ()
    """Boxes and points on the last image; none if the answer was stopped."""


class AnswerStream:
    """The chunks of one answer, read once.

    Args:
        label: label of the model.
        messages, options: as for `VLM.stream_generate`.
    """

    def __init__(
        self,
        models: ModelPool,
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
        self._cancel: Callable[[], object] = self._stopped.set
        self.abandoned = False
        """True if the page must not show the text so far."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __iter__(self) -> Generator[Chunk, None, None]:
        """Yield chunks until the answer ends or is stopped.

        Raises:
            EdgeVLMError: the model cannot be loaded or cannot answer.
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
        """Stop the answer, whatever the model computes. Readers return at once."""
        self._stopped.set()
        self._cancel()
        self._queue.put(None)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the model no longer works on this answer. Return False after `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with (
                self._models.acquire(self._label) as loaded,
                closing(loaded.vlm.stream_generate(self._messages, **self._options)) as chunks,
            ):
                self._cancel = chunks.cancel
                if self._stopped.is_set():
                    chunks.cancel()
                for chunk in chunks:
                    self._queue.put(chunk)
        except CancelledError:
            pass  # `stop`
        except Exception as error:
            self._queue.put(error)
        finally:
            self._queue.put(None)


class ActiveStreams:
    """The streams that pages are reading, at most one for each session. All methods are thread-safe."""

    def __init__(self) -> None:
        self._streams: dict[str, AnswerStream] = {}
        self._abandoned: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, session: str, stream: AnswerStream) -> None:
        """Register a stream. Abandon and stop an earlier stream of the same session."""
        with self._lock:
            earlier = self._streams.get(session)
            self._streams[session] = stream
            self._abandoned.discard(session)
        if earlier is not None:
            earlier.abandoned = True
            earlier.stop()

    def stop(self, session: str) -> None:
        """Stop the stream of a session; do nothing if there is none."""
        with self._lock:
            stream = self._streams.pop(session, None)
            self._abandoned.discard(session)  # nothing is kept of a page that was closed
        if stream is not None:
            stream.stop()

    def abandon(self, session: str) -> None:
        """Stop the stream of a session whose page shows something else by now and must not get its text."""
        with self._lock:
            stream = self._streams.pop(session, None)
            self._abandoned.add(session)
        if stream is not None:
            stream.abandoned = True
            stream.stop()

    def was_abandoned(self, session: str) -> bool:
        """Return True if the last stream of a session was abandoned."""
        with self._lock:
            return session in self._abandoned
