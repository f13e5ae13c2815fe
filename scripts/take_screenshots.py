"""Take screenshots of the demo: python -m scripts.take_screenshots FOLDER [--readme] [--locale ru-RU]

It takes every tab at three widths, light and dark, with content, for a review. With --readme it takes the two
screenshots of the README instead. It needs Chromium and playwright. The colors are reduced to a palette, so
that the files are small.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from edgevlm.demo.model_pool import ModelPool
from tests.support import browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCENE, CHANGED = EXAMPLES / "scene.png", EXAMPLES / "changed.png"
SIZES = ((1280, 900), (820, 1180), (390, 844))
"""Sizes of the window in CSS pixels: a desktop, a tablet and a phone."""
MAX_FILE_SIZE = 150_000
"""Largest size of a file for the README, in bytes."""


def save(page: Page, path: Path, *, whole: bool = False) -> int:
    """Write what the window shows, or the whole page; return the file's size in bytes."""
    screenshot = Image.open(BytesIO(page.screenshot(full_page=whole))).convert("RGB")
    screenshot.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    size = path.stat().st_size
    print(path, size)
    return size


def take_all(chromium: Browser, address: str, folder: Path, locale: str) -> None:
    """Take each tab empty and filled, and Chat also with all sections open."""
    for width, height in SIZES:
        for dark in (False, True):
            end = f"{width}-{'dark' if dark else 'light'}.png"
            with browser.visit(
                chromium, address, width=width, height=height, dark=dark, locale=locale
            ) as page:
                for tab in ("Chat", "Live", "Inside", "Compare"):
                    browser.open_tab(page, tab)
                    page.wait_for_timeout(500)  # milliseconds: lists come from the server
                    save(page, folder / f"{tab.lower()}-empty-{end}")
                browser.fill(page, SCENE)
                browser.open_tab(page, "Chat")
                browser.ask(page, "What changed?", [SCENE, CHANGED])
                page.wait_for_timeout(500)  # milliseconds: the window scrolls to its end
                save(page, folder / f"chat-{end}")
                for button in page.locator("#tab-chat .label-wrap:not(.open)").all()[::-1]:
                    button.click()
                save(page, folder / f"chat-open-{end}", whole=True)
                browser.open_tab(page, "Live")
                browser.switch_camera(page)
                page.locator(".camera[data-state=on]").locator("visible=true").wait_for()
                page.wait_for_timeout(1000)  # milliseconds in which frames are answered
                save(page, folder / f"live-{end}", whole=True)
                for tab in ("Inside", "Compare", "Models"):
                    browser.open_tab(page, tab)
                    page.wait_for_timeout(500)
                    save(page, folder / f"{tab.lower()}-{end}", whole=True)


def take_for_readme(chromium: Browser, address: str, folder: Path) -> None:
    """Take a conversation in light colors, and the tab Inside in dark ones.

    Raises:
        ValueError: a file is larger than `MAX_FILE_SIZE`.
    """
    with browser.visit(chromium, address, width=1000, height=1150) as page:
        browser.ask(page, "Where is the key?", [SCENE])
        page.wait_for_timeout(500)  # milliseconds: the window scrolls to its end
        sizes = [save(page, folder / "chat.png")]
    with browser.visit(chromium, address, width=1000, height=900, dark=True) as page:
        browser.ask(page, "Where is the key?", [SCENE])
        browser.open_tab(page, "Inside")
        page.locator("#tokens .token").first.hover()
        sizes.append(save(page, folder / "inside.png"))
    if max(sizes) > MAX_FILE_SIZE:
        raise ValueError(f"a screenshot has {max(sizes)} bytes, more than {MAX_FILE_SIZE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder for the screenshots")
    parser.add_argument("--readme", action="store_true", help="take the README's two screenshots")
    parser.add_argument(
        "--locale", default="en-US", help="locale of the browser (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if (reason := browser.missing()) is not None:
        parser.error(reason)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    models = ModelPool(threads=1)
    with browser.served(models) as address, browser.chromium() as chromium:
        if arguments.readme:
            take_for_readme(chromium, address, arguments.folder)
        else:
            take_all(chromium, address, arguments.folder, arguments.locale)
    models.close()


if __name__ == "__main__":
    main()
