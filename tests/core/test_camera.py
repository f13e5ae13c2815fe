"""`LatestFrame`: the newest frame only, errors for the reader, and an end that nobody waits for."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from edgevlm import (
    VLM,
    CancelledError,
    ClosedError,
    FrameResult,
    ImageError,
    InputError,
    LatestFrame,
    PromptError,
)
from edgevlm.results import Chunk
from edgevlm.runtimes import forks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SQUARE, SHAPES, SCENE = (EXAMPLES / f"{name}.png" for name in ("square", "shapes", "scene"))
QUESTION = "What color is it?"
LIMIT = 60
"""Seconds after which a thread that should have gone on fails the test."""


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(threads=1) as vlm:
        yield vlm


@pytest.fixture
def latest(vlm: VLM) -> Iterator[LatestFrame]:
    with LatestFrame(vlm, QUESTION, max_tokens=8) as latest:
        yield latest


class HeldFrame(io.BytesIO):
    """An image file that says when it is read, and is read to its end once the test allows it."""

    def __init__(self, path: Path = SQUARE) -> None:
        super().__init__(path.read_bytes())
        self._started, self._allowed = threading.Event(), threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self._started.set()
        assert self._allowed.wait(LIMIT)
        return super().read(size)

    def wait_until_started(self) -> None:
        assert self._started.wait(LIMIT)

    def allow(self) -> None:
        self._allowed.set()


def next_result(latest: LatestFrame) -> FrameResult:
    result = latest.get(timeout=LIMIT)
    assert result is not None
    return result


def test_it_answers_as_the_model_does(vlm: VLM, latest: LatestFrame) -> None:
    for path in (SQUARE, SCENE):
        before = time.monotonic()
        latest.put(path)
        result = next_result(latest)
        assert result.answer.text == vlm.ask(path, QUESTION, max_tokens=8).text
        assert result.frame is path
        assert result.dropped_frames == 0
        assert before <= result.timestamp <= time.monotonic()
        assert 0 <= result.age <= time.monotonic() - before


def test_the_newest_frame_replaces_frames_that_wait(latest: LatestFrame) -> None:
    first, last = HeldFrame(), HeldFrame()
    latest.put(first)
    first.wait_until_started()
    for frame in (SHAPES, SCENE, last):
        latest.put(frame)
    first.allow()
    result = next_result(latest)
    assert (result.frame, result.dropped_frames) == (first, 0)
    last.allow()
    result = next_result(latest)
    assert (result.frame, result.dropped_frames) == (last, 2)
    assert latest.get(timeout=0) is None, "a result is returned once"


def test_a_new_result_replaces_one_that_nobody_read(latest: LatestFrame) -> None:
    frames = [HeldFrame() for _ in range(3)]
    for frame in frames:
        latest.put(frame)
        frame.wait_until_started()  # so the results of the frames before are there
        if frame is not frames[-1]:
            frame.allow()
    result = next_result(latest)
    assert (result.frame, result.dropped_frames) == (frames[1], 1)
    frames[2].allow()
    result = next_result(latest)
    assert (result.frame, result.dropped_frames) == (frames[2], 0)


def test_a_frame_that_fails_is_an_error_for_the_reader(latest: LatestFrame) -> None:
    for bad in (b"no image", None, EXAMPLES / "missing.png"):
        latest.put(cast(Any, bad))
        with pytest.raises(ImageError):
            latest.get(timeout=LIMIT)
        latest.put(SQUARE)
        result = next_result(latest)
        assert (result.answer.text, result.dropped_frames) == ("green", 0)


def test_a_closed_model_is_an_error_for_the_reader() -> None:
    vlm = VLM.from_pretrained(threads=1)
    with LatestFrame(vlm, QUESTION) as latest:
        vlm.close()
        for _ in range(2):
            latest.put(SQUARE)
            with pytest.raises(ClosedError, match="the model is closed"):
                next(latest)


def test_closing_ends_readers_and_writers(vlm: VLM) -> None:
    latest = LatestFrame(vlm, QUESTION)
    first = threading.Event()
    found: list[str] = []

    def read_all() -> None:
        for result in latest:
            found.append(result.answer.text)
            first.set()

    reader = threading.Thread(target=read_all)
    reader.start()
    latest.put(SQUARE)
    assert first.wait(LIMIT)
    latest.close()
    latest.close()
    reader.join(LIMIT)
    assert not reader.is_alive() and found == ["green"]
    with pytest.raises(ClosedError, match="LatestFrame is closed"):
        latest.put(SQUARE)
    with pytest.raises(ClosedError, match="LatestFrame is closed"):
        latest.get(timeout=0)
    assert list(latest) == []
    assert vlm.ask(SQUARE, QUESTION).text == "green", "the model stays open"


class EndlessModel:
    """Answers as `VLM.stream` does, and never ends unless it is cancelled."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def stream(self, *_: Any, **__: Any) -> EndlessModel:
        return self

    def __iter__(self) -> Iterator[Chunk]:
        while not self.stopped.is_set():
            yield Chunk("more ", (1,))
        raise CancelledError

    def cancel(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        pass


def test_closing_stops_an_answer_that_is_being_made() -> None:
    model = EndlessModel()
    with LatestFrame(cast(VLM, model), QUESTION) as latest:
        assert latest.text == ""
        latest.put(SQUARE)
        while not latest.text.startswith("more more "):
            time.sleep(0.001)
        assert latest.get(timeout=0) is None
        assert not model.stopped.is_set()
    assert model.stopped.wait(LIMIT)


def test_closing_does_not_wait_for_other_requests(vlm: VLM) -> None:
    """The request that holds the model belongs to the thread that closes."""
    latest = LatestFrame(vlm, QUESTION)
    with vlm.stream(None, "What?", max_tokens=30) as other:
        next(other)
        latest.put(frame := HeldFrame())
        frame.wait_until_started()
        frame.allow()
        latest.close()
    assert vlm.ask(SQUARE, QUESTION).text == "green"


def test_frames_are_not_cached_unless_asked_for(vlm: VLM) -> None:
    def tiles_cached_by(image: Path, **options: Any) -> int:
        before = vlm.cache_info()
        with LatestFrame(vlm, "What is in the image?", max_tokens=2, **options) as latest:
            latest.put(image)
            next_result(latest)
        after = vlm.cache_info()
        assert after.encoded_tiles > before.encoded_tiles
        return after.tiles - before.tiles

    assert tiles_cached_by(SHAPES) == 0
    assert tiles_cached_by(SCENE, cache_images=True) > 0


def test_wrong_settings_are_errors_at_once(vlm: VLM) -> None:
    with pytest.raises(PromptError, match="question"):
        LatestFrame(vlm, " ")
    with pytest.raises(PromptError, match="system"):
        LatestFrame(vlm, QUESTION, system="")
    with pytest.raises(InputError, match="max_tokens"):
        LatestFrame(vlm, QUESTION, max_tokens=0)


def test_a_forked_process_gets_an_error(
    latest: LatestFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "_forked", True)
    with pytest.raises(ClosedError, match="forked"):
        latest.put(SQUARE)
    with pytest.raises(ClosedError, match="forked"):
        latest.get()


def test_a_program_may_end_while_a_frame_is_answered() -> None:
    code = f"""
from edgevlm import VLM, LatestFrame
latest = LatestFrame(VLM.from_pretrained(threads=1), "What is in the picture?")
for _ in range(3):
    latest.put({str(SCENE)!r})
    latest.get()
latest.put({str(SCENE)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
