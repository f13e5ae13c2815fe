"""The demo without a mouse, on a phone, with a screen reader and in another language."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.demo import gradio_setup
from tests.support import browser
from tests.support.demo import MARKS, SCENE, SQUARE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = MARKS

TABS = ("Chat", "Live", "Inside", "Compare", "Models")

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
"""Tags of axe-core's rules: levels A and AA of WCAG up to 2.2."""


def violations(page: Page) -> list[str]:
    """Return what axe-core finds on the page, a line for each element."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": {"type": "tag", "values": WCAG}, "resultTypes": ["violations"]}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}"
        for rule in found
        for node in rule["nodes"]
    ]


TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def settle(page: Page) -> None:
    """Wait for the end of animations: a text that fades in has less contrast."""
    page.evaluate(TWO_FRAMES)  # what has just come begins to fade in the next one
    page.wait_for_function(
        "document.getAnimations().every((it) => it.playState !== 'running'"
        " || it.effect.getComputedTiming().endTime > 5000)"  # spinners, and bars that count seconds
    )


def open_accordions(page: Page) -> None:
    closed = page.locator(".label-wrap:not(.open), details:not([open]) > summary")
    closed = closed.locator("visible=true")
    while closed.count():
        closed.first.click()


def tell_something(page: Page) -> None:
    """Show a notice."""
    browser.open_tab(page, "Chat")
    page.locator("#question textarea").fill("")
    page.locator("#question .submit-button").click()
    page.locator(".toast-body").first.wait_for()


@pytest.mark.parametrize(  # each pair of values once: all eight take as long again and found no more
    ("width", "dark", "locale"),
    [
        (1280, False, "en-US"),
        (1280, True, "ru-RU"),
        (390, False, "ru-RU"),
        (390, True, "en-US"),
    ],
)
def test_no_violation_of_wcag(
    chromium: Browser, address: str, width: int, dark: bool, locale: str
) -> None:
    found: dict[str, list[str]] = {}

    def look(page: Page, state: str) -> None:
        settle(page)
        if seen := violations(page):
            found[state] = seen

    with browser.visit(chromium, address, width=width, dark=dark, locale=locale) as page:
        for tab in TABS:
            browser.open_tab(page, tab)
            look(page, f"{tab}, empty")
        browser.fill(page, SCENE)
        for tab in TABS:
            browser.open_tab(page, tab)
            look(page, f"{tab}, filled")
            open_accordions(page)
            look(page, f"{tab}, accordions open")
            lists = page.locator(f"#tab-{tab.lower()} input[role=combobox]").locator("visible=true")
            for at in range(lists.count()):
                lists.nth(at).focus()
                page.get_by_role("listbox").locator("visible=true").wait_for()
                look(page, f"{tab}, list {at} open")
                page.keyboard.press("Escape")
                lists.nth(at).blur()
                page.get_by_role("listbox").wait_for(state="detached")
        browser.open_tab(page, "Chat")
        page.locator("#question input[type=file]").set_input_files([SCENE, SQUARE])
        page.locator("#question .thumbnail-item").nth(1).wait_for()
        look(page, "pictures in the question")
        page.reload()
        browser.loaded(page)
        tell_something(page)
        look(page, "notice")
        assert page.locator("h1").locator("visible=true").count() == 1
        assert page.evaluate("document.documentElement.lang") == locale[:2]
    assert not found, "\n".join(f"== {state}\n" + "\n".join(seen) for state, seen in found.items())


FAULTS = """() => {
  const panel = document.querySelector("#tab-chat");
  panel.insertAdjacentHTML("beforeend", `
    <button></button><p style="color: #bbb; background: #fff">pale</p>
    <ul role="list"><li role="button">no item</li></ul><img src="data:,"><input>`);
}"""


def test_axe_sees_what_is_wrong(page: Page) -> None:
    page.evaluate(FAULTS)
    seen = {line.partition(":")[0] for line in violations(page)}
    assert seen >= {"button-name", "color-contrast", "aria-required-children", "image-alt", "label"}


CONTROLS = """(panel) => {
  const selector = "button, a[href], input:not([type=hidden], [type=file]), select, textarea, summary," +
    "[role=tab], [role=button], [role=option], [role=combobox], [role=slider]";
  const target = (it) => {
    const label = it.matches("input[type=checkbox], input[type=radio]") && it.closest("label");
    return label || it;
  };
  const shown = (it) => !it.closest("[inert]") &&
    it.checkVisibility({opacityProperty: true, visibilityProperty: true});
  return [...document.querySelectorAll(selector)].filter((it) => shown(target(it)) &&
    (it.closest(panel) || it.matches("#tabs [role=tab]"))).map(target);
}"""
"""JavaScript: the visible controls of a tab; a check box counts with its label."""

MEASURE = """([it, smallest]) => {
  it.scrollIntoView({block: "center", inline: "nearest", behavior: "instant"});
  document.querySelector(".gradio-container").scrollLeft = 0;
  const box = it.getBoundingClientRect();
  const words = (it.ariaLabel || it.innerText || it.placeholder || it.id).trim().slice(0, 40);
  const place = [box.width, box.height, box.left, box.top].map(Math.round);
  const faults = [];
  if (box.width < smallest - 0.5 || box.height < smallest - 0.5) faults.push("too small");
  if (box.left + scrollX < -0.5 || box.right + scrollX > innerWidth + 0.5) faults.push("beside the page");
  for (let up = it.parentElement; up && up !== document.body; up = up.parentElement) {
    const style = getComputedStyle(up);
    const frame = up.getBoundingClientRect();
    const cut = (overflow, start, end) => {
      const seen = Math.min(box[end], frame[end]) - Math.max(box[start], frame[start]);
      const whole = box[end] - box[start];
      if (overflow === "visible" || style.display === "contents") return false;
      const scrolls = ["auto", "scroll"].includes(overflow);
      return seen < Math.min(whole, scrolls ? smallest : start === "top" ? 2 * smallest : whole) - 4;
    };
    if (cut(style.overflowX, "left", "right") || cut(style.overflowY, "top", "bottom"))
      faults.push(`clipped by ${up.tagName.toLowerCase()}.${up.className}`);
  }
  const hit = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  if (!hit || !(it.contains(hit) || hit.contains(it) || hit.closest("label")?.contains(it)))
    faults.push(`covered by ${hit ? hit.outerHTML.slice(0, 120) : "nothing"}`);
  const name = `${it.tagName.toLowerCase()} "${words}" ${place.join(", ")}`;
  return faults.length ? `${name}: ${faults.join("; ")}` : null;
}"""
"""JavaScript: why a control is hard to use, after its width, height, left and top; null if it is not."""


def unusable(page: Page, tab: str, smallest: int) -> list[str]:
    """Return the controls of a tab that are too small, cut, covered or outside of the page."""
    handles = page.evaluate_handle(f"({CONTROLS})('#tab-{tab.lower()}')")
    found = []
    for handle in handles.get_properties().values():
        element = handle.as_element()
        if element is not None and (fault := page.evaluate(MEASURE, [element, smallest])):
            found.append(f"{tab}: {fault}")
    return found


@pytest.mark.parametrize(("width", "smallest"), [(390, 44), (820, 44), (1280, 24)])
@pytest.mark.parametrize("locale", ["en-US", "ru-RU"])
def test_every_control_can_be_used(
    chromium: Browser, address: str, width: int, smallest: int, locale: str
) -> None:
    faults = []
    with browser.visit(chromium, address, width=width, height=844, locale=locale) as page:
        for state in ("empty", "filled"):
            if state == "filled":
                browser.fill(page, SCENE)
            for tab in TABS:
                browser.open_tab(page, tab)
                open_accordions(page)
                settle(page)
                faults += [f"{state}, {line}" for line in unusable(page, tab, smallest)]
                if (wide := browser.page_width(page)) > width:
                    faults.append(f"{state}, {tab}: {wide} pixels wide")
    assert not faults, "\n".join(faults)


def test_what_cannot_be_used_is_found(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate(
        """() => document.querySelector("#tab-chat").insertAdjacentHTML("beforeend", `
        <button style="all: unset; width: 18px; height: 18px">small</button>
        <div style="width: 60px; overflow: hidden"><button style="width: 300px">cut</button></div>
        <div style="position: relative"><button>covered</button>
          <p style="position: absolute; inset: 0">lid</p></div>
        <div style="position: absolute; left: 380px; width: 80px"><button>beside</button></div>`)"""
    )
    found = "\n".join(unusable(page, "Chat", 44))
    assert re.search('"small".*too small', found) and re.search('"cut".*clipped', found)
    assert re.search('"covered".*covered by', found) and re.search('"beside".*beside', found)


def luminance(
    pixels: np.ndarray[Any, np.dtype[np.float64]],
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the relative luminance (WCAG) of sRGB values, 0 to 1."""
    linear = np.where(pixels <= 0.04045, pixels / 12.92, ((pixels + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]))


