"""Intended use of edgevlm-nano, for its checkpoint: it sees drawings, and it points with boxes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from edgevlm.export.usage import USAGE_NAME
from edgevlm.manifest import ListFormat, Tasks, Usage

USAGE = Usage(
    images="drawings",
    location_format=ListFormat(scale=100),
    tasks={
        "en": Tasks(
            describe="Describe the picture.",
            detect="Where is the {thing}?",
            count="How many things are there?",
            read="What is written here?",
        ),
        "ru": Tasks(
            describe="Опиши картинку.",
            detect="Где {thing}?",
            count="Сколько здесь предметов?",
            read="Что здесь написано?",
        ),
    },
)
"""Questions in phrasings of the training data."""


def save_usage(folder: Path) -> None:
    """Write the intended use to a checkpoint's folder, where `edgevlm export` reads it."""
    text = json.dumps(dataclasses.asdict(USAGE), indent=2, ensure_ascii=False) + "\n"
    (folder / USAGE_NAME).write_text(text, encoding="utf-8")
