"""Sizes of resized images, by the rules of Idefics3."""

from __future__ import annotations

import math

MAX_SIDE = 4096
"""Idefics3 never resizes a side to more than this."""


def longest_edge_size(width: int, height: int, longest_edge: int) -> tuple[int, int]:
    """Return width and height with the longest edge resized to `longest_edge`.

    The rule of Idefics3: the other side is rounded down to an integer, then up to an even one, and is at
    least 1. No side is longer than `MAX_SIDE`.
    """
    aspect = width / height
    if width >= height:
        width, height = longest_edge, int(longest_edge / aspect)
        height = max(height + height % 2, 1)
    else:
        width, height = int(longest_edge * aspect), longest_edge
        width = max(width + width % 2, 1)
    aspect = width / height
    if width >= height and width > MAX_SIDE:
        width, height = MAX_SIDE, int(MAX_SIDE / aspect)
    elif height > width and height > MAX_SIDE:
        width, height = int(MAX_SIDE * aspect), MAX_SIDE
    return max(width, 1), max(height, 1)


def tile_multiple_size(width: int, height: int, tile: int) -> tuple[int, int]:
    """Return width and height as multiples of `tile`.

    The longer side is rounded up; the other follows from the aspect ratio and is rounded up.
    """

    def up(side: int) -> int:
        return math.ceil(side / tile) * tile

    aspect = width / height
    if width >= height:
        width = up(width)
        return width, up(int(width / aspect))
    height = up(height)
    return up(int(height * aspect)), height
