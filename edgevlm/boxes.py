"""Boxes that models write as text."""

from __future__ import annotations

import re

_NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def find_box(text: str) -> tuple[float, float, float, float] | None:
    """Return the first ``[left, top, right, bottom]`` in a text, in the unit of the text.

    Returns:
        The four numbers, or None if the text has no box or if the box is empty.
    """
    found = _BOX.search(text)
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    return (left, top, right, bottom) if left < right and top < bottom else None
