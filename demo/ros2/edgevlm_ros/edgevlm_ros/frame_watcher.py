"""The class `FrameWatcher`: what the node does, without ROS."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from edgevlm import VLM, ClosedError, DeadlineError, FrameSlot, Seen, Watch
from edgevlm.frames.ros_images import LazyMessage

RATE_SECONDS = 10.0
"""Rates are means over so many seconds."""


@dataclass(frozen=True)
class Status:
    """What a diagnostics message says."""

    level: Literal["ok", "warning", "error"]
    message: str
    values: dict[str, float | str]
    """Ages in seconds, rates in 1/s, and counts since the beginning."""


class _Question(NamedTuple):
    """The question that is asked now, with its own slot and watch."""

    text: str
    slot: FrameSlot
    watch: Watch


class _Image(NamedTuple):
    """The newest image."""

    message: Any
    stamp: float | None
    arrived: float
    """Of `time.monotonic`, less the age that it had."""


class FrameWatcher:
    """Asks a question about the newest of the images that are put in, in a thread of its own.

    Args:
        vlm: the model.
        question: the text after each image.
        options: arguments of `VLM.watch`, such as ``choices`` and ``max_age``.
        on_answer: called in the thread with each answer, of types that JSON has.
        on_status: called in the thread when an error begins or ends.
        name: of the images, for messages.

    Raises:
        InputError: the question or an option is wrong.
    """

    def __init__(
        self,
        vlm: VLM,
        question: str,
        options: Mapping[str, Any],
        *,
        on_answer: Callable[[dict[str, Any]], None],
        on_status: Callable[[Status], None],
        name: str = "the image topic",
    ) -> None:
        self._vlm = vlm
        self._options = options
        self._on_answer = on_answer
        self._on_status = on_status
        self._name = name
        self._lock = threading.Lock()
        self._closed = False
        self._image: _Image | None = None
        self._stamp_age = 0.0
        """Age of the newest image when it arrived, by its stamp; below 0 if the clocks differ."""
        self._repeated = 0
        """Messages that had the stamp of the one before."""
        self._error: Exception | None = None
        """What went wrong since the last answer."""
        self._answered: Seen | None = None
        self._earlier: Counter[str] = Counter()
        """Counts of the questions before this one."""
        self._too_old = 0
        """Images and answers that had been too old at the last status."""
        self._image_times: deque[float] = deque()
        self._answer_times: deque[float] = deque()
        self._question = self._open(question)
        self._thread = threading.Thread(target=self._run, name="edgevlm-watcher", daemon=True)
        self._thread.start()

    def put(self, message: Any, stamp: float = 0.0, now: float = 0.0) -> None:
        """Set the newest image. Return at once.

        An image with the stamp of the one before is not new, and is left out: so a driver that repeats its
        last image counts as a camera that stalls.

        Args:
            message: a ``sensor_msgs/Image`` or ``CompressedImage``.
            stamp: of its header, in seconds; 0 if it has none.
            now: time of the node's clock, in seconds.
        """
        with self._lock:
            if self._closed:
                return
            if stamp and self._image is not None and stamp == self._image.stamp:
                self._repeated += 1
                return
            self._stamp_age = now - stamp if stamp else 0.0
            arrived = time.monotonic() - max(0.0, self._stamp_age)
            self._image = _Image(message, stamp or None, arrived)
            _add_time(self._image_times)
            self._put_into(self._question.slot)

    def ask(self, question: str) -> None:
        """Ask another question from now on; the answer that the model works on is dropped.

        Raises:
            InputError: the question is empty; the one before is still asked.
        """
        with self._lock:
            if self._closed or question == self._question.text:
                return
            new, old = self._open(question), self._question
            self._question = new
            self._earlier.update(_counts(old.watch))
            if self._image is not None:
                self._put_into(new.slot)
        old.watch.close()

    def status(self) -> Status:
        """Return what diagnostics say; warn of images that have been too old since the last call."""
        with self._lock:
            counts = self._earlier + Counter(_counts(self._question.watch))
            late, self._too_old = counts["too_old"] - self._too_old, counts["too_old"]
            values: dict[str, float | str] = {
                "question": self._question.text,
                "images_per_second": round(_rate(self._image_times), 2),
                "answers_per_second": round(_rate(self._answer_times), 2),
                "stamp_age": round(self._stamp_age, 4),
                "repeated": self._repeated,
                **{name: counts[name] for name in _counts(self._question.watch)},
            }
            if self._answered is not None:
                values["age"] = round(self._answered.age, 4)
            return Status(*self._level(late), values)

    def close(self) -> None:
        """Stop the answer that the model works on, and the thread. May be called again."""
        with self._lock:
            self._closed = True
        self._question.watch.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _open(self, question: str) -> _Question:
        slot = FrameSlot(self._name)
        return _Question(question, slot, self._vlm.watch(slot, question, **self._options))

    def _put_into(self, slot: FrameSlot) -> None:
        """Put the newest image into a slot. Hold the lock."""
        assert self._image is not None
        message, stamp, arrived = self._image
        slot.put(LazyMessage(message), time=stamp, age=time.monotonic() - arrived)

    def _level(self, late: int) -> tuple[Literal["ok", "warning", "error"], str]:
        if isinstance(self._error, DeadlineError):
            return "warning", str(self._error)
        if self._error is not None:
            return "error", str(self._error) + self._clock_hint()
        if late:
            return "warning", (
                f"{late} images or answers were older than max_age{self._clock_hint()}"
            )
        if self._answered is None:
            return "warning", "no answer yet" if self._image else "no image yet"
        return "ok", "answering"

    def _clock_hint(self) -> str:
        max_age = self._options.get("max_age")
        if max_age is None or self._stamp_age <= max_age:
            return ""
        return (
            f"; by its stamp the newest image was {self._stamp_age:.2f} s old when it came: compare the "
            f"clocks of camera and node"
        )

    def _run(self) -> None:
        """Answer until this object or the model is closed."""
        while not self._closed:
            question = self._question
            try:
                seen = next(question.watch)
            except StopIteration:  # closed, for the next question or for good
                continue
            except Exception as error:  # the next image may be fine
                if question is self._question and not self._closed:
                    self._fail(error)
                if isinstance(error, ClosedError):
                    return
            else:
                if question is self._question and not self._closed:
                    self._tell(question.text, seen)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            begins = type(error) is not type(self._error)
            self._error = error
        if begins:
            self._on_status(self.status())

    def _tell(self, question: str, seen: Seen) -> None:
        with self._lock:
            ends = self._error is not None or self._answered is None
            self._error = None
            self._answered = seen
            _add_time(self._answer_times)
        line = seen.to_dict()
        del line["source"]
        self._on_answer({"question": question, **line, "seconds": round(seen.seconds, 4)})
        if ends:
            self._on_status(self.status())


def _counts(watch: Watch) -> dict[str, int]:
    counts = dataclasses.asdict(watch.stats)
    del counts["reopened"]  # of topics, always 0
    return counts


def _add_time(times: deque[float]) -> None:
    times.append(time.monotonic())
    while times[0] < times[-1] - RATE_SECONDS:
        times.popleft()


def _rate(times: deque[float]) -> float:
    """Return the events for each second; from the first one on, if it was less long ago."""
    now = time.monotonic()
    recent = [one for one in times if one > now - RATE_SECONDS]
    return len(recent) / max(1.0, now - recent[0]) if recent else 0.0
