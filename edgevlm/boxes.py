"""Boxes and points on an image, in fractions of its width and height."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgevlm.errors import InputError

_NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


@dataclass(frozen=True)
class Point:
    """A place on an image, in fractions of its width and height, 0 to 1."""

    x: float
    y: float
    label: str = ""
    """Name of the thing as the model wrote it; may be empty."""
    probability: float | None = None
    """As of `Box`."""
    image_size: tuple[int, int] | None = None
    """Width and height of the upright image in pixels; None: not known."""

    def pixels(self, width: int | None = None, height: int | None = None) -> tuple[int, int]:
        """Return column and row of the pixel under the point.

        Args:
            width: width of the image in pixels; None: that of `image_size`, if `height` is None, too.
            height: its height in pixels.

        Raises:
            InputError: the size is not known.
        """
        width, height = _choose_size(width, height, self.image_size)
        return min(int(self.x * width), width - 1), min(int(self.y * height), height - 1)


@dataclass(frozen=True)
class Box:
    """A rectangle on an image, in fractions of its width and height, 0 to 1.

    `left` < `right`, `top` < `bottom`.
    """

    left: float
    top: float
    right: float
    bottom: float
    label: str = ""
    """Name of the thing as the model wrote it; may be empty."""
    probability: float | None = None
    """Geometric mean of the probabilities of the tokens that write the coordinates, 0 to 1. It says how sure
    the model is of these tokens; it is not calibrated. None: the request did not set ``top_logprobs``."""
    image_size: tuple[int, int] | None = None
    """Width and height of the upright image in pixels; None: not known."""

    @property
    def center(self) -> Point:
        """The point in the middle."""
        x, y = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        return Point(x, y, self.label, self.probability, self.image_size)

    def pixels(
        self, width: int | None = None, height: int | None = None
    ) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in pixels; right and bottom belong to the box.

        Args:
            width: width of the image in pixels; None: that of `image_size`, if `height` is None, too.
            height: its height in pixels.

        Raises:
            InputError: the size is not known.
        """
        width, height = _choose_size(width, height, self.image_size)
        left, right = (min(round(side * width), width - 1) for side in (self.left, self.right))
        top, bottom = (min(round(side * height), height - 1) for side in (self.top, self.bottom))
        return left, top, right, bottom


def _choose_size(
    width: int | None, height: int | None, known: tuple[int, int] | None
) -> tuple[int, int]:
    """Return width and height, or those of the image if both are None."""
    if width is not None and height is not None:
        return width, height
    if width is not None or height is not None:
        raise InputError(f"pass width and height, or neither; they are {width} and {height}")
    if known is None:
        raise InputError("the size of the image is not known; pass its width and height")
    return known


def find_box(text: str) -> tuple[float, float, float, float] | None:
    """Return the first ``[left, top, right, bottom]`` in a text, in the unit of the text.

    It may reach outside of the image, so that a metric can compare it.

    Returns:
        The four numbers, or None if the text has no box or if the box is empty.
    """
    found = _BOX.search(text)
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    return (left, top, right, bottom) if left < right and top < bottom else None
