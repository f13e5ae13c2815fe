"""Boxes drawn on images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from edgevlm.boxes import Box

LIGHT, DARK = "#ffffff", "#d3003f"
"""Colors of a dark line between two light ones, which is visible on any background."""


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Return an RGB copy of an image with boxes on it; the thickness of the lines depends on its size."""
    drawn = image.convert("RGB")
    canvas = ImageDraw.Draw(drawn)
    line = max(2, math.ceil(max(drawn.size) / 200))
    for box in boxes:
        left, top, right, bottom = box.pixels(*drawn.size)
        outer = (left - line, top - line, right + line, bottom + line)
        canvas.rectangle(outer, None, LIGHT, 3 * line)
        canvas.rectangle((left, top, right, bottom), None, DARK, line)
    return drawn
