"""The tab Live in Chromium, with Chromium's own camera and with a camera that shows an image."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgevlm import VLM
from tests.support import browser
from tests.support.demo import CHANGED, MARKS, SCENE, SQUARE, picture_of
from tests.support.streams import as_stream

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from edgevlm.demo.model_pool import ModelPool

pytestmark = MARKS

TRACKS = """() => {
  window.tracks = [];
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    const stream = await open(wanted);
    tracks.push(stream.getVideoTracks()[0]);
    return stream;
  };
}"""
"""JavaScript: remember every track that the page opens."""

PAINTED = """async (uri) => {
  window.tracks ??= [];
  window.painted ??= Object.assign(document.createElement("canvas"), {width: 640, height: 480});
  const picture = new Image();
  picture.src = uri;
  await picture.decode();
  const paint = () => painted.getContext("2d").drawImage(picture, 0, 0, 640, 480);
  clearInterval(window.painting);
  window.painting = setInterval(paint, 50);
  navigator.mediaDevices.getUserMedia = async () => {
    const stream = painted.captureStream();
    tracks.push(stream.getVideoTracks()[0]);
    return stream;
  };
}"""
"""JavaScript: a camera that shows an image."""


def paint(page: Page, picture: Path) -> None:
    encoded = base64.b64encode(picture.read_bytes()).decode()
    page.evaluate(PAINTED, f"data:image/png;base64,{encoded}")


class Looks:
    """The frames that a page sent."""

    def __init__(self, page: Page) -> None:
        self.sent: list[dict[str, Any]] = []
        page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if "component_server" in request.url and '"fn_name":"answer"' in request.post_data:
            self.sent.append(json.loads(request.post_data)["data"])


def camera(page: Page) -> Locator:
    return page.locator("#live-camera")


def question(page: Page) -> Locator:
    return page.locator("#live-question textarea")


def choices(page: Page) -> Locator:
    return page.locator("#live-choices textarea")


def press(page: Page, name: str) -> None:
    camera(page).get_by_role("button", name=name, exact=True).click()


def says(page: Page, text: str | re.Pattern[str]) -> None:
    """Wait until the camera shows this state."""
    camera(page).locator(".camera-state", has_text=text).wait_for()


def answer(page: Page, text: str | re.Pattern[str] = re.compile(".")) -> str:
    """Wait until the newest answer has this text."""
    found = page.locator("#live .answer:not(.quiet):not(.problem)", has_text=text)
    found.wait_for()
    return found.inner_text()


def open_tracks(page: Page) -> int:
    return int(page.evaluate("tracks.filter((track) => track.readyState === 'live').length"))


def nothing_is_sent(page: Page, looks: Looks) -> None:
    page.wait_for_timeout(1000)  # milliseconds for the frame that was under way
    sent = len(looks.sent)
    page.wait_for_timeout(2000)  # milliseconds in which frames could come
    assert len(looks.sent) == sent


@pytest.fixture
def live(page: Page) -> Page:
    """The tab Live, with a camera that shows the green square."""
    browser.open_tab(page, "Live")
    paint(page, SQUARE)
    question(page).fill("What color is it?")
    page.locator("#live .answer").get_by_text("Answers appear here").wait_for()
    return page


def test_start_and_stop_are_one_click_each(page: Page) -> None:
    """With Chromium's own camera."""
    looks = Looks(page)
    browser.open_tab(page, "Live")
    says(page, "The camera is off")
    picture_of(page, "live-off")
    page.evaluate(TRACKS)
    press(page, "Start")
    answer(page)
    page.locator("#live .age", has_text="s old").wait_for()
    assert open_tracks(page) == 1
    picture_of(page, "live")
    press(page, "Stop")
    says(page, "The camera is off")
    assert open_tracks(page) == 0
    assert page.evaluate("document.querySelector('#live-camera video').srcObject") is None
    page.locator("#live .age", has_text="was taken at").wait_for()
    assert "old" not in page.locator("#live .age").inner_text()
    nothing_is_sent(page, looks)
    press(page, "Start")
    page.locator("#live .age", has_text="s old").wait_for()
    assert open_tracks(page) == 1