def contrasting(before: bytes, after: bytes) -> int:
    """Return the pixels that changed with a contrast of at least 3:1."""
    one, two = (
        luminance(np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), np.float64) / 255)
        for shot in (before, after)
    )
    ratio = (np.maximum(one, two) + 0.05) / (np.minimum(one, two) + 0.05)
    return int((ratio >= 3).sum())


CORNERS = 16
"""Pixels that round corners take from a ring."""


def stops(page: Page, limit: int = 120) -> Iterator[Any]:
    """Yield each element that the Tab key reaches, once."""
    page.evaluate("window.scrollTo(0, 0)")
    page.mouse.click(1, 1)  # the Tab key goes on from where one clicked last
    seen: list[Any] = []
    for _ in range(limit):
        page.keyboard.press("Tab")
        element = page.evaluate_handle("document.activeElement").as_element()
        assert element is not None
        if page.evaluate("document.activeElement === document.body") or any(
            page.evaluate("([a, b]) => a === b", [element, other]) for other in seen
        ):
            return
        seen.append(element)
        yield element
    raise AssertionError("the Tab key never comes back")


def ring_fault(page: Page, element: Any) -> str | None:
    """Return what is wrong with the ring around the focused element; restore the focus."""
    box = element.bounding_box()
    assert box is not None
    clip: Any = {
        "x": max(box["x"] - 5, 0),
        "y": max(box["y"] - 5, 0),
        "width": box["width"] + 10,
        "height": box["height"] + 10,
    }
    focused = page.screenshot(clip=clip, caret="hide")
    page.evaluate("(it) => { it.blur(); }", element)
    plain = page.screenshot(clip=clip, caret="hide")
    element.focus()
    seen = contrasting(plain, focused)
    ring = 2 * 2 * (box["width"] + box["height"])
    if seen >= ring / 2 - CORNERS:
        return None
    return f"{seen} of {ring:.0f} pixels: {element.evaluate('(it) => it.outerHTML.slice(0, 160)')}"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_focus_can_be_seen(chromium: Browser, address: str, dark: bool) -> None:
    """Each focused element gets a ring of two pixels that contrasts with what was there before.

    Half of the ring's pixels have to do so: a line that lies between two rows of the screen is blurred.
    """
    unseen = []
    with browser.visit(chromium, address, dark=dark) as page:
        page.emulate_media(reduced_motion="reduce")
        browser.fill(page, SCENE)
        for tab in TABS:
            browser.open_tab(page, tab)
            open_accordions(page)
            reached = 0
            settle(page)
            for element in stops(page):
                reached += 1
                if ring_fault(page, element) is not None:
                    page.wait_for_timeout(1000)  # what comes from the server may have moved it
                    if fault := ring_fault(page, element):
                        unseen.append(f"{tab}: {fault}")
            assert reached > 3, tab
    assert not unseen, "\n".join(unseen)


