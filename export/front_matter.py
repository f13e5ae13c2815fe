"""Read the YAML front matter of a model card: licence and base model.

Nothing else depends on it, so a damaged model card is no error.
"""

from __future__ import annotations

import codecs
from pathlib import Path

import yaml

LIMIT = 1 << 16
"""Bytes of README.md that are read."""
UNKNOWN = "unknown"


def front_matter(folder: Path) -> dict[str, object]:
    """Return the values by name; empty if README.md has no readable front matter."""
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
    """Return the ``license`` of the model card, or its ``license_name`` if that is ``other``.

    Several licences are joined by commas. Without a licence the result is ``unknown``.
    """
    values = front_matter(folder)
    named = words(values.get("license"))
    if named == ["other"]:
        named = words(values.get("license_name")) or named
    return ", ".join(named) or UNKNOWN


def base_model(folder: Path) -> str | None:
    """Return the first ``base_model`` of the model card; None if there is none."""
    return next(iter(words(front_matter(folder).get("base_model"))), None)


def words(value: object) -> list[str]:
    """Return the texts of a value that is a text or a list of texts, each on one line."""
    found = value if isinstance(value, list) else [value]
    lines = (" ".join(text.split()) for text in found if isinstance(text, str))
    return [line for line in lines if line]
