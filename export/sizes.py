"""Sizes of files and of images as text."""

from __future__ import annotations

import re

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``150MB`` or ``1.5GiB``.

    Raises:
        ValueError: the text is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)?\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no size; write bytes, or a number with KB, MB, GB or MiB")
    return int(float(match[1]) * UNITS[(match[2] or "").upper()])


def parse_image_size(text: str) -> tuple[int, int]:
    """Return width and height of a size such as ``640x480``.

    Raises:
        ValueError: the text has another form.
    """
    found = re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text.strip(), re.ASCII)
    if found is None:
        raise ValueError(
            f"{text!r} is no size of images; write width and height in pixels: 640x480"
        )
    return int(found[1]), int(found[2])


def megabytes(size: int) -> str:
    """Return a size in decimal megabytes."""
    return f"{size / 1e6:.1f} MB"