def test_one_frame_at_a_time(live: Page) -> None:
    """The next frame is sent after the answer to the last one."""
    open_requests: set[Any] = set()
    most = []

    def began(request: Any) -> None:
        if '"fn_name":"answer"' in (request.post_data or ""):
            open_requests.add(request)
            most.append(len(open_requests))

    live.on("request", began)
    live.on("requestfinished", lambda request: open_requests.discard(request))
    press(live, "Start")
    answer(live, "green")
    live.wait_for_function("document.querySelector('.live-history .times').textContent")
    assert len(most) > 1 and set(most) == {1}


def test_leaving_turns_the_camera_off_and_coming_back_turns_it_on(live: Page) -> None:
    looks = Looks(live)
    press(live, "Start")
    answer(live, "green")
    browser.open_tab(live, "Chat")
    live.wait_for_function("tracks.every((track) => track.readyState === 'ended')")
    nothing_is_sent(live, looks)
    browser.open_tab(live, "Live")
    sent = len(looks.sent)
    live.locator("#live .age", has_text="s old").wait_for()
    assert open_tracks(live) == 1
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    change = "document.dispatchEvent(new Event('visibilitychange'))"
    live.evaluate(hide % "true" + change)
    says(live, "It goes on when you come back")
    assert open_tracks(live) == 0
    nothing_is_sent(live, looks)
    live.evaluate(hide % "false" + change)
    live.locator("#live .age", has_text="s old").wait_for()
    assert open_tracks(live) == 1 and len(looks.sent) > sent
    press(live, "Stop")
    browser.open_tab(live, "Chat")
    browser.open_tab(live, "Live")
    says(live, "The camera is off")
    assert open_tracks(live) == 0, "one that was stopped stays off"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--use-fake-device-for-media-stream"], "does not let this page use the camera"),
        (["--use-fake-ui-for-media-stream"], "There is no camera"),
    ],
    ids=["refused", "none there"],
)
def test_a_refused_camera_and_none_at_all(
    chromium: Browser, address: str, arguments: list[str], words: str
) -> None:
    """As Chromium does it without a permission and without a device."""
    other = chromium.browser_type.launch(
        executable_path=browser.executable(), args=["--no-sandbox", *arguments]
    )
    with browser.visit(other, address) as page:
        page.context.clear_permissions()
        browser.open_tab(page, "Live")
        press(page, "Start")
        says(page, words)
        camera(page).get_by_role("button", name="Start", exact=True).wait_for()
        picture_of(page, "live-" + words.split()[-1])
    other.close()


def test_the_camera_is_chosen_and_remembered(chromium: Browser, address: str) -> None:
    other = chromium.browser_type.launch(
        executable_path=browser.executable(),
        args=[
            "--no-sandbox",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream=device-count=3",
        ],
    )
    used = "document.querySelector('#live-camera video').srcObject?.getVideoTracks()[0].label"
    with browser.visit(other, address) as page:
        browser.open_tab(page, "Live")
        press(page, "Start")
        choice = camera(page).get_by_role("combobox", name="Camera")
        choice.wait_for()
        names = choice.locator("option").all_inner_texts()
        assert len(set(names)) == 3
        page.wait_for_function(f"({used}) === {json.dumps(choice.evaluate(CHOSEN))}")
        choice.select_option(names[2])
        page.wait_for_function(f"({used}) === {json.dumps(names[2])}")
        answer(page)
        picture_of(page, "live-choice-of-the-camera")
        press(page, "Stop")
        again = page.context.new_page()
        again.goto(page.url)
        press(again, "Start")
        again.wait_for_function(f"({used}) === {json.dumps(names[2])}")
        assert camera(again).get_by_role("combobox").evaluate(CHOSEN) == names[2]
    other.close()


