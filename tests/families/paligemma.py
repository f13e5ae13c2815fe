"""PaliGemma 1 and 2, which answer one question about images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PaliGemmaProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.families.row import IMAGE, Message, Row, text
from tests.support.checkpoints import paligemma, paligemma2

MISSING = "prompts without an image, several turns: the model was not made for them"


def processor(checkpoint: Path) -> Any:
    return PaliGemmaProcessor(
        SiglipImageProcessorPil.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
    )


def questions() -> list[tuple[list[Message], int]]:
    return [
        ([{"role": "user", "content": [*[IMAGE] * count, text(question)]}], count)
        for count, question in ((1, "What is this?"), (2, "answer en Which is larger?\n12 or 345?"))
    ]


ROWS = [
    Row(
        name,
        build,
        works,
        MISSING,
        processor=processor,
        messages=questions,
        single_question=True,
    )
    for name, build, works in (
        ("paligemma", paligemma, "SigLIP; Gemma, attention both ways over the prompt"),
        ("paligemma, Gemma 2", paligemma2, "the same with Gemma 2"),
    )
]
