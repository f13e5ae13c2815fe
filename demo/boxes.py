"""Boxes: what an answer points at, and where it is in the image.

Models spell boxes in their own ways; the manifest names the way (`edgevlm.manifest.Usage.boxes`). An answer
of a model whose manifest names none has no boxes, whatever it looks like.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

Spelling = Literal["percent"] | None
"""As `edgevlm.manifest.Usage.boxes`."""

_NUMBER = r"\s*(\d{1,3}(?:\.\d{1,9})?)\s*"
_PERCENT = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]", re.ASCII)
_BETWEEN = " \t,.;:!?()[]{}-–—"
"""What may stand between a box and the name of the next one."""

LIGHT, DARK = "#ffffff", "#d3003f"
"""A dark line between two light ones: it stands out on any background."""


@dataclass(frozen=True)
class Box:
    """A rectangle in shares of the image's width and height, 0 to 1; `left` < `right`, `top` < `bottom`."""

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""
    """What the answer says before the box, in the same line; empty if nothing."""

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in an image of this size; right and bottom belong to the box."""
        left, right = (min(round(share * width), width - 1) for share in (self.left, self.right))
        top, bottom = (min(round(share * height), height - 1) for share in (self.top, self.bottom))
        return left, top, right, bottom


def boxes(text: str, spelling: Spelling) -> tuple[Box, ...]:
    """All boxes in an answer, in its order.

    What is no box is left out: fewer or more than four numbers, numbers outside of the image, corners the
    wrong way round, an empty area.

    Args:
        text: of the answer, perhaps not at its end yet.
        spelling: how the model that gave it spells boxes.
    """
    if spelling is None:
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


def draw(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of an image, in RGB, with these boxes on it.

    The lines have two colors, so that they are seen on any background, and a thickness by the image's size.
    """
    drawn = image.convert("RGB")
    brush = ImageDraw.Draw(drawn)
    line = max(2, math.ceil(max(drawn.size) / 200))
    for box in boxes:
        left, top, right, bottom = box.pixels(*drawn.size)
        around = (left - line, top - line, right + line, bottom + line)
        brush.rectangle(around, None, LIGHT, 3 * line)
        brush.rectangle((left, top, right, bottom), None, DARK, line)
    return drawn