CHOSEN = "(it) => it.selectedOptions[0].label"

FAILURES = {
    "NotAllowedError": "does not let this page use the camera",
    "NotFoundError": "There is no camera",
    "NotReadableError": "Another program may use it",
    "TypeError": "The camera does not start: for a reason",
}


@pytest.mark.parametrize(("error", "words"), FAILURES.items())
def test_a_camera_that_does_not_start_says_why(live: Page, error: str, words: str) -> None:
    live.evaluate(
        """(name) => {
          navigator.mediaDevices.getUserMedia = () =>
            Promise.reject(new DOMException("for a reason", name));
        }""",
        error,
    )
    press(live, "Start")
    says(live, words)
    says(live, re.compile("press Start|Press Start"))
    picture_of(live, f"live-{error}")
    paint(live, SQUARE)
    press(live, "Start")
    answer(live, "green")


def test_a_page_without_cameras_says_where_there_are_some(live: Page) -> None:
    """Browsers allow cameras on safe addresses only."""
    live.evaluate("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})")
    press(live, "Start")
    says(live, "127.0.0.1")
    camera(live).get_by_role("button", name="Start", exact=True).wait_for()


def test_a_camera_that_is_unplugged_says_so(live: Page) -> None:
    looks = Looks(live)
    press(live, "Start")
    answer(live, "green")
    live.evaluate("tracks[0].stop(), tracks[0].dispatchEvent(new Event('ended'))")
    says(live, "was unplugged")
    nothing_is_sent(live, looks)
    press(live, "Start")
    live.locator("#live .age", has_text="s old").wait_for()


def test_stop_while_the_browser_asks(live: Page) -> None:
    """A late permission does not open the camera."""
    live.evaluate(
        """() => {
          const open = navigator.mediaDevices.getUserMedia;
          const allowed = new Promise((done) => (window.allow = done));
          navigator.mediaDevices.getUserMedia = () => allowed.then(open);
        }"""
    )
    press(live, "Start")
    says(live, "Allow it if the browser asks")
    press(live, "Stop")
    live.evaluate("allow()")
    live.wait_for_function("tracks.length === 1 && tracks[0].readyState === 'ended'")
    says(live, "The camera is off")


PLACED = """() => {
  const [box, video] = [".camera-boxes div", "video"].map((part) =>
    document.querySelector(`#live-camera ${part}`)?.getBoundingClientRect());
  return box && [
    (box.left - video.left) / video.width, (box.top - video.top) / video.height,
    (box.right - video.left) / video.width, (box.bottom - video.top) / video.height,
  ].map((share) => 100 * share);
}"""
"""JavaScript: the place of a box on the video, in percent; another answer may replace it."""


def test_boxes_are_drawn_over_the_video(live: Page) -> None:
    paint(live, SCENE)
    question(live).fill("Where is the key?")
    press(live, "Start")
    said = json.loads(answer(live, "["))
    box = camera(live).locator(".camera-boxes div")
    box.wait_for()
    press(live, "Stop")
    assert box.count() == 0, "the frame that it belongs to is gone"
    paint(live, SCENE)
    press(live, "Start")
    box.wait_for()
    placed = live.wait_for_function(PLACED).json_value()
    picture_of(live, "live-box")
    assert placed == pytest.approx(said, abs=2)
    paint(live, SQUARE)
    question(live).fill("What color is it?")
    answer(live, "green")
    assert box.count() == 0, "a box does not outlive its answer"


def test_only_changes_are_looked_at(live: Page) -> None:
    looks = Looks(live)
    live.get_by_label("Look only when the picture changes").check()
    press(live, "Start")
    answer(live, "green")
    live.locator("#live .age", has_text="has not changed for").wait_for()
    nothing_is_sent(live, looks)
    sent = len(looks.sent)
    paint(live, SCENE)
    live.locator(".live-history li").nth(1).wait_for()
    assert len(looks.sent) > sent
    live.locator("#live .age", has_text="has not changed for").wait_for()
    sent = len(looks.sent)
    question(live).fill("Where is the key?")
    answer(live, "[")
    assert len(looks.sent) > sent, "another question is a change"
    again = live.context.new_page()
    again.goto(live.url)
    again.wait_for_function("document.querySelector('#live-changes input')?.checked")
    assert question(again).input_value() == "Where is the key?"


