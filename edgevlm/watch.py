"""Ask one question about the newest frame of cameras and other sources, again and again."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import CancelledError, DeadlineError, StalledError
from edgevlm.frames.reader import Frame, FrameReader
from edgevlm.frames.source import FrameSource
from edgevlm.results import Answer, Choice
from edgevlm.runtimes.forks import check_not_forked

if TYPE_CHECKING:
    from typing_extensions import Self

THUMBNAIL = 32
"""Side of the grey thumbnails by which frames are compared, in pixels."""


class FrameQuestion(Protocol):
    """A question about one frame."""

    text: str
    """The answer so far about the frame that the model works on; empty between frames and for choices."""

    def answer(self, image: NDArray[np.uint8], within: float | None) -> tuple[Any, Answer | Choice]:
        """Return the value that the user wants, and the whole answer.

        Args:
            image: RGB uint8 ``[height, width, 3]``.
            within: seconds; None for no limit.
        """
        ...

    def cancel(self) -> None:
        """Stop the answer that another thread waits for, if there is one."""
        ...


@dataclass(frozen=True)
class Seen:
    """What the model saw on one frame; returned by `Watch`."""

    value: Any
    """The text of the answer; with ``schema`` the value of this type; with ``choices`` the label."""
    answer: Answer | Choice
    """The whole answer."""
    frame: NDArray[np.uint8]
    """The frame, RGB uint8 ``[height, width, 3]``."""
    frame_time: float
    """When it was taken, in seconds: of a video or a data set since its beginning, of a recording the Unix
    time in it, else the Unix time of its arrival."""
    arrived: float
    """When it arrived, in seconds of `time.monotonic`."""
    source: int
    """Index of its source."""
    dropped: int
    """Frames of this source that came after the frame of the value before and before this one."""
    seconds: float
    """Time that the model took."""

    @property
    def age(self) -> float:
        """Seconds from the arrival of the frame until now."""
        return time.monotonic() - self.arrived

    def to_dict(self) -> dict[str, Any]:
        """Return what is worth a line of a log: value, frame_time, age, source, dropped.

        With ``choices`` also their probabilities, otherwise the finish_reason. These are types of JSON if the
        value is: a text, a label, or of a schema that is a dict.
        """
        line: dict[str, Any] = {
            "value": self.value,
            "frame_time": self.frame_time,
            "age": round(self.age, 4),
            "source": self.source,
            "dropped": self.dropped,
        }
        if isinstance(self.answer, Choice):
            return line | {"probabilities": dict(self.answer.probabilities)}
        return line | {"finish_reason": self.answer.finish_reason}


@dataclass
class WatchStats:
    """Counts since the beginning of a `Watch`; see `Watch.stats`."""

    frames: int = 0
    """Frames that were read."""
    answered: int = 0
    """Values that were returned."""
    dropped: int = 0
    """Frames that a newer one replaced."""
    unchanged: int = 0
    """Frames that were skipped since they were as the one before (``min_change``)."""
    too_old: int = 0
    """Frames and answers that were older than ``max_age``."""
    stalls: int = 0
    """Times that a source gave no frame for ``max_age``."""
    reopened: int = 0
    """Times that a lost source was opened again."""


@dataclass
class _Turn:
    """What is known of one source."""

    reader: FrameReader
    question: FrameQuestion
    due: float = 0.0
    """Time before which no frame is answered (``every``)."""
    told: float = 0.0
    """Time at which its stall was told."""
    thumbnail: NDArray[np.int16] | None = None
    """Of the frame that was answered last."""
    skipped: int = 0
    """Frames that were taken and not answered since the last value."""


class Watch(Iterator[Seen]):
    """Values about the newest frames; created by `VLM.watch`.

    Each step waits for a frame that is newer than the one before, and asks the model about it in the caller's
    thread. Nothing queues up: frames that come meanwhile replace each other. Sources take turns.

    After an error the next step goes on with a newer frame. `close` may be called from any thread; it ends
    the loop, and the answer that the model works on.

    Args:
        sources: the sources, each with what asks the model about its frames.
        max_age: as of `VLM.watch`, and so are the others.
        within: seconds for an answer.
        every: seconds between two answers about one source.
        min_change: smallest change of a frame that is answered.
        every_frame: drop no frames of files.
    """

    def __init__(
        self,
        sources: Sequence[tuple[FrameSource, FrameQuestion]],
        *,
        max_age: float | None,
        within: float | None,
        every: float,
        min_change: float,
        every_frame: bool,
    ) -> None:
        self._max_age = max_age
        self._within = within
        self._every = every
        self._min_change = min_change
        self._stats = WatchStats()
        self._changed = threading.Condition()
        self._closed = False
        self._next = 0
        """Index of the source whose turn it is."""
        self._stepping = threading.Lock()
        self._turns = [
            _Turn(FrameReader(source, self._changed, every_frame=every_frame), question)
            for source, question in sources
        ]

    @property
    def stats(self) -> WatchStats:
        """Counts until now."""
        readers = [turn.reader for turn in self._turns]
        return dataclasses.replace(
            self._stats,
            frames=sum(reader.frames for reader in readers),
            reopened=sum(reader.reopened for reader in readers),
        )

    @property
    def text(self) -> str:
        """The answer so far about the frame that the model works on; empty between frames and for choices."""
        return "".join(turn.question.text for turn in self._turns)  # of one at most

    def __next__(self) -> Seen:
        """Wait for a frame, and return the value about it.

        Raises:
            StopIteration: all sources have ended, or this object is closed.
            StalledError: a source gave no frame for ``max_age`` seconds.
            DeadlineError: the time for the answer was over before its first token, or the frame was older
                than ``max_age`` when the answer came.
            EdgeVLMError: the frame or the source cannot be read, or as `VLM.ask`.
        """
        check_not_forked()
        with self._stepping:
            while (taken := self._take()) is not None:
                index, frame = taken
                if (seen := self._answer(index, frame)) is not None:
                    return seen
        raise StopIteration

    def _answer(self, index: int, frame: Frame) -> Seen | None:
        """Return the value about a frame; None if the frame is not answered."""
        turn = self._turns[index]
        dropped = frame.dropped + turn.skipped
        turn.skipped = dropped + 1
        self._stats.dropped += frame.dropped
        if self._max_age is not None and frame.age > self._max_age:
            self._stats.too_old += 1
            return None
        if not self._changes(turn, frame):
            self._stats.unchanged += 1
            return None
        begin = time.monotonic()
        turn.due = begin + self._every
        limits = [] if self._within is None else [self._within]
        if self._max_age is not None:
            limits.append(max(1e-3, self._max_age - frame.age))
        try:
            value, answer = turn.question.answer(frame.image, min(limits, default=None))
        except CancelledError:
            if self._closed:
                return None
            raise
        seconds = time.monotonic() - begin
        if self._closed:
            return None
        if self._max_age is not None and frame.age > self._max_age:
            self._stats.too_old += 1
            raise DeadlineError(
                f"the answer came {frame.age:.3f} s after its frame, and max_age is {self._max_age:g} s; it "
                f"is dropped"
            )
        turn.skipped = 0
        self._stats.answered += 1
        return Seen(value, answer, frame.image, frame.time, frame.arrived, index, dropped, seconds)

    def _take(self) -> tuple[int, Frame] | None:
        """Wait for the next frame, and return it with the index of its source; None at the end."""
        while True:
            with self._changed:
                index = self._find_ready()
                if index is None:
                    if self._ended():
                        return None
                    self._changed.wait(self._patience())
                    self._check_stalled()
                    continue
            self._next = index + 1
            frame = self._turns[index].reader.take()
            if frame is not None:
                return index, frame

    def _find_ready(self) -> int | None:
        """Return the source whose turn it is, of those that have a frame; None if none has."""
        now, count = time.monotonic(), len(self._turns)
        for offset in range(count):
            index = (self._next + offset) % count
            turn = self._turns[index]
            if turn.due <= now:
                turn.reader.request()
                if turn.reader.ready:
                    return index
        return None

    def _ended(self) -> bool:
        states = {turn.reader.state for turn in self._turns if not turn.reader.ready}
        waiting = any(turn.reader.ready for turn in self._turns)
        return self._closed or (not waiting and states <= {"ended", "closed"})

    def _patience(self) -> float | None:
        """Return the seconds until a source is due or has stalled; None if there is no such time."""
        now = time.monotonic()
        times = [turn.due for turn in self._turns if turn.due > now]
        if self._max_age is not None:
            times += [
                self._last_sign(turn) + self._max_age
                for turn in self._turns
                if turn.due <= now and turn.reader.state != "ended"
            ]
        return max(0.0, min(times) - now) if times else None

    def _last_sign(self, turn: _Turn) -> float:
        return max(turn.reader.last_sign, turn.told)

    def _check_stalled(self) -> None:
        if self._max_age is None or self._closed:
            return
        now = time.monotonic()
        for index, turn in enumerate(self._turns):
            reader = turn.reader
            if reader.ready or reader.state == "ended" or turn.due > now:
                continue
            if now - self._last_sign(turn) >= self._max_age:
                turn.told = now
                self._stats.stalls += 1
                reason = f": {reader.error}" if reader.error is not None else ""
                raise StalledError(
                    f"source {index}, {reader.source.name}, has given no frame for "
                    f"{now - reader.last_sign:.2f} s, and max_age is {self._max_age:g} s{reason}"
                )

    def _changes(self, turn: _Turn, frame: Frame) -> bool:
        """Return True if a frame differs enough from the one that was answered last."""
        if not self._min_change:
            return True
        grey = Image.fromarray(frame.image).convert("L")
        small = grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX, reducing_gap=2.0)
        thumbnail = np.asarray(small, np.int16)
        last = turn.thumbnail
        if last is not None and np.abs(thumbnail - last).mean() / 255 < self._min_change:
            return False
        turn.thumbnail = thumbnail
        return True

    def close(self) -> None:
        """End the loop, stop the answer that the model works on, and free the sources. Return at once.

        A choice that the model computes is not stopped: it is short.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for turn in self._turns:
            turn.reader.close()
            turn.question.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