def tab_of(page: Page) -> str:
    return str(page.locator("#tabs [role=tab][aria-selected=true]").get_attribute("data-tab-id"))


@pytest.mark.parametrize("width", [1280, 390])
def test_tabs_are_in_the_address(chromium: Browser, address: str, width: int) -> None:
    def shows(tab: str, fragment: str) -> None:
        page.locator(f"#tab-{tab}").wait_for()
        assert tab_of(page) == tab
        assert page.evaluate("location.hash") == fragment

    # A reload ends what the page waits for.
    ended = "AbortError|Connection errored out"
    with browser.visit(chromium, address, width=width, tolerated=ended) as page:
        for tab in TABS:
            assert page.get_by_role("tab", name=tab, exact=True).is_visible()
        browser.open_tab(page, "Live")
        browser.open_tab(page, "Models")
        shows("models", "#models")
        page.go_back()
        shows("live", "#live")
        page.go_back()
        shows("chat", "")
        page.go_forward()
        page.go_forward()
        shows("models", "#models")
        page.locator("#models").get_by_text("copied").locator("visible=true").first.wait_for()
        page.reload()
        shows("models", "#models")
        page.locator("#models").get_by_text("copied").locator("visible=true").first.wait_for()
        for odd in ("#nowhere", "#tab-chat", "#%22%5D", "#%"):
            page.evaluate("(hash) => { location.hash = hash; }", odd)
            page.wait_for_timeout(100)
            shows("models", odd)
        browser.open_tab(page, "Chat")
        shows("chat", "#chat")
        page.evaluate("location.hash = '#inside'")
        shows("inside", "#inside")


