"""Read one source of frames in a thread of its own, and keep the newest frame."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import SourceError
from edgevlm.frames.slot import SlotSource
from edgevlm.frames.source import FrameSource, RawFrame
from edgevlm.inputs.images import load_image

log = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0
"""Seconds before a lost source is opened again. Each delay is twice the one before."""

ReaderState = Literal["opening", "reading", "lost", "ended", "closed"]
"""``lost``: the reader waits before it opens a live source again; ``ended``: there are no more frames."""


@dataclass(frozen=True)
class Frame:
    """A frame that was read."""

    image: NDArray[np.uint8]
    """RGB uint8 ``[height, width, 3]``."""
    time: float
    """Seconds on the clock of the source; for one without a clock Unix time at the arrival."""
    arrived: float
    """When it arrived, in seconds of `time.monotonic`."""
    dropped: int
    """Frames that were read after the frame that was taken before and before this one."""

    @property
    def age(self) -> float:
        """Seconds since the frame arrived."""
        return time.monotonic() - self.arrived


class FrameReader:
    """Reads a source, and keeps the newest frame.

    Frames of a camera, and those that a program puts in, come at their speed. Those of a file come at their
    times. Those of a pulled source come one at a time, after `request`.

    Args:
        source: the source.
        changed: protects the reader; is notified at each frame and each change of the state.
        every_frame: read a file as a pulled source, so that no frame is dropped.
    """

    def __init__(
        self, source: FrameSource, changed: threading.Condition, *, every_frame: bool = False
    ) -> None:
        self.source = source
        self.state: ReaderState = "opening"
        self.error: Exception | None = None
        """Why the source was lost; None after the next frame."""
        self.frames = 0
        """Frames that were read."""
        self.reopened = 0
        """How often the source was opened again."""
        self.last_sign = time.monotonic()
        """When the last frame arrived; of a pulled source, when the next one was requested."""
        self._pulled = source.pace == "pulled" or (every_frame and source.pace == "timed")
        self._requested = False
        self._changed = changed
        self._closed = threading.Event()
        self._newest: tuple[RawFrame, float, float] | None = None
        """The frame, its time, and when it arrived."""
        self._taken = 0
        """Frames that were read when the last one was taken."""
        threading.Thread(target=self._run, name=f"edgevlm-{source.name}", daemon=True).start()

    @property
    def ready(self) -> bool:
        """True if `take` returns a frame or raises an error."""
        return self._newest is not None or (self.state == "ended" and self.error is not None)

    def request(self) -> None:
        """Ask a pulled source for its next frame, unless this was done. Hold the condition."""
        if self._pulled and not self._requested and self._newest is None:
            self._requested = True
            self.last_sign = time.monotonic()
            self._changed.notify_all()

    def take(self) -> Frame | None:
        """Return the newest frame; None if it was taken already.

        Raises:
            EdgeVLMError: the frame cannot be read, or the source cannot, and is not opened again.
        """
        with self._changed:
            if self._newest is None:
                if self.state == "ended" and self.error is not None:
                    error, self.error = self.error, None
                    raise error
                return None
            (raw, at, arrived), self._newest = self._newest, None
            dropped = self.frames - self._taken - 1
            self._taken = self.frames
        return Frame(load_image(raw.image), at, arrived, dropped)

    def close(self) -> None:
        """Free the source as soon as its library returns; do not wait for it. May be called again."""
        self._closed.set()
        self._set("closed")
        if isinstance(self.source, SlotSource):
            self.source.close()

    def _run(self) -> None:
        delay = FIRST_DELAY
        while not self._closed.is_set():
            before = self.frames
            error = self._read()
            if self._closed.is_set():
                return None
            if self.source.pace != "live" or not (error is None or isinstance(error, SourceError)):
                self.error = error
                return self._set("ended")
            self.error = error or SourceError(f"{self.source.name} ended")
            delay = FIRST_DELAY if self.frames > before else delay
            log.warning("%s; it is opened again in %g s", self.error, delay)
            self._set("lost")
            self._closed.wait(delay)
            delay = min(2 * delay, LONGEST_DELAY)
            self.reopened += 1
        return None

    def _read(self) -> Exception | None:
        """Read the source to its end, and return the error that ended it early."""
        start: float | None = None
        try:
            with contextlib.closing(cast("Generator[RawFrame]", self.source.open())) as frames:
                while self._may_read():
                    frame = next(frames, None)
                    if frame is None:
                        return None
                    if self.source.pace == "timed" and not self._pulled and frame.time is not None:
                        start = time.monotonic() - frame.time if start is None else start
                        self._closed.wait(max(0.0, start + frame.time - time.monotonic()))
                    self._put(frame)
        except Exception as error:  # for the caller of `take`
            return error
        return None

    def _may_read(self) -> bool:
        """Wait until a frame is requested, if the source is pulled. Return False after `close`."""
        if self._pulled:
            with self._changed:
                self._changed.wait_for(lambda: self._requested or self._closed.is_set())
        return not self._closed.is_set()

    def _put(self, frame: RawFrame) -> None:
        with self._changed:
            now = time.monotonic()
            self.last_sign = now if frame.arrived is None else frame.arrived
            at = time.time() - (now - self.last_sign) if frame.time is None else frame.time
            self._newest = frame, at, self.last_sign
            self._requested = False
            self.frames += 1 + frame.dropped
            self.error = None
            self._set("reading")

    def _set(self, state: ReaderState) -> None:
        with self._changed:
            if self.state != "closed":
                self.state = state
            self._changed.notify_all()
