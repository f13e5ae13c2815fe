"""The class `FrameSlot`: frames that a program puts in, as a source for `VLM.watch`."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from edgevlm.errors import ClosedError
from edgevlm.frames.source import Pace, RawFrame
from edgevlm.inputs.images import ImageSource
from edgevlm.runtimes.forks import check_not_forked


class FrameSlot:
    """The newest frame of a program that gets its frames in callbacks; a source for one `VLM.watch`.

        slot = FrameSlot()
        robot.on_image(slot.put)
        with vlm.watch(slot, "Is the path clear?", choices=["yes", "no"], max_age=0.5) as watch:
            for seen in watch:
                act(seen.value)

    A frame that is put replaces the frame that waits. `put` and `close` may be called from any thread.
    `Watch.close` closes the slot, too.

    Args:
        name: name for messages.
    """

    def __init__(self, name: str = "the slot") -> None:
        self.name = name
        self._changed = threading.Condition()
        self._newest: RawFrame | None = None
        self._replaced = 0
        """Frames that newer ones replaced since the last one was read."""
        self._closed = False

    def put(self, image: ImageSource, *, time: float | None = None, age: float = 0.0) -> None:
        """Set the newest frame. Return at once.

        Args:
            image: an image, as in `VLM.ask`. Another thread reads it later: do not change an array after this
                call.
            time: when it was taken, in seconds on any clock; becomes `Seen.frame_time`. None: the Unix time
                of this call.
            age: seconds since it was taken, if you know; counts for `Seen.age` and ``max_age``.

        Raises:
            ClosedError: the slot is closed, or this process was forked from one that had used a model.
        """
        check_not_forked()
        arrived = _monotonic() - max(0.0, age)
        with self._changed:
            if self._closed:
                raise ClosedError(f"{self.name} is closed; create another FrameSlot")
            if self._newest is not None:
                self._replaced += 1
            self._newest = RawFrame(image, time, arrived)
            self._changed.notify_all()

    def close(self) -> None:
        """End the source after the frame that waits. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self) -> RawFrame | None:
        """Wait for a frame; None after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._newest is not None)
            newest, self._newest = self._newest, None
            replaced, self._replaced = self._replaced, 0
        if newest is None:
            return None
        return RawFrame(newest.image, newest.time, newest.arrived, replaced)


class SlotSource:
    """The frames of a slot."""

    pace: Pace = "pushed"

    def __init__(self, slot: FrameSlot) -> None:
        self.name = slot.name
        self._slot = slot

    def open(self) -> Iterator[RawFrame]:
        """Iterate over the newest frames until the slot is closed; see `FrameSource.open`."""
        while (frame := self._slot._take()) is not None:
            yield frame

    def close(self) -> None:
        """Close the slot, so that the thread that waits for its next frame ends."""
        self._slot.close()


def _monotonic() -> float:
    """Return the time of `time.monotonic`, which the argument ``time`` of `FrameSlot.put` hides."""
    return time.monotonic()
