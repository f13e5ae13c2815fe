"""Boxes and points drawn on images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from edgevlm.boxes import Box, Point

LIGHT, DARK = "#ffffff", "#d3003f"
"""Colors of a dark line between two light ones, which is visible on any background."""


def draw_locations(image: Image.Image, locations: Sequence[Box | Point]) -> Image.Image:
    """Return an RGB copy of an image with boxes and points; the thickness of lines depends on its size."""
    drawn = image.convert("RGB")
    canvas = ImageDraw.Draw(drawn)
    line = max(2, math.ceil(max(drawn.size) / 200))
    for location in locations:
        if isinstance(location, Point):
            x, y = location.pixels(*drawn.size)
            for radius, color in ((4 * line, LIGHT), (3 * line, DARK), (line, LIGHT)):
                canvas.ellipse((x - radius, y - radius, x + radius, y + radius), color)
            continue
        left, top, right, bottom = location.pixels(*drawn.size)
        outer = (left - line, top - line, right + line, bottom + line)
        canvas.rectangle(outer, None, LIGHT, 3 * line)
        canvas.rectangle((left, top, right, bottom), None, DARK, line)
    return drawn
