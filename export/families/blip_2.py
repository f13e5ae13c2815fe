"""BLIP-2: a ViT, queries that look at its features (Q-Former), and an OPT as the language model.

llama.cpp has no OPT, so its decoder is an ONNX graph. transformers' processor writes the prompt in code: the
image before the begin token, then the text as it is.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    Blip2Processor,
    Blip2VisionModel,
    PretrainedConfig,
)
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, read_template
from edgevlm.export.qformer import QFormer
from edgevlm.export.vision_parts import LastFeatures
from edgevlm.manifest import Tasks, Usage

TENSORS = {
    r"vision_model\.": "tower.",
    r"(?=(?:query_tokens$|qformer\.|language_projection\.))": "connector.",
    r"language_model\.lm_head\.": "head.",
    r"language_model\.model\.(?:decoder\.)?": "decoder.",
}
USAGE = Usage(
    images="photographs",
    tasks={
        "en": Tasks(
            describe="a photo of",
            count="Question: How many {thing} are in the image? Answer:",
            read="Question: What text is in the image? Answer:",
        )
    },
)
"""Prompts that the authors gave for captions and questions; the model is trained on captions alone."""


def vision(config: PretrainedConfig) -> LastFeatures:
    """Return tower and connector."""
    return LastFeatures(Blip2VisionModel._from_config(config.vision_config), QFormer(config))


class Processor(Blip2Processor):
    """transformers' processor, which writes the prompt in ``__call__``, whatever the chat template is."""

    def apply_chat_template(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        """Return what ``__call__`` takes: the text."""
        (message,) = messages
        return "".join(part.get("text", "") for part in message["content"])


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Processor:
    """Return transformers' processor."""
    return Processor(image_processor, tokenizer, num_query_tokens=tokens_per_tile)


FAMILY = Family(
    tensors=TENSORS,
    vision=vision,
    image_processor="BlipImageProcessor",
    processor=processor,
    # ``__call__`` of ``processing_blip_2.py``: the image, the begin token, the text.
    chat_template=read_template("blip_2"),
    begins_in_template=True,
    usage=lambda repository: USAGE,
)
