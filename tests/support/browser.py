"""A page of the demo in a real browser: Chromium, headless, with a camera that shows a moving picture."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from edgevlm.demo.model_pool import ModelPool

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",  # the tests may run as root
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
TIMEOUT = 60_000
"""Milliseconds until what is awaited counts as missing; the machine may be slow."""


def missing() -> str | None:
    """What has to be installed before a browser can be driven; None if nothing."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    if executable() is None:
        return "no Chromium: apt-get install chromium"
    return None


def executable() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def served(models: ModelPool, port: int | None = None) -> Iterator[str]:
    """The address of the demo."""
    from edgevlm.demo.app import build, launch

    page = build(models, {"max_tokens": 40})
    yield launch(page, port)
    page.close(verbose=False)


@contextmanager
def visit(
    browser: Browser,
    address: str,
    *,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    locale: str = "en-US",
    tolerated: str | None = None,
) -> Iterator[Page]:
    """The demo in a browser profile of its own.

    Args:
        locale: what the browser asks pages to speak.
        tolerated: a regular expression for errors in the console that do not count.

    Raises:
        AssertionError: on leaving, if the page complained or asked another host for anything.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        locale=locale,
        permissions=["camera", "clipboard-read", "clipboard-write"],
        has_touch=width < 500,
    )
    context.set_default_timeout(TIMEOUT)
    page = context.new_page()
    complaints: list[str] = []
    elsewhere: list[str] = []
    page.on(
        "console",
        lambda message: complaints.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: (
            elsewhere.append(request.url)
            if not request.url.startswith((address, "data:", "blob:"))
            else None
        ),
    )
    page.goto(address)
    loaded(page)
    yield page
    context.close()
    assert elsewhere == [], elsewhere
    if tolerated is not None:
        complaints = [text for text in complaints if not re.search(tolerated, text)]
    assert complaints == [], complaints


def loaded(page: Page) -> None:
    """Wait until the page can be used: its components are there, and its scripts have run."""
    page.locator("#question textarea").wait_for(state="attached")
    page.wait_for_function("window.edgevlm !== undefined")


def open_tab(page: Page, name: str) -> None:
    """Open a tab by its English name, whatever the page's language."""
    page.locator(f"#tabs [role=tab][data-tab-id={name.lower()}]").click()
    page.locator(f"#tab-{name.lower()}").wait_for()


def page_width(page: Page) -> int:
    """How wide the page's content is, in CSS pixels; Gradio's frame hides what is wider than the window."""
    return int(
        page.evaluate(
            "Math.max(...[document.documentElement, document.querySelector('.gradio-container')]"
            ".map((it) => it.scrollWidth))"
        )
    )


def choose(page: Page, dropdown: str, name: str) -> None:
    """Choose from a list, and wait until it is closed: it fades, and two open lists have equal options."""
    page.locator(f"{dropdown} input").click()
    page.locator(dropdown).get_by_role("option", name=name, exact=True).click()
    page.locator(dropdown).get_by_role("listbox").wait_for(state="detached")


def send(page: Page, text: str, pictures: Sequence[Path] = ()) -> None:
    """Ask, without waiting for the answer."""
    if pictures:
        page.locator("#question input[type=file]").set_input_files(list(pictures))
        page.locator("#question .thumbnail-item").nth(len(pictures) - 1).wait_for()
    page.locator("#question textarea").fill(text)
    page.locator("#question .submit-button").click()


def idle(page: Page) -> None:
    """Wait until no answer is being made."""
    page.locator("#question .submit-button").wait_for()


def answers(page: Page) -> Locator:
    """What was said so far, once the page shows it."""
    return page.locator("#conversation .bot .answered")


def ask(page: Page, text: str, pictures: Sequence[Path] = ()) -> str:
    """Ask and wait; returns the answer."""
    count = answers(page).count()
    send(page, text, pictures)
    answers(page).nth(count).wait_for()
    idle(page)
    said: str = answers(page).nth(count).inner_text()
    return said.strip()


def switch_camera(page: Page) -> None:
    """Press Start or Stop in the tab Live."""
    page.locator("#live-camera .camera-switch").click()


def fill(page: Page, picture: Path) -> None:
    """Leave something in every tab: an answer, what a camera showed, a comparison."""
    open_tab(page, "Chat")
    ask(page, "Where is the key?", [picture])
    open_tab(page, "Live")
    switch_camera(page)
    page.locator("#live-history li").first.wait_for()
    switch_camera(page)
    open_tab(page, "Compare")
    page.locator("#compare-picture input[type=file]").set_input_files(picture)
    page.locator("#compare-picture img").wait_for()
    page.locator("#compare-question textarea").fill("What is in the picture?")
    page.locator("#compare-start").click()
    page.locator("#compared td").first.wait_for()
    page.locator("#compare-start:not([disabled])").wait_for()
    open_tab(page, "Inside")
    page.locator("#tokens .token").first.wait_for()
    open_tab(page, "Models")
    page.locator("#models").get_by_text("edgevlm-nano").locator("visible=true").first.wait_for()
