"""Idefics3, and SmolVLM's first generation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, Idefics3Processor
from transformers.image_processing_backends import PilBackend
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tests.families.row import Row
from tests.support.checkpoints import idefics3


def processor_of(images: type[PilBackend]) -> Callable[[Path], Any]:
    """Return a builder of Idefics3's processor, with the tokens of a tile by the configuration."""

    def build(checkpoint: Path) -> Any:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        vision = config["vision_config"]
        patches = vision["image_size"] // vision["patch_size"]
        return Idefics3Processor(
            images.from_pretrained(checkpoint),
            AutoTokenizer.from_pretrained(checkpoint),
            image_seq_len=(patches // config["scale_factor"]) ** 2,
            chat_template=(checkpoint / "chat_template.jinja").read_text(encoding="utf-8"),
        )

    return build


ROWS = [
    Row(
        "idefics3",
        idefics3,
        "SigLIP over a grid of tiles; Llama (Idefics3, SmolVLM 2.2B and the first generation)",
        processor=processor_of(Idefics3ImageProcessorPil),
    )
]