def test_history_log_and_a_question_about_a_frame(live: Page) -> None:
    items = live.locator(".live-history li")
    save = live.get_by_role("button", name="Save the log")
    live.get_by_text("No answers yet").wait_for()
    assert save.is_disabled()
    press(live, "Start")
    answer(live, "green")
    live.locator(".live-history .times", has_text="times").wait_for()
    assert items.count() == 1, "the same answer again is counted, not listed"
    choices(live).fill("red, green, 3")
    live.locator("#live .bars tr").nth(2).wait_for()
    shares = live.locator("#live .bars .number").all_inner_texts()
    assert abs(sum(float(share.rstrip("% ")) for share in shares) - 100) < 0.2
    assert live.locator("#live .bars td:first-child").all_inner_texts() == ["red", "green", "3"]
    picture_of(live, "live-choices")
    choices(live).fill("")
    paint(live, SCENE)
    question(live).fill("Where is the key?")
    answer(live, "[")
    items.nth(1).wait_for()
    assert "Where is the key?" in items.first.inner_text(), "the newest comes first"
    assert re.search(r"\d:\d\d:\d\d", items.first.inner_text())
    assert items.first.locator("img").evaluate("(it) => it.complete && it.naturalWidth > 0")
    press(live, "Stop")
    with live.expect_download() as download:
        save.click()
    assert download.value.suggested_filename == "live.jsonl"
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    first, *_, last = map(json.loads, lines)
    assert set(first) == {"time", "model", "question", "answer", "milliseconds"}
    assert (first["model"], first["question"]) == ("edgevlm-nano", "What color is it?")
    assert first["answer"] == "green" and first["milliseconds"] > 0
    (box,) = last["boxes"]
    assert [round(100 * box[side]) for side in ("left", "top", "right", "bottom")] == json.loads(
        last["answer"]
    )
    assert any(set(json.loads(line).get("choices", [])) == {"red", "green", "3"} for line in lines)
    items.first.get_by_role("button", name="Ask about this frame").click()
    live.locator("#question .thumbnail-item").wait_for()
    assert json.loads(browser.ask(live, "Where is the key?")) == pytest.approx(
        json.loads(last["answer"]), abs=2
    )


