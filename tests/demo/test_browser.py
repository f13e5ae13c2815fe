"""The demo in Chromium: every tab, two browsers, a phone, and errors.

Screenshots are left in build/screenshots, or where SCREENSHOTS names a folder.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgevlm import VLM, Chunk
from tests.support import browser
from tests.support.demo import CHANGED, MARKS, SCENE, SHAPES, SQUARE, picture_of
from tests.support.streams import as_stream

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


pytestmark = MARKS


def test_a_conversation(page: Page, nano: VLM) -> None:
    picture_of(page, "chat-empty")
    chat = nano.chat()
    for question, pictures in (
        ("What changed?", [SCENE, CHANGED]),
        ("What is in the first picture?", []),
    ):
        assert (
            browser.ask(page, question, pictures)
            == chat.send(question, images=pictures, max_tokens=40).text
        )
    assert page.locator("#conversation .user img").count() == 2
    picture_of(page, "chat")


GIVE = """([kind, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], "given.png", {type: "image/png"}));
  const box = document.querySelector("#question textarea");
  if (kind === "paste") {
    box.dispatchEvent(new ClipboardEvent("paste", {clipboardData: given, bubbles: true}));
  } else {
    for (const step of ["dragenter", "dragover", "drop"]) {
      box.dispatchEvent(new DragEvent(step, {dataTransfer: given, bubbles: true, cancelable: true}));
    }
  }
}"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_pictures_can_be_pasted_and_dropped(page: Page, kind: str) -> None:
    page.evaluate(GIVE, [kind, base64.b64encode(SQUARE.read_bytes()).decode()])
    page.locator("#question .thumbnail-item").wait_for()
    assert browser.ask(page, "What color is it?") == "green"


def test_the_camera_takes_a_picture_for_the_question(page: Page) -> None:
    page.get_by_role("button", name="Webcam").click()
    camera = page.locator("#chat-camera")
    camera.get_by_role("button", name="Start").click()
    page.wait_for_function("document.querySelector('#chat-camera video')?.videoWidth > 0")
    camera.get_by_role("button", name="Take a picture").click()
    page.locator("#question .thumbnail-item").wait_for()
    picture_of(page, "chat-webcam")
    assert browser.ask(page, "What is in the picture?")
    assert page.locator("#conversation .user img").count() == 1


def test_text_is_shown_letter_for_letter(page: Page) -> None:
    question = "<image> <b>bold</b> ${1+1} {{7*7}} *star* <img src=x onerror=alert(1)>"
    browser.ask(page, question, [SQUARE])
    assert question in page.locator("#conversation .user.message").last.inner_text()
    browser.open_tab(page, "Inside")
    prompt = page.locator("#prompt .prompt")
    prompt.get_by_text("onerror").first.wait_for()
    assert question in prompt.inner_text()


def test_examples_run(page: Page, nano: VLM) -> None:
    page.locator("#conversation").get_by_text("Where is the key?").click()
    browser.answers(page).first.wait_for()
    browser.idle(page)
    expected = nano.ask(SCENE, "Where is the key?", max_tokens=40).text
    assert browser.answers(page).first.inner_text().strip() == expected


def test_retry_edit_copy(page: Page, nano: VLM) -> None:
    first = browser.ask(page, "What color is it?", [SQUARE])
    assert first == "green"
    page.get_by_role("button", name="Retry").click()
    browser.idle(page)  # the page is not ready to send from the click to the end of the answer
    assert browser.answers(page).all_inner_texts() == ["green"]

    page.get_by_role("button", name="Edit the last question").click()
    page.locator("#conversation .user").first.wait_for(state="detached")
    assert page.locator("#question textarea").input_value() == "What color is it?"
    assert page.locator("#question .thumbnail-item").count() == 1, "its picture stays"
    expected = nano.ask(SQUARE, "What shape is it?", max_tokens=40).text
    assert browser.ask(page, "What shape is it?") == expected
    assert page.locator("#conversation .user img").count() == 1

    page.get_by_role("button", name="Copy", exact=True).last.click()
    assert page.evaluate("navigator.clipboard.readText()") == expected


@dataclass
class Endless:
    """Make answers wait after each chunk until `go_on` is set."""

    go_on: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    given: list[Chunk] = field(default_factory=list)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endless]:
    state = Endless()
    generate = VLM.stream_generate

    @as_stream
    def generated(vlm: VLM, *arguments: Any, **options: Any) -> Iterator[Chunk]:
        try:
            with closing(generate(vlm, *arguments, **options)) as chunks:
                for chunk in chunks:
                    yield chunk
                    if chunk.text:
                        state.given.append(chunk)
                        state.go_on.wait()
        finally:
            state.closed.set()

    with monkeypatch.context() as patch:
        patch.setattr(VLM, "stream_generate", generated)
        yield state
    state.go_on.set()


