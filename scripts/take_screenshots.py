"""Pictures of the demo for the README: python -m scripts.take_screenshots docs/screenshots

Needs Chromium and playwright. The colours are reduced to a palette, so that each file stays small.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from edgevlm.demo.models import Models
from tests import browser

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES = Path(__file__).resolve().parent.parent / "examples"
LARGEST = 150_000
"""Bytes of a file."""


def save(page: Page, path: Path) -> None:
    """Write what the window shows.

    Raises:
        ValueError: it does not fit `LARGEST`.
    """
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {LARGEST}")
    print(path, path.stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    if (reason := browser.missing()) is not None:
        parser.error(reason)
    folder.mkdir(parents=True, exist_ok=True)
    models = Models(threads=1)
    with browser.served(models) as address, browser.chromium() as chromium:
        with browser.visit(chromium, address, width=1000, height=760) as page:
            browser.ask(page, "What changed?", [PICTURES / "scene.png", PICTURES / "changed.png"])
            save(page, folder / "chat.png")
        with browser.visit(chromium, address, width=1000, height=900, dark=True) as page:
            browser.ask(page, "Where is the key?", [PICTURES / "scene.png"])
            browser.open_tab(page, "Inside")
            page.locator("#tokens .token").first.hover()
            page.locator("#pointed img").first.wait_for()
            save(page, folder / "inside.png")
    models.close()


if __name__ == "__main__":
    main()
