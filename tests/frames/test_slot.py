"""`FrameSlot`: frames that a program puts in, as a source for `Watch`."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm import VLM, ClosedError, FrameSlot, StalledError
from edgevlm.frames.find import find_source
from edgevlm.frames.reader import FrameReader

LIMIT = 60


def frame(value: int) -> NDArray[np.uint8]:
    return np.full((8, 8, 3), value, np.uint8)


def wait_for(reader: FrameReader, changed: threading.Condition, frames: int) -> None:
    with changed:
        assert changed.wait_for(lambda: reader.frames >= frames, LIMIT)


def test_the_newest_frame_and_what_it_replaced() -> None:
    slot = FrameSlot()
    for value in range(5):
        slot.put(frame(value), time=float(value))
    changed = threading.Condition()
    reader = FrameReader(find_source(slot), changed)
    wait_for(reader, changed, 5)
    first = reader.take()
    assert first is not None
    assert (int(first.image[0, 0, 0]), first.time, first.dropped) == (4, 4.0, 4)
    slot.put(frame(9))
    wait_for(reader, changed, 6)
    second = reader.take()
    assert second is not None
    assert (int(second.image[0, 0, 0]), second.dropped, reader.frames) == (9, 0, 6)
    slot.close()
    with changed:
        assert changed.wait_for(lambda: reader.state == "ended", LIMIT)
    assert reader.error is None and reader.reopened == 0


def test_a_frame_that_waited_is_old() -> None:
    slot = FrameSlot()
    begin = time.monotonic()
    slot.put(frame(1), age=5.0)
    after = time.monotonic()
    changed = threading.Condition()
    reader = FrameReader(find_source(slot), changed)
    wait_for(reader, changed, 1)
    taken = reader.take()
    assert taken is not None
    assert begin - 5 <= taken.arrived <= after - 5
    assert abs(time.time() - 5 - taken.time) < LIMIT and taken.time < time.time() - 5
    slot.close()


def test_the_frame_that_waits_comes_before_the_end() -> None:
    slot = FrameSlot()
    slot.put(frame(3))
    slot.close()
    slot.close()
    assert [raw.image[0, 0, 0] for raw in find_source(slot).open()] == [3]  # type: ignore[call-overload,index]
    with pytest.raises(ClosedError, match="create another FrameSlot"):
        slot.put(frame(4))


def test_with_the_built_in_model() -> None:
    slot = FrameSlot("the gripper's camera")
    with (
        VLM.from_pretrained(threads=1) as vlm,
        vlm.watch(
            slot, "What color is it?", choices=["red", "green"], max_age=0.5, every_frame=True
        ) as watch,
    ):
        with pytest.raises(StalledError, match="gripper's camera"):
            next(watch)
        thread = threading.Timer(0.05, slot.put, ["examples/square.png"], {"time": 12.5})
        thread.start()
        seen = None
        while seen is None:
            try:
                seen = next(watch)
            except StalledError:  # on a busy machine
                slot.put("examples/square.png", time=12.5)
        assert (seen.value, seen.frame_time) == ("green", 12.5)
        thread.join()
        slot.close()
        assert [one.value for one in watch] in ([], ["green"])
