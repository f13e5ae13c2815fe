"""PaliGemma 1 and 2: a SigLIP tower and one linear layer before a Gemma or Gemma 2.

Prompt and images attend to each other both ways. transformers' processor writes the prompt in code, for one
user message with images before the text.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoModel, PaliGemmaProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.paligemma.modeling_paligemma import PaliGemmaMultiModalProjector
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, llava, read_template
from edgevlm.export.vision_parts import LastFeatures
from edgevlm.manifest import LocTokenFormat, Tasks, Usage

MIX = {
    "en": Tasks(
        describe="caption en",
        detect="detect {thing}",
        count="answer en how many {thing} are there?",
        read="ocr",
    )
}
"""Prefixes that the mix checkpoints were trained with. Other checkpoints must be trained for a task first."""


def usage(repository: str) -> Usage:
    """Return the tasks of mix checkpoints; those of other checkpoints are not known."""
    mix = "mix" in repository.lower().rpartition("/")[2].split("-")
    location_format = LocTokenFormat(bins=1024)
    return Usage(images="photographs", location_format=location_format, tasks=MIX if mix else {})


def vision(config: PretrainedConfig) -> LastFeatures:
    """Return tower and projector."""
    return LastFeatures(
        AutoModel.from_config(config.vision_config), PaliGemmaMultiModalProjector(config)
    )


class Processor(PaliGemmaProcessor):
    """transformers' processor, which writes the prompt in ``__call__``, whatever the chat template is."""

    def apply_chat_template(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        """Return what ``__call__`` takes: a place for each image, and the text."""
        (message,) = messages
        return "".join(part.get("text", "<image>") for part in message["content"])


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Processor:
    """Return transformers' processor."""
    image_processor.image_seq_length = tokens_per_tile
    return Processor(image_processor, tokenizer)


FAMILY = Family(
    tensors=llava.TENSORS,
    vision=vision,
    image_processor="SiglipImageProcessor",
    processor=processor,
    attention="prefix",
    # llama.cpp's Gemma multiplies all inputs by sqrt(width), transformers' only the embeddings of text.
    embedding_scale=lambda config: config.text_config.hidden_size**-0.5,
    # ``prepare_inputs_layout`` of ``processing_paligemma.py``: images, beginning of text, text, newline.
    chat_template=read_template("paligemma"),
    usage=usage,
)
