"""What a checkpoint's README says of itself: the YAML between the ``---`` lines at its top.

Only a licence and the name of a base model are wanted from it, so whatever is wrong with it never fails.
"""

from __future__ import annotations

import codecs
from pathlib import Path

import yaml

LIMIT = 1 << 16
"""Bytes that are looked at; the front matter stands at the top."""
UNKNOWN = "unknown"


def front_matter(folder: Path) -> dict[str, object]:
    """The values by name; empty if README.md has no front matter that can be read."""
    try:
        with (folder / "README.md").open("rb") as file:
            raw = file.read(LIMIT)
    except OSError:
        return {}
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = raw.decode("utf-16" if utf16 else "utf-8-sig", "replace")
    lines = text.lstrip().splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    ends = (number for number, line in enumerate(lines) if number and line.rstrip() == "---")
    try:
        values = yaml.safe_load("\n".join(lines[1 : next(ends)]))
    except (
        Exception
    ):  # a parser of hostile text: recursion, dates that do not exist, unhashable keys
        return {}
    return values if isinstance(values, dict) else {}


def read_license(folder: Path) -> str:
    """The model card's ``license``, ``license_name`` if that is ``other``; several with commas between.

    ``unknown`` if it does not say.
    """
    values = front_matter(folder)
    named = words(values.get("license"))
    if named == ["other"]:
        named = words(values.get("license_name")) or named
    return ", ".join(named) or UNKNOWN


def base_model(folder: Path) -> str | None:
    """The first ``base_model`` of the model card."""
    return next(iter(words(front_matter(folder).get("base_model"))), None)


def words(value: object) -> list[str]:
    """The texts of a value that is one text or a list of them, each on one line."""
    found = value if isinstance(value, list) else [value]
    lines = (" ".join(text.split()) for text in found if isinstance(text, str))
    return [line for line in lines if line]