def test_the_arrow_keys_move_among_tabs(page: Page) -> None:
    page.get_by_role("tab", name="Chat").focus()
    for key, tab in (("ArrowRight", "live"), ("End", "models"), ("ArrowRight", "chat")):
        page.keyboard.press(key)
        page.locator(f"#tab-{tab}").wait_for()
        assert page.evaluate("document.activeElement.dataset.tabId") == tab
    assert page.locator("#tabs [role=tab][tabindex='0']").count() == 1


SHARE = "button:has(path[d^='M23,20a5,5'])"
"""Gradio's icon; its name depends on the language."""


@pytest.mark.parametrize(
    ("locale", "name"), [("en", "Share"), ("ru", "Поделиться"), ("de", "Teilen")]
)
def test_nothing_is_shared(chromium: Browser, address: str, locale: str, name: str) -> None:
    with browser.visit(chromium, address, locale=locale) as page:
        browser.fill(page, SCENE)
        assert page.locator(SHARE).count() > 0, "Gradio's icon is another one now"
        for tab in TABS:
            browser.open_tab(page, tab)
            assert page.locator(SHARE).locator("visible=true").count() == 0
            assert page.get_by_role("button", name=name).locator("visible=true").count() == 0
        assert page.locator("footer").locator("visible=true").count() == 0


def test_notices_go_by_a_key_and_by_themselves(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    region = page.locator(".toast-wrap")
    assert (
        region.get_attribute("aria-live") == "polite" and region.get_attribute("role") == "status"
    )
    notice = region.locator(".toast-body")
    monkeypatch.setattr(gradio_setup, "NOTICE_SECONDS", 3600)  # that it is a key which closes them
    tell_something(page)
    assert "question is empty" in notice.inner_text()
    assert notice.get_attribute("aria-live") is None, "a region within the region is said twice"
    page.locator("#question textarea").focus()
    page.keyboard.press("Escape")
    notice.wait_for(state="detached")
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"

    tell_something(page)
    notice.get_by_role("button", name="Close").focus()
    page.keyboard.press("Enter")
    notice.wait_for(state="detached")

    monkeypatch.undo()
    tell_something(page)
    notice.wait_for(state="detached")


def test_notices_leave_the_question_free(chromium: Browser, address: str) -> None:
    with browser.visit(chromium, address, width=390, height=844) as page:
        tell_something(page)
        settle(page)
        notice = page.locator(".toast-body").bounding_box()
        send = page.locator("#question .submit-button")
        box = send.bounding_box()
        assert notice is not None and box is not None
        assert notice["y"] + notice["height"] < box["y"]
        send.click(trial=True)


@contextmanager
def command(port: int) -> Iterator[None]:
    """Run ``edgevlm demo`` as a process until SIGTERM."""
    arguments = [sys.executable, "-m", "edgevlm", "demo", "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "shows the page" in line:
            break
    yield
    process.terminate()
    process.communicate(timeout=60)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_the_server_goes_away(chromium: Browser) -> None:
    """The page tells it, keeps the conversation visible, logs no errors, and goes on with a new server."""
    port = free_port()
    lost = "ERR_CONNECTION|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|network error|AbortError|errored out"
    with ExitStack() as visits:
        with command(port):
            page = visits.enter_context(
                browser.visit(chromium, f"http://127.0.0.1:{port}/", locale="ru-RU", tolerated=lost)
            )
            browser.ask(page, "What color is it?", [SQUARE])
        dialog = page.get_by_role("dialog", name="Демонстрация завершена")
        dialog.wait_for()
        settle(page)
        assert not violations(page)
        assert browser.answers(page).first.is_visible()
        page.wait_for_timeout(3000)  # milliseconds in which what was under way fails
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.wait_for_timeout(6000)  # milliseconds: Gradio alone would ask three times
        assert not said
        dialog.get_by_role("button").click()
        dialog.get_by_text("Ответа всё ещё нет").wait_for()
        with command(port):
            dialog.get_by_role("button").click()
            dialog.wait_for(state="detached")
            browser.loaded(page)
            assert browser.ask(page, "What color is it?", [SQUARE]) == "green"


def test_less_motion_is_respected(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    slow = page.evaluate(
        """() => [...document.querySelectorAll("*")].filter((it) => {
          const style = getComputedStyle(it);
          return [style.transitionDuration, style.animationDuration].join().split(",").some(
            (time) => parseFloat(time) > 0.01);
        }).map((it) => it.outerHTML.slice(0, 100))"""
    )
    assert slow == []
