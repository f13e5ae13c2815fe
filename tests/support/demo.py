"""What the browser tests of the demo share: their marks, images to ask about, screenshots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import browser

if TYPE_CHECKING:
    from playwright.sync_api import Page

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing())),
    # On a busy machine Gradio's page is sometimes not ready in time.
    pytest.mark.flaky(reruns=1),
]
"""For ``pytestmark``."""

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
SCENE, CHANGED, SHAPES, SQUARE = (
    EXAMPLES / f"{name}.png" for name in ("scene", "changed", "shapes", "square")
)
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", REPOSITORY / "build" / "screenshots"))


def picture_of(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
