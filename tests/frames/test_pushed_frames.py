"""Frames that a program pushes: the newest one, errors of single frames, and an end from any thread."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from edgevlm import VLM, ClosedError, FrameSlot, ImageError, Watch
from edgevlm.inputs.images import load_image
from edgevlm.runtimes import forks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SQUARE, SHAPES, SCENE = (EXAMPLES / f"{name}.png" for name in ("square", "shapes", "scene"))
QUESTION = "What color is it?"
LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 400}
"""A JSON schema whose answers take seconds."""
LIMIT = 60
"""Seconds after which a thread that should have gone on fails the test."""


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(threads=1) as vlm:
        yield vlm


@pytest.fixture
def slot() -> FrameSlot:
    return FrameSlot()


@pytest.fixture
def watch(vlm: VLM, slot: FrameSlot) -> Iterator[Watch]:
    with vlm.watch(slot, QUESTION, max_tokens=8) as watch:
        yield watch


class HeldFrame(io.BytesIO):
    """An image file that says when it is read, and is read to its end once the test allows it."""

    def __init__(self, path: Path = SQUARE) -> None:
        super().__init__(path.read_bytes())
        self.started, self.allowed = threading.Event(), threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.started.set()
        assert self.allowed.wait(LIMIT)
        return super().read(size)


class Loop(threading.Thread):
    """A thread that reads all values of a watch."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.values: list[str] = []
        self.error: Exception | None = None
        self._watch = watch
        self.start()

    def run(self) -> None:
        try:
            for seen in self._watch:
                self.values.append(seen.value)
        except Exception as error:
            self.error = error


def wait_until(done: Any) -> None:
    end = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_values_and_ages(vlm: VLM, slot: FrameSlot, watch: Watch) -> None:
    for path in (SQUARE, SCENE):
        before = time.monotonic()
        slot.put(path)
        seen = next(watch)
        assert seen.value == vlm.ask(path, QUESTION, max_tokens=8).text
        np.testing.assert_array_equal(seen.frame, load_image(path))
        assert seen.dropped == 0
        assert before <= seen.arrived <= time.monotonic()
        assert 0 <= seen.age <= time.monotonic() - before


def test_the_newest_frame_replaces_frames_that_wait(slot: FrameSlot, watch: Watch) -> None:
    first = HeldFrame()
    slot.put(first)
    loop = threading.Thread(target=lambda: found.append(next(watch)))
    found: list[Any] = []
    loop.start()
    assert first.started.wait(LIMIT)
    for path in (SHAPES, SCENE, SHAPES, SQUARE):
        slot.put(path)
    wait_until(lambda: watch.stats.frames == 5)
    first.allowed.set()
    loop.join(LIMIT)
    assert (found[0].value, found[0].dropped) == ("green", 0)
    seen = next(watch)
    assert (seen.value, seen.dropped) == ("green", 3)
    np.testing.assert_array_equal(seen.frame, load_image(SQUARE))
    assert watch.stats.dropped == 3


def test_a_frame_that_fails_is_an_error_of_this_frame(slot: FrameSlot, watch: Watch) -> None:
    for bad in (b"no image", None, EXAMPLES / "missing.png"):
        slot.put(cast(Any, bad))
        with pytest.raises(ImageError):
            next(watch)
        slot.put(SQUARE)
        seen = next(watch)
        assert (seen.value, seen.dropped) == ("green", 0)


def test_a_closed_model_is_an_error() -> None:
    vlm, slot = VLM.from_pretrained(threads=1), FrameSlot()
    with vlm.watch(slot, QUESTION) as watch:
        vlm.close()
        for _ in range(2):
            slot.put(SQUARE)
            with pytest.raises(ClosedError, match="the model is closed"):
                next(watch)


def test_closing_ends_the_loop_and_the_slot(vlm: VLM, slot: FrameSlot, watch: Watch) -> None:
    before = threading.active_count()
    loop = Loop(watch)
    slot.put(SQUARE)
    wait_until(lambda: loop.values)
    watch.close()
    watch.close()
    loop.join(LIMIT)
    assert (loop.is_alive(), loop.values, loop.error) == (False, ["green"], None)
    with pytest.raises(ClosedError, match="the slot is closed"):
        slot.put(SQUARE)
    assert list(watch) == []
    wait_until(lambda: threading.active_count() == before - 1)  # the slot's thread ends, too
    assert vlm.ask(SQUARE, QUESTION).text == "green", "the model stays open"


def test_closing_stops_an_answer_that_is_being_made(vlm: VLM, slot: FrameSlot) -> None:
    """Its text is there while it grows."""
    with vlm.watch(slot, QUESTION, json_schema=LONG) as watch:
        assert watch.text == ""
        loop = Loop(watch)
        slot.put(SQUARE)
        wait_until(lambda: watch.text)
        begun = watch.text
        wait_until(lambda: len(watch.text) > len(begun))
        assert watch.text.startswith(begun)
        watch.close()
        loop.join(LIMIT)
    assert (loop.is_alive(), loop.values, loop.error) == (False, [], None)
    assert watch.text == ""
    assert vlm.ask(SQUARE, QUESTION).text == "green"


def test_closing_ends_a_loop_that_waits_for_other_requests(vlm: VLM, slot: FrameSlot) -> None:
    """The request that holds the model belongs to the thread that closes."""
    watch = vlm.watch(slot, QUESTION)
    with vlm.stream(None, "What?", max_tokens=30) as other:
        next(other)
        loop = Loop(watch)
        slot.put(SQUARE)
        wait_until(lambda: len(vlm._engine._lock._waiting) == 1)
        watch.close()
        loop.join(LIMIT)
        assert (loop.is_alive(), loop.values, loop.error) == (False, [], None)
    assert vlm.ask(SQUARE, QUESTION).text == "green"


def test_frames_are_not_cached_unless_asked_for(vlm: VLM) -> None:
    def tiles_cached_by(image: Path, **options: Any) -> int:
        before = vlm.cache_info()
        with vlm.watch(iter([image]), "What is in the image?", max_tokens=2, **options) as watch:
            assert len(list(watch)) == 1
        after = vlm.cache_info()
        assert after.encoded_tiles > before.encoded_tiles
        return after.tiles - before.tiles

    assert tiles_cached_by(SHAPES) == 0
    assert tiles_cached_by(SCENE, cache_images=True) > 0


def test_a_forked_process_gets_an_error(
    slot: FrameSlot, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "_forked", True)
    with pytest.raises(ClosedError, match="forked"):
        slot.put(SQUARE)
    with pytest.raises(ClosedError, match="forked"):
        next(watch)


def test_a_program_may_end_while_a_frame_is_answered() -> None:
    code = f"""
import threading
from edgevlm import VLM, FrameSlot
slot = FrameSlot()
watch = VLM.from_pretrained(threads=1).watch(slot, "What is in the picture?")
for _ in range(3):
    slot.put({str(SCENE)!r})
    next(watch)
slot.put({str(SCENE)!r})
threading.Thread(target=list, args=[watch], daemon=True).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
