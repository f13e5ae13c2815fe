"""What edgevlm-nano is for, in its checkpoint: it was trained on drawings and points with boxes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from edgevlm.export.usage import USAGE_NAME
from edgevlm.manifest import Tasks, Usage

USAGE = Usage(
    images="drawings",
    boxes="percent",
    tasks={
        "en": Tasks(
            describe="Describe the picture.",
            find="Where is the {thing}?",
            count="How many things are there?",
            read="What is written here?",
        ),
        "ru": Tasks(
            describe="Опиши картинку.",
            find="Где {thing}?",
            count="Сколько здесь предметов?",
            read="Что здесь написано?",
        ),
    },
)
"""Questions in phrasings that the model was trained with."""


def save_usage(folder: Path) -> None:
    """Put it beside a checkpoint, where `edgevlm export` looks for it."""
    text = json.dumps(dataclasses.asdict(USAGE), indent=2, ensure_ascii=False) + "\n"
    (folder / USAGE_NAME).write_text(text, encoding="utf-8")
