"""Command A Vision: a grid of tiles with a token after each, and a Cohere 2."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import (
    AutoTokenizer,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionProcessor,
)

from edgevlm.export.cohere2_images import Cohere2VisionImageProcessorPil
from edgevlm.export.families.cohere2_vision import NAMED_TOKENS
from tests.families.aya_vision import (
    IMAGE_PROCESSOR,
    IMAGE_TOKENS,
    RESPONSE_TOKENS,
    SIGLIP,
    SIZES,
    SPECIAL,
    TEMPLATE,
    cohere2_config,
)
from tests.families.row import Row, save
from tests.families.tokenizers import cohere_tokenizer


def cohere2_vision(folder: Path) -> Path:
    tokenizer = cohere_tokenizer([*IMAGE_TOKENS, *RESPONSE_TOKENS])
    config = Cohere2VisionConfig(
        vision_config={"model_type": "siglip_vision_model", **SIGLIP},
        text_config=cohere2_config(tokenizer),
        image_token_id=tokenizer.token_to_id("<|IMG_PATCH|>"),
        alignment_intermediate_size=96,
    )
    return save(
        folder,
        Cohere2VisionForConditionalGeneration(config),
        tokenizer,
        {
            "image_processor_type": "Cohere2VisionImageProcessorFast",
            **IMAGE_PROCESSOR,
            "patch_size": 2,
        },
        special={**SPECIAL, **NAMED_TOKENS},
        template=TEMPLATE.replace("IMAGE", "<|IMG_PATCH|>"),
        end="<|END_OF_TURN_TOKEN|>",
        processor={"processor_class": "Cohere2VisionProcessor"},
    )


def load_processor(checkpoint: Path) -> Cohere2VisionProcessor:
    """transformers' processor; `tests/reference/test_scaled_grid.py` compares the image processor."""
    settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
    return Cohere2VisionProcessor(
        Cohere2VisionImageProcessorPil.from_dict(settings),
        AutoTokenizer.from_pretrained(checkpoint),
        chat_template=(checkpoint / "chat_template.jinja").read_text(encoding="utf-8"),
    )


ROWS = [
    Row(
        "cohere2_vision",
        cohere2_vision,
        "SigLIP over a grid of tiles; Cohere 2, its logits not scaled (Command A Vision)",
        "pixels may differ by one gray level from torchvision's",
        processor=load_processor,
        sizes=SIZES,
    )
]
