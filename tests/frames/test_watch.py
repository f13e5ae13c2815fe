"""`Watch`: the newest frame of each source, ages, stalls, errors, turns, and an end that nobody waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.errors import DeadlineError, ImageError, InferenceError, SourceError, StalledError
from edgevlm.frames import reader as readers
from edgevlm.frames.find import find_source
from edgevlm.frames.source import FrameSource, Pace, RawFrame
from edgevlm.results import Choice
from edgevlm.watch import Seen, Watch

LIMIT = 60
"""Seconds after which a thread that should have gone on fails the test."""


def frame(value: int) -> NDArray[np.uint8]:
    return np.full((8, 8, 3), value, np.uint8)


class Question:
    """Returns the brightness of the frame; waits, or raises an error, before that.

    Args:
        before: is called with the brightness.
    """

    text = ""

    def __init__(self, before: Callable[[int], object] = lambda value: None) -> None:
        self._before = before
        self.limits: list[float | None] = []
        self.cancelled = False

    def answer(self, image: NDArray[np.uint8], within: float | None) -> tuple[int, Choice]:
        self.limits.append(within)
        value = int(image[0, 0, 0])
        self._before(value)
        return value, Choice(str(value), {}, 0.0)

    def cancel(self) -> None:
        self.cancelled = True


class Script:
    """A live source: each opening runs the next of several functions that yield frames."""

    name = "the script"
    pace: Pace = "live"

    def __init__(self, *openings: Callable[[], Iterator[NDArray[np.uint8]]]) -> None:
        self._openings = iter(openings)
        self.closed = threading.Event()

    def open(self) -> Iterator[RawFrame]:
        opening = next(self._openings, None)
        if opening is None:
            raise SourceError("the script is over")
        try:
            for image in opening():
                yield RawFrame(image, None)
        finally:
            self.closed.set()


def watch(question: Question, *sources: FrameSource, **options: Any) -> Watch:
    settings: dict[str, Any] = {
        "max_age": None,
        "within": None,
        "every": 0.0,
        "min_change": 0.0,
        "every_frame": False,
    }
    return Watch([(source, question) for source in sources], **{**settings, **options})


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "FIRST_DELAY", 0.01)


def test_pulled_frames_come_one_after_another() -> None:
    with watch(Question(), find_source(map(frame, range(5)))) as seen:
        found = list(seen)
        assert list(seen) == []
    assert [one.value for one in found] == [0, 1, 2, 3, 4]
    assert all(one.dropped == 0 and one.source == 0 and one.age < LIMIT for one in found)
    np.testing.assert_array_equal(found[3].frame, frame(3))


def test_a_pulled_frame_is_read_after_the_answer_before_it() -> None:
    """So it is new when the model sees it."""
    asked: list[int] = []

    def images() -> Iterator[NDArray[np.uint8]]:
        for value in range(3):
            asked.append(value)
            yield frame(value)

    with watch(Question(), find_source(images())) as seen:
        for one in seen:
            assert asked[-1] == one.value


def test_the_newest_frame_replaces_those_that_wait() -> None:
    answering, go_on = threading.Event(), threading.Event()

    def flood() -> Iterator[NDArray[np.uint8]]:
        yield frame(0)
        assert answering.wait(LIMIT)
        for value in range(1, 100):
            yield frame(value)
        go_on.set()
        yield frame(100)
        threading.Event().wait(LIMIT)

    def before(value: int) -> None:
        if value == 0:
            answering.set()
            assert go_on.wait(LIMIT)

    with watch(Question(before), Script(flood)) as seen:
        assert next(seen).value == 0
        one = next(seen)
        while one.value < 100:
            one = next(seen)
        stats = seen.stats
    assert stats.frames == 101
    assert stats.dropped + stats.answered == 101
    assert stats.answered <= 3


def test_a_stalled_source_is_told_and_its_old_frame_is_not_answered() -> None:
    resume = threading.Event()

    def stalls() -> Iterator[NDArray[np.uint8]]:
        yield frame(1)
        assert resume.wait(LIMIT)
        yield frame(2)
        threading.Event().wait(LIMIT)

    question = Question()
    with watch(question, Script(stalls), max_age=0.3) as seen:
        assert next(seen).value == 1
        for _ in range(2):
            with pytest.raises(StalledError, match="source 0, the script, has given no frame for"):
                next(seen)
        resume.set()
        assert next(seen).value == 2
        assert seen.stats.stalls == 2
    assert all(limit is not None and 0 < limit <= 0.3 for limit in question.limits)


def test_a_frame_that_is_too_old_is_not_answered() -> None:
    waited = threading.Event()

    def two() -> Iterator[NDArray[np.uint8]]:
        yield frame(1)
        assert waited.wait(LIMIT)
        yield frame(2)
        threading.Event().wait(LIMIT)

    with watch(Question(), Script(two), max_age=0.2) as seen:
        time.sleep(0.5)  # as a program that acts for long
        with pytest.raises(StalledError):
            next(seen)
        assert seen.stats.too_old == 1
        waited.set()
        assert next(seen).value == 2


def test_an_answer_that_is_too_late_is_no_value() -> None:
    with watch(
        Question(lambda value: time.sleep(0.3)), find_source(map(frame, [1])), max_age=0.1
    ) as s:
        with pytest.raises(DeadlineError, match=r"max_age is 0\.1 s; it is dropped"):
            next(s)
        assert s.stats.too_old == 1
        assert s.stats.answered == 0


def test_a_lost_source_is_opened_again() -> None:
    def breaks() -> Iterator[NDArray[np.uint8]]:
        yield frame(1)
        raise SourceError("the cable was pulled")

    def ends() -> Iterator[NDArray[np.uint8]]:
        yield frame(2)

    def stays() -> Iterator[NDArray[np.uint8]]:
        yield frame(3)
        threading.Event().wait(LIMIT)

    found = []
    with watch(Question(), Script(breaks, ends, stays)) as seen:
        for one in seen:
            found.append(one.value)
            if one.value == 3:
                break
        assert seen.stats.reopened == 2
    assert found == [1, 2, 3]


def test_a_source_that_does_not_come_back_is_told() -> None:
    with (
        watch(Question(), Script(), max_age=0.2) as seen,
        pytest.raises(StalledError, match=r"no frame for .*: the script is over"),
    ):
        next(seen)


def test_errors_reach_the_loop_and_it_goes_on() -> None:
    def fails(value: int) -> None:
        if value == 1:
            raise InferenceError("the decoder failed")

    images: list[Any] = [frame(0), frame(1), b"no image", frame(3)]
    with watch(Question(fails), find_source(iter(images))) as seen:
        assert next(seen).value == 0
        with pytest.raises(InferenceError):
            next(seen)
        with pytest.raises(ImageError):
            next(seen)
        assert next(seen).value == 3
        with pytest.raises(StopIteration):
            next(seen)


def test_an_error_of_a_function_reaches_the_loop() -> None:
    def broken() -> NDArray[np.uint8]:
        raise RuntimeError("the driver is gone")

    with watch(Question(), find_source(broken)) as seen:
        with pytest.raises(RuntimeError, match="driver is gone"):
            next(seen)
        with pytest.raises(StopIteration):
            next(seen)


def test_sources_take_turns() -> None:
    def camera(first: int) -> Callable[[], Iterator[NDArray[np.uint8]]]:
        def frames() -> Iterator[NDArray[np.uint8]]:
            for value in range(first, first + 50):
                yield frame(value)
                time.sleep(0.01)
            threading.Event().wait(LIMIT)

        return frames

    with watch(Question(), *[Script(camera(first)) for first in (0, 100, 200)]) as seen:
        found = [next(seen) for _ in range(12)]
    assert all(one.value // 100 == one.source for one in found)
    assert {one.source for one in found} == {0, 1, 2}
    counts = [sum(one.source == index for one in found) for index in range(3)]
    assert min(counts) >= 2


def test_one_source_that_stalls_does_not_stop_the_others() -> None:
    def dead() -> Iterator[NDArray[np.uint8]]:
        threading.Event().wait(LIMIT)
        yield frame(0)

    def alive() -> Iterator[NDArray[np.uint8]]:
        while True:
            yield frame(1)
            time.sleep(0.01)

    told, values = 0, 0
    with watch(Question(), Script(dead), Script(alive), max_age=0.3) as seen:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                assert next(seen).source == 1
                values += 1
            except StalledError as error:
                assert "source 0" in str(error)
                told += 1
    assert 1 <= told <= 5
    assert values > told


def test_every() -> None:
    def fast() -> Iterator[NDArray[np.uint8]]:
        for value in range(1000):
            yield frame(value % 250)
            time.sleep(0.002)
        threading.Event().wait(LIMIT)

    with watch(Question(), Script(fast), every=0.1) as seen:
        arrivals = [next(seen).arrived for _ in range(5)]
    assert np.diff(arrivals).min() > 0.09


def test_frames_that_have_not_changed_are_skipped() -> None:
    values = [10, 10, 11, 60, 60, 10]
    with watch(Question(), find_source(map(frame, values)), min_change=0.05) as seen:
        found = list(seen)
        assert [one.value for one in found] == [10, 60, 10]
        assert [one.dropped for one in found] == [0, 2, 1]
        assert seen.stats.unchanged == 3


def test_close_ends_the_loop_of_another_thread() -> None:
    def camera() -> Iterator[NDArray[np.uint8]]:
        while True:
            yield frame(1)
            time.sleep(0.01)

    source = Script(camera)
    answering = threading.Event()
    question = Question(lambda value: answering.set())
    seen = watch(question, source)
    values: list[Seen] = []
    thread = threading.Thread(target=lambda: values.extend(seen))
    thread.start()
    assert answering.wait(LIMIT)
    seen.close()
    seen.close()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert question.cancelled
    assert source.closed.wait(LIMIT)


def test_a_jump_of_the_clock_changes_no_age(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1e9, 5e8, 2e9])
    monkeypatch.setattr(time, "time", lambda: next(times))
    with watch(Question(), find_source(map(frame, range(3))), max_age=60) as seen:
        found = list(seen)
    assert [one.frame_time for one in found] == [1e9, 5e8, 2e9]
    assert all(0 <= one.age < LIMIT for one in found)
