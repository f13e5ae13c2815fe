"""The class `LatestFrame`: one question about the newest frame of a camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from edgevlm.errors import ClosedError
from edgevlm.inputs.images import ImageSource
from edgevlm.inputs.prompt import system_messages, user_message
from edgevlm.options import Generation, GenerationOptions
from edgevlm.results import Answer, collect
from edgevlm.runtimes.forks import check_not_forked

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from edgevlm.engine.model_lock import ChunkStream
    from edgevlm.results import Chunk
    from edgevlm.vlm import VLM


@dataclass(frozen=True)
class FrameResult:
    """The answer about one frame; returned by `LatestFrame.get`."""

    frame: ImageSource
    """The object that was passed to `LatestFrame.put`."""
    timestamp: float
    """When it was put, in seconds of `time.monotonic`."""
    answer: Answer
    dropped_frames: int
    """Frames that were put after the frame of the previous result and before this one."""

    @property
    def age(self) -> float:
        """Seconds from the call of `LatestFrame.put` until now."""
        return time.monotonic() - self.timestamp


@dataclass(frozen=True)
class _Frame:
    frame: ImageSource
    timestamp: float
    index: int


class LatestFrame(Iterator[FrameResult]):
    """Asks one question about the newest frame, again and again.

    A thread of its own answers about one frame at a time. A frame that is put meanwhile waits, and replaces
    the frame that waited before. A new result replaces a result that was not read. So there is never a
    backlog, and a result is as recent as the speed of the model allows:

        with VLM.from_pretrained() as vlm, LatestFrame(vlm, "Is the way free?", max_tokens=8) as latest:
            while True:
                latest.put(camera.read())
                result = latest.get(timeout=0.1)
                if result is not None:
                    print(result.answer.text, result.age)

    All methods may be called from any thread: one thread can put frames while another thread reads results,
    with `get` or with a ``for`` loop. Use it as a context manager, or call `close`, to end its thread.

    Args:
        vlm: the model. Other requests may use it as well; they take turns with the frames.
        question: the text after each frame.
        system: instructions before the question.
        options: fields of `Generation`. ``cache_images`` is False unless it is given, since the frames of a
            camera do not come again.

    Raises:
        InputError: the question is empty, or an option has the wrong type or is outside its range.
    """

    def __init__(
        self,
        vlm: VLM,
        question: str,
        *,
        system: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> None:
        options.setdefault("cache_images", False)
        _ = Generation(**options), system_messages(system), user_message(question, 1)  # check them
        self._vlm = vlm
        self._question = question
        self._system = system
        self._options = options
        self._changed = threading.Condition()
        self._waiting: _Frame | None = None
        self._result: tuple[_Frame, Answer | Exception] | None = None
        self._text = ""
        self._stream: ChunkStream | None = None
        """The answer that the model works on."""
        self._count = 0
        """Frames that were put."""
        self._read = -1
        """Index of the frame whose result was read last."""
        self._closed = False
        threading.Thread(target=self._run, name="edgevlm-latest-frame", daemon=True).start()

    def put(self, frame: ImageSource) -> None:
        """Set the newest frame. Return at once.

        Args:
            frame: an image, as in `VLM.ask`. Another thread reads it later: do not change an array after this
                call.

        Raises:
            ClosedError: this object is closed, or this process was forked from the one that loaded the model.
        """
        check_not_forked()
        with self._changed:
            self._check_open()
            self._waiting = _Frame(frame, time.monotonic(), self._count)
            self._count += 1
            self._changed.notify_all()

    @overload
    def get(self, timeout: None = None) -> FrameResult: ...

    @overload
    def get(self, timeout: float) -> FrameResult | None: ...

    def get(self, timeout: float | None = None) -> FrameResult | None:
        """Wait for the next result and return it. Each result is returned once.

        Args:
            timeout: seconds to wait; 0 does not wait; None waits without a limit.

        Returns:
            The newest result, or None if there is no new one in time.

        Raises:
            EdgeVLMError: the newest frame could not be answered, as `VLM.ask` raises it: an ImageError for a
                frame that cannot be read, a ClosedError if the model is closed. The next frame is answered
                again.
            ClosedError: this object is closed, or this process was forked from the one that loaded the model.
        """
        check_not_forked()
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._closed or self._result is not None, timeout
            ):
                return None
            self._check_open()
            assert self._result is not None
            (frame, result), self._result = self._result, None
            dropped = frame.index - self._read - 1
            self._read = frame.index
        if isinstance(result, Exception):
            raise result
        return FrameResult(frame.frame, frame.timestamp, result, dropped)

    def __next__(self) -> FrameResult:
        """Return the next result as `get` does; end after `close`."""
        try:
            return self.get()
        except ClosedError:
            if self._closed:
                raise StopIteration from None
            raise

    @property
    def text(self) -> str:
        """The answer so far about the frame that the model works on; empty if there is none."""
        return self._text

    def close(self) -> None:
        """Stop, also the answer that the model works on, and forget frames and results. Return at once.

        Readers get a ClosedError, and ``for`` loops end. May be called again, and from any thread. The model
        stays open.
        """
        with self._changed:
            self._closed = True
            self._waiting = self._result = None
            self._changed.notify_all()
            if self._stream is not None:
                self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this LatestFrame is closed; create another one")

    def _run(self) -> None:
        """Answer the newest frame until this object is closed."""
        while (frame := self._take()) is not None:
            result: Answer | Exception
            try:
                result = self._answer(frame)
            except Exception as error:  # for the reader; the next frame may be fine
                result = error
            with self._changed:
                self._text = ""
                if not self._closed:
                    self._result = frame, result
                    self._changed.notify_all()

    def _take(self) -> _Frame | None:
        """Wait for a frame; None after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting is not None)
            frame, self._waiting = self._waiting, None
            return frame

    def _answer(self, frame: _Frame) -> Answer:
        stream = self._vlm.stream(
            [frame.frame], self._question, system=self._system, **self._options
        )
        with self._changed:
            self._stream = stream
            if self._closed:
                stream.cancel()
        with closing(stream):
            return collect(self._update_text(stream))

    def _update_text(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self._text += chunk.text
            yield chunk
