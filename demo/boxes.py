"""Boxes in answers: find them in the text, and draw them on the image.

The manifest names the format in which a model writes boxes (`edgevlm.manifest.Usage.boxes`). If it names
none, answers have no boxes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

BoxFormat = Literal["percent"] | None
"""A value of `edgevlm.manifest.Usage.boxes`."""

_NUMBER = r"\s*(\d{1,3}(?:\.\d{1,9})?)\s*"
_PERCENT = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]", re.ASCII)
_BETWEEN = " \t,.;:!?()[]{}-–—"
"""Characters between a box and the label of the next one."""

LIGHT, DARK = "#ffffff", "#d3003f"
"""Colors of a dark line between two light ones, which is visible on any background."""


@dataclass(frozen=True)
class Box:
    """A rectangle, in fractions of width and height, 0 to 1; `left` < `right`, `top` < `bottom`."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""
    """The text before the box, in the same line; may be empty."""

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in pixels; right and bottom belong to the box."""
        left, right = (
            min(round(fraction * width), width - 1) for fraction in (self.left, self.right)
        )
        top, bottom = (
            min(round(fraction * height), height - 1) for fraction in (self.top, self.bottom)
        )
        return left, top, right, bottom


def find_boxes(text: str, box_format: BoxFormat) -> tuple[Box, ...]:
    """Return the boxes in an answer, in order.

    Leave out what is no box: not four numbers, numbers outside of the image, swapped corners, no area.

    Args:
        text: the answer; it may be incomplete.
        box_format: the format in which the model writes boxes.
    """
    if box_format is None:
        return ()
    found: list[Box] = []
    end = 0
    for match in _PERCENT.finditer(text):
        left, top, right, bottom = (float(number) / 100 for number in match.groups())
        label = text[end : match.start()].rpartition("\n")[2].strip(_BETWEEN)
        end = match.end()
        if left < right <= 1 and top < bottom <= 1:
            found.append(Box(left, top, right, bottom, label))
    return tuple(found)


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