def test_a_slow_answer_is_shown_while_it_grows(live: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops when the camera stops."""
    go_on = threading.Event()
    ended = threading.Event()
    stream = VLM._stream

    def slowly(vlm: VLM, *arguments: Any, **options: Any) -> Iterator[Any]:
        with closing(stream(vlm, *arguments, **options)) as chunks:
            try:
                for chunk in chunks:
                    yield chunk
                    if chunk.text:
                        go_on.wait(60)
            finally:
                ended.set()

    with monkeypatch.context() as patch:
        patch.setattr(VLM, "_stream", as_stream(slowly))
        question(live).fill("What is in the picture?")
        press(live, "Start")
        live.locator("#live .answer[aria-busy=true]", has_text="There").wait_for()
        live.locator("#live .age", has_text="s old").wait_for()
        assert "took" not in live.locator("#live .age").inner_text()
        press(live, "Stop")
        go_on.set()
        assert ended.wait(30)
    live.wait_for_timeout(1000)  # milliseconds in which its end could come
    assert live.locator("#live .answer").inner_text() == "There"
    assert live.locator(".live-history li").count() == 0
    press(live, "Start")
    answer(live, "There is a green square.")
    live.locator("#live .answer[aria-busy=false]").wait_for()


def test_the_list_is_bounded_and_rests_under_the_pointer(live: Page) -> None:
    """Items under the pointer do not move; new items are added when the pointer leaves."""
    live.evaluate(
        """() => {
          let count = 0;
          const send = window.fetch;
          window.fetch = async (address, options) => {
            const asked = String(address).includes("component_server") ? JSON.parse(options.body) : {};
            if (asked.fn_name !== "answer") return send(address, options);
            await new Promise((done) => setTimeout(done, 5));
            return Response.json({answer: `answer ${++count}`, choices: [], boxes: []});
          };
        }"""
    )
    items = live.locator(".live-history li")
    press(live, "Start")
    items.nth(49).wait_for()
    live.locator(".live-history").get_by_text("answer 60", exact=True).wait_for()
    assert items.count() == 50
    live.locator(".live-history ol").hover()
    first = items.first.inner_text()
    live.locator("#live .answer", has_text=re.compile(r"answer [1-9]\d\d")).wait_for()
    assert items.first.inner_text() == first
    live.locator(".live-history h2").hover()
    live.wait_for_function(
        "(first) => document.querySelector('.live-history li').innerText !== first", arg=first
    )
    assert items.count() == 50


def test_what_is_wrong_is_said_and_the_camera_goes_on(live: Page) -> None:
    problem = live.locator("#live .answer.problem")
    question_box, choice_box = question(live), choices(live)
    press(live, "Start")
    for box, text, words in (
        (question_box, "", "The question is empty"),
        (choice_box, "red", "One choice is none"),
        (choice_box, "red, green, red", "“red” is there twice"),
        (choice_box, ",".join(map(str, range(100))), "100 choices, more than 50"),
        (question_box, "word " * 6000, "positions"),
    ):
        before = box.input_value()
        box.fill(text)
        problem.get_by_text(words).wait_for()
        assert open_tracks(live) == 1
        box.fill(before)
        answer(live, "green")
    live.evaluate(
        """() => {
          window.encode = HTMLCanvasElement.prototype.toDataURL;
          HTMLCanvasElement.prototype.toDataURL = () => "data:image/png;base64,AAAA";
        }"""
    )
    problem.get_by_text("not a JPEG").wait_for()
    picture_of(live, "live-problem")
    live.evaluate("() => { HTMLCanvasElement.prototype.toDataURL = window.encode; }")
    answer(live, "green")


def test_two_pages_with_cameras(chromium: Browser, address: str) -> None:
    with (
        browser.visit(chromium, address) as one,
        browser.visit(chromium, address) as other,
    ):
        for page, picture in ((one, SQUARE), (other, CHANGED)):
            browser.open_tab(page, "Live")
            paint(page, picture)
            press(page, "Start")
        question(one).fill("What color is it?")
        question(other).fill("Where is the key?")
        answer(one, "green")
        answer(other, "[")
        press(one, "Stop")
        looks = Looks(other)
        other.wait_for_timeout(2000)
        assert looks.sent, "the other one goes on"


def test_models_that_fail_and_models_that_change(live: Page, models: ModelPool) -> None:
    looks = Looks(live)
    press(live, "Start")
    answer(live, "green")
    live.evaluate(
        """() => {
          window.rightly = window.fetch;
          window.fetch = (address, options) => {
            const body = options?.body;
            if (typeof body === "string" && body.includes('"fn_name":"answer"'))
              options = {...options, body: body.replace('"edgevlm-nano"', '"broken"')};
            return rightly(address, options);
          };
        }"""
    )
    live.locator("#live .answer.problem", has_text="was altered").wait_for()
    assert open_tracks(live) == 1
    live.evaluate("() => { window.fetch = rightly; }")
    answer(live, "green")
    browser.open_tab(live, "Models")
    browser.choose(live, "#model-choice", "copied")
    live.get_by_role("button", name="Load and use").click()
    live.locator("#head").get_by_text("copied").wait_for()
    browser.open_tab(live, "Live")
    live.locator("#live .age", has_text="s old").wait_for()
    while looks.sent[-1]["model"] != "copied":
        live.wait_for_timeout(100)
    answer(live, "green")
