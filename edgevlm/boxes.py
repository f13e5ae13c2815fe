"""Boxes that models write as text."""

from __future__ import annotations

import re

_NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def box(text: str) -> tuple[float, float, float, float] | None:
    """The first ``[left, top, right, bottom]`` in a text; None if there is none or it is empty."""
    found = _BOX.search(text)
    if found is None:
        return None
    left, top, right, bottom = map(float, found.groups())
    return (left, top, right, bottom) if left < right and top < bottom else None
