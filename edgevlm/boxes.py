"""Boxes that models write as text.

The manifest names the format in which a model writes boxes (`edgevlm.manifest.Usage.boxes`). If it names
none, its answers have no boxes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

BoxFormat = Literal["percent"] | None
"""A value of `edgevlm.manifest.Usage.boxes`."""

_NUMBER = r"\s*(\d{1,3}(?:\.\d{1,9})?)\s*"
_PERCENT_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]", re.ASCII)
_BETWEEN = " \t,.;:!?()[]{}-–—"
"""Characters between a box and the label of the next one."""

_ANY_NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*"
_ANY_BOX = re.compile(rf"\[{_ANY_NUMBER},{_ANY_NUMBER},{_ANY_NUMBER},{_ANY_NUMBER}\]")


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
        left, right = (min(round(side * width), width - 1) for side in (self.left, self.right))
        top, bottom = (min(round(side * height), height - 1) for side in (self.top, self.bottom))
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
    for match in _PERCENT_BOX.finditer(text):
        left, top, right, bottom = (float(number) / 100 for number in match.groups())
        label = text[end : match.start()].rpartition("\n")[2].strip(_BETWEEN)
        end = match.end()
        if left < right <= 1 and top < bottom <= 1:
            found.append(Box(left, top, right, bottom, label))
    return tuple(found)


def find_box(text: str) -> tuple[float, float, float, float] | None:
    """Return the first ``[left, top, right, bottom]`` in a text, in the unit of the text.

    It may reach outside of the image, so that a metric can compare it.

    Returns:
        The four numbers, or None if the text has no box or if the box is empty.
    """
    found = _ANY_BOX.search(text)
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    return (left, top, right, bottom) if left < right and top < bottom else None
