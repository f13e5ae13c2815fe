"""A page of the demo in headless Chromium, with a camera that shows a moving image."""

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
"""Milliseconds that the tests wait for an element; long, because the machine may be slow."""


def missing() -> str | None:
    """Return what must be installed to drive a browser; None if nothing is missing."""
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
    """Serve the demo; yield its address."""
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
    """Open the demo in its own browser profile.

    Args:
        locale: language that the browser asks for.
        tolerated: a regular expression for errors in the console to ignore.

    Raises:
        AssertionError: on exit, if the page logged an error or sent a request to another host.
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
    """Wait until the page is usable: its components exist, and its scripts have run."""
    page.locator("#question textarea").wait_for(state="attached")
    page.wait_for_function("window.edgevlm !== undefined")


def open_tab(page: Page, name: str) -> None:
    """Open a tab by its English name, whatever the page's language."""
    page.locator(f"#tabs [role=tab][data-tab-id={name.lower()}]").click()
    page.locator(f"#tab-{name.lower()}").wait_for()


def page_width(page: Page) -> int:
    """Return the width of the page's content in CSS pixels, with the part that Gradio's frame hides."""
    return int(
        page.evaluate(
            "Math.max(...[document.documentElement, document.querySelector('.gradio-container')]"
            ".map((it) => it.scrollWidth))"
        )
    )


def choose(page: Page, dropdown: str, name: str) -> None:
    """Choose from a list, and wait until the list is closed: two open lists have equal options."""
    page.locator(f"{dropdown} input").click()
    page.locator(dropdown).get_by_role("option", name=name, exact=True).click()
    page.locator(dropdown).get_by_role("listbox").wait_for(state="detached")


def send(page: Page, text: str, images: Sequence[Path] = ()) -> None:
    """Send a question, without waiting for the answer."""
    if images:
        page.locator("#question input[type=file]").set_input_files(list(images))
        page.locator("#question .thumbnail-item").nth(len(images) - 1).wait_for()
    page.locator("#question textarea").fill(text)
    page.locator("#question .submit-button").click()


def idle(page: Page) -> None:
    """Wait until no answer is in progress."""
    page.locator("#question .submit-button").wait_for()


def answers(page: Page) -> Locator:
    """Return the answers that the page shows."""
    return page.locator("#conversation .bot .answered")


def ask(page: Page, text: str, images: Sequence[Path] = ()) -> str:
    """Send a question, wait for the answer and return it."""
    count = answers(page).count()
    send(page, text, images)
    answers(page).nth(count).wait_for()
    idle(page)
    answer: str = answers(page).nth(count).inner_text()
    return answer.strip()


def switch_camera(page: Page) -> None:
    """Press Start or Stop in the tab Live."""
    page.locator("#live-camera .camera-switch").click()


def fill(page: Page, image: Path) -> None:
    """Fill every tab: with an answer, camera frames and a comparison."""
    open_tab(page, "Chat")
    ask(page, "Where is the key?", [image])
    open_tab(page, "Live")
    switch_camera(page)
    page.locator("#live-history li").first.wait_for()
    switch_camera(page)
    open_tab(page, "Compare")
    page.locator("#compare-picture input[type=file]").set_input_files(image)
    page.locator("#compare-picture img").wait_for()
    page.locator("#compare-question textarea").fill("What is in the picture?")
    page.locator("#compare-start").click()
    page.locator("#compared td").first.wait_for()
    page.locator("#compare-start:not([disabled])").wait_for()
    open_tab(page, "Inside")
    page.locator("#tokens .token").first.wait_for()
    open_tab(page, "Models")
    page.locator("#models").get_by_text("edgevlm-nano").locator("visible=true").first.wait_for()
