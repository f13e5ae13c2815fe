"""`FrameWatcher`, the logic of the ROS 2 node, without ROS."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edgevlm_ros.frame_watcher import FrameWatcher, Status
from numpy.typing import NDArray

from edgevlm import VLM, Choice, ClosedError, FrameSlot, InferenceError, InputError, Watch
from edgevlm.frames.find import find_source

LIMIT = 60
"""Seconds after which what should have happened fails the test."""


def image(value: int) -> SimpleNamespace:
    """A ``sensor_msgs/Image`` of one brightness."""
    data = np.full(8 * 8 * 3, value, np.uint8)
    return SimpleNamespace(height=8, width=8, encoding="rgb8", is_bigendian=0, step=24, data=data)


class Question:
    """Answers with the brightness of the image."""

    text = ""

    def __init__(self, before: Callable[[int], object]) -> None:
        self._before = before

    def answer(self, image: NDArray[np.uint8], within: float | None) -> tuple[int, Choice]:
        value = int(image[0, 0, 0])
        self._before(value)
        return value, Choice(str(value), {}, 0.0)

    def cancel(self) -> None:
        pass


class Model:
    """Stands for a `VLM`; calls a function with the brightness before each answer."""

    def __init__(self, before: Callable[[int], object] = lambda value: None) -> None:
        self.before = before

    def watch(self, source: FrameSlot, question: str, **options: Any) -> Watch:
        if not question:
            raise InputError("the question is empty")
        settings: dict[str, Any] = {"max_age": None, "within": None, "every": 0.0}
        settings |= {"min_change": 0.0, "every_frame": False}
        return Watch([(find_source(source), Question(self.before))], **{**settings, **options})


class Told:
    """What a watcher tells."""

    def __init__(self) -> None:
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.statuses: queue.Queue[Status] = queue.Queue()

    def answer(self) -> dict[str, Any]:
        return self.answers.get(timeout=LIMIT)

    def status(self) -> Status:
        return self.statuses.get(timeout=LIMIT)


@pytest.fixture
def told() -> Told:
    return Told()


def watcher(told: Told, model: Any = None, question: str = "Q", **options: Any) -> FrameWatcher:
    vlm: Any = model or Model()
    return FrameWatcher(
        vlm,
        question,
        options,
        on_answer=told.answers.put,
        on_status=told.statuses.put,
    )


def test_an_answer_says_of_which_image_it_is(told: Told) -> None:
    with closing(watcher(told)) as watching:
        watching.put(image(7), stamp=100.0, now=100.25)
        line = told.answer()
        assert (line["question"], line["value"], line["frame_time"]) == ("Q", 7, 100.0)
        assert line["age"] >= 0.25 and line["dropped"] == 0
        json.dumps(line)
        assert told.status().level == "ok"
        status = watching.status()
    assert (status.level, status.values["stamp_age"]) == ("ok", 0.25)


def test_a_slow_model_gets_the_newest_image(told: Told) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def before(value: int) -> None:
        begun.set()
        assert go_on.wait(LIMIT)

    with closing(watcher(told, Model(before))) as watching:
        watching.put(image(0))
        assert begun.wait(LIMIT)
        for value in range(1, 100):
            watching.put(image(value))
        go_on.set()
        assert told.answer()["value"] == 0
        line = told.answer()
        assert (line["value"], line["dropped"]) == (99, 98)
        values = watching.status().values
    assert told.answers.empty()
    assert (values["frames"], values["answered"], values["dropped"]) == (100, 2, 98)


def test_an_old_stamp_is_an_old_image(told: Told) -> None:
    with closing(watcher(told, max_age=30.0)) as watching:
        watching.put(image(1), stamp=100.0, now=131.0)
        watching.put(image(2), stamp=131.0, now=131.0)
        assert told.answer()["value"] == 2
        while told.status().level != "ok":
            pass
        watching.put(image(3), stamp=132.0, now=200.0)
        status = told.status()
        assert status.level == "error" and "compare the clocks" in status.message
        watching.put(image(4), stamp=200.0, now=200.0)
        assert told.answer()["value"] == 4


def test_a_repeated_image_is_a_stall(told: Told) -> None:
    """As of a driver whose camera is gone."""
    with closing(watcher(told, max_age=0.3)) as watching:
        watching.put(image(1), stamp=5.0, now=5.0)
        told.answer()
        assert told.status().level == "ok"
        end = time.monotonic() + LIMIT
        while told.statuses.empty():
            assert time.monotonic() < end
            watching.put(image(1), stamp=5.0, now=5.0)
        status = told.status()
        assert status.level == "error" and "the image topic, has given no frame" in status.message
        assert int(status.values["repeated"]) > 0
        watching.put(image(2), stamp=6.0, now=6.0)
        assert told.answer()["value"] == 2
        assert told.status().level == "ok"
    assert told.answers.empty()


def test_images_without_a_stamp_are_all_new(told: Told) -> None:
    with closing(watcher(told)) as watching:
        for value in range(3):
            watching.put(image(value), stamp=0.0, now=50.0)
            line = told.answer()
            assert line["value"] == value and line["age"] < LIMIT


def test_another_question_is_asked_about_the_image_that_is_there(told: Told) -> None:
    with closing(watcher(told)) as watching:
        watching.put(image(7), stamp=100.0, now=100.0)
        assert told.answer()["question"] == "Q"
        before = threading.active_count()
        for number in range(5):
            watching.ask(f"Q{number}")
            line = told.answer()
            assert (line["question"], line["value"], line["frame_time"]) == (f"Q{number}", 7, 100.0)
        assert watching.status().values["answered"] == 6
        with pytest.raises(InputError, match="empty"):
            watching.ask("")
        assert watching.status().values["question"] == "Q4"
        end = time.monotonic() + LIMIT
        while threading.active_count() > before:  # readers of the questions before end
            assert time.monotonic() < end
            time.sleep(0.01)


def test_the_answer_to_the_question_before_is_dropped(told: Told) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def before(value: int) -> None:
        begun.set()
        assert go_on.wait(LIMIT)

    model = Model(before)
    with closing(watcher(told, model)) as watching:
        watching.put(image(7))
        assert begun.wait(LIMIT)
        watching.ask("another")
        go_on.set()
        assert told.answer()["question"] == "another"
    assert told.answers.empty()


@pytest.mark.parametrize("error", [InferenceError("the decoder failed"), RuntimeError("a fault")])
def test_after_an_error_the_next_image_is_answered(told: Told, error: Exception) -> None:
    def before(value: int) -> None:
        if value < 2:
            raise error

    with closing(watcher(told, Model(before))) as watching:
        watching.put(image(0))
        status = told.status()
        assert (status.level, status.message) == ("error", str(error))
        watching.put(image(1))
        watching.put(image(2))
        assert told.answer()["value"] == 2
        assert told.status().level == "ok"
    assert told.statuses.empty()


def test_a_damaged_image_is_told(told: Told) -> None:
    damaged = image(0)
    damaged.step = 3
    with closing(watcher(told)) as watching:
        watching.put(damaged)
        assert "step of 3" in told.status().message


def test_a_closed_model_ends_the_thread(told: Told) -> None:
    def before(value: int) -> None:
        raise ClosedError("the model is closed")

    watching = watcher(told, Model(before))
    watching.put(image(0))
    assert told.status().message == "the model is closed"
    watching.close()
    watching.put(image(1))
    watching.ask("another")
    watching.close()


def test_no_image_yet(told: Told) -> None:
    with closing(watcher(told)) as watching:
        status = watching.status()
    assert (status.level, status.message) == ("warning", "no image yet")


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(threads=1) as vlm:
        yield vlm


def test_the_built_in_model(vlm: VLM, told: Told) -> None:
    square = np.full((96, 96, 3), 255, np.uint8)
    square[24:72, 24:72] = (30, 160, 60)
    message = SimpleNamespace(
        height=96, width=96, encoding="rgb8", is_bigendian=0, step=288, data=square.tobytes()
    )
    question = "What color is it?"
    with closing(watcher(told, vlm, question, choices=["red", "green"])) as watching:
        watching.put(message)
        line = told.answer()
    expected = vlm.choose(square, question, ["red", "green"])
    assert line["value"] == expected.label == "green"
    assert line["probabilities"] == expected.probabilities
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green"]}},
        "required": ["color"],
        "additionalProperties": False,
    }
    with closing(watcher(told, vlm, question, schema=schema, max_tokens=20)) as watching:
        watching.put(message)
        line = told.answer()
    assert line["value"].keys() == {"color"} and line["value"]["color"] in ("red", "green")
    with pytest.raises(InputError, match="max_age"):
        watcher(told, vlm, question, max_age=0)