def test_stop_really_stops(
    chromium: Browser, page: Page, address: str, nano: VLM, endless: Endless
) -> None:
    """A model that would never end stops at its next step, and serves another browser."""
    browser.send(page, "What is in the picture?", [SCENE])
    browser.answers(page).first.wait_for()
    page.locator("#question .stop-button").click()
    browser.idle(page)
    endless.go_on.set()
    assert endless.closed.wait(30)
    assert len(endless.given) <= 2
    whole = nano.ask(SCENE, "What is in the picture?", max_tokens=40).text
    said = browser.answers(page).first.inner_text().strip()
    assert whole.startswith(said) and said != whole
    with browser.visit(chromium, address) as other:
        assert browser.ask(other, "What color is it?", [SQUARE]) == "green"
    assert browser.ask(page, "What is there?", [SQUARE])


@pytest.mark.parametrize("button", ["New conversation", "Edit the last question"])
def test_a_conversation_is_left_while_it_is_answered(
    page: Page, endless: Endless, button: str
) -> None:
    """Later chunks do not come back into the window."""
    browser.send(page, "What is in the picture?", [SCENE])
    browser.answers(page).first.wait_for()
    page.get_by_role("button", name=button).first.click()
    browser.answers(page).first.wait_for(state="detached")
    endless.go_on.set()
    assert endless.closed.wait(30)
    browser.idle(page)
    page.wait_for_timeout(1000)  # milliseconds in which it could come
    assert browser.answers(page).count() == 0
    box = page.locator("#question textarea")
    edited = button == "Edit the last question"
    assert box.input_value() == ("What is in the picture?" if edited else "")
    assert browser.ask(page, "What color is it?", [] if edited else [SQUARE])
    assert page.locator("#conversation .user img").count() == 1


def test_two_browsers_know_nothing_of_each_other(chromium: Browser, address: str) -> None:
    with (
        browser.visit(chromium, address) as one,
        browser.visit(chromium, address) as other,
    ):
        browser.send(one, "What is in the picture?", [SCENE])
        browser.send(other, "What color is it?", [SQUARE])
        browser.answers(one).first.wait_for()
        browser.idle(one)
        browser.answers(other).first.wait_for()
        browser.idle(other)
        assert browser.answers(one).count() == browser.answers(other).count() == 1
        assert browser.answers(other).first.inner_text().strip() == "green"
        assert "green" not in browser.answers(one).first.inner_text()
        browser.open_tab(other, "Inside")
        other.locator("#inside-answer").get_by_text("green").wait_for()
        browser.open_tab(one, "Inside")
        one.locator("#tokens .token").first.wait_for()
        assert "green" not in one.locator("#inside-answer").inner_text()


def test_what_goes_wrong_is_said_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(SQUARE.read_bytes()[:200])
    browser.send(page, "What is it?", [broken])
    page.get_by_text("cannot be").first.wait_for()
    picture_of(page, "broken-picture")
    browser.idle(page)
    page.get_by_role("button", name="New conversation").click()
    browser.send(page, "word " * 6000)
    page.get_by_text("but the context has").first.wait_for()
    browser.idle(page)
    page.get_by_role("button", name="New conversation").click()
    assert browser.ask(page, "What color is it?", [SQUARE]) == "green"


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(chromium: Browser, address: str, dark: bool) -> None:
    name = "phone-dark" if dark else "phone"
    with browser.visit(chromium, address, width=390, height=844, dark=dark) as page:
        browser.ask(page, "Where is the key?", [SCENE])
        picture_of(page, name)
        for tab in ("Live", "Inside", "Compare", "Models"):
            browser.open_tab(page, tab)
            if tab == "Inside":
                page.locator("#tokens .token").first.wait_for()
            width = browser.page_width(page)
            assert width <= 390, f"{tab} is {width} pixels wide"
            picture_of(page, f"{name}-{tab.lower()}")


def test_dark(chromium: Browser, address: str) -> None:
    with browser.visit(chromium, address, dark=True) as page:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        channels = [int(part) for part in re.findall(r"\d+", color)[:3]]
        assert sum(channels) < 200
        browser.ask(page, "What is in the picture?", [SHAPES])
        picture_of(page, "chat-dark")
        browser.open_tab(page, "Inside")
        page.locator("#tokens .token").nth(1).hover()
        picture_of(page, "inside-dark")
