"""PaliGemma 1 and 2: a SigLIP tower and one linear layer before a Gemma or Gemma 2.

Prompt and images attend to each other both ways. transformers' processor writes the prompt in code, for one
user message with images before the text.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PaliGemmaProcessor, PretrainedConfig, SiglipVisionModel
from transformers.image_processing_backends import PilBackend
from transformers.models.paligemma.modeling_paligemma import PaliGemmaMultiModalProjector
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family
from edgevlm.manifest import Tasks, Usage

TENSORS = {
    r"(?:model\.)?vision_tower\.(?:vision_model\.)?": "tower.",
    r"(?:model\.)?multi_modal_projector\.": "connector.",
    r"(?:language_model\.)?lm_head\.": "head.",
    r"(?:model\.)?language_model\.(?:model\.)?": "decoder.",
}
"""Names differ between releases of transformers; checkpoints exist in each form."""

CHAT_TEMPLATE = """\
{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}
{{ raise_exception('this model answers one question: a single user message, without a system prompt') }}
{%- endif -%}
{%- set question = namespace(begun=false) -%}
{%- for part in messages[0]['content'] -%}
{%- if part['type'] == 'text' -%}
{%- if not question.begun -%}{{ bos_token }}{%- set question.begun = true -%}{%- endif -%}
{{ part['text'] }}
{%- elif question.begun -%}
{{ raise_exception('this model takes its images before the text') }}
{%- else -%}
{{ '<image>' }}
{%- endif -%}
{%- endfor -%}
{%- if not question.begun -%}{{ bos_token }}{%- endif -%}
{{ '\\n' }}"""
"""``prepare_inputs_layout`` of ``processing_paligemma.py``: images, beginning of text, text, newline."""
MIX = {
    "en": Tasks(
        describe="caption en",
        count="answer en how many {thing} are there?",
        read="ocr",
    )
}
"""Prefixes that the mix checkpoints were trained with. Other checkpoints must be trained for a task first. To
``detect`` they answer with location tokens, not in percent."""


def usage(repository: str) -> Usage:
    """Return the tasks of mix checkpoints; those of other checkpoints are not known."""
    mix = "mix" in repository.lower().rpartition("/")[2].split("-")
    return Usage(images="photographs", tasks=MIX if mix else {})


class PaliGemmaVision(nn.Module):
    """Tower and projector."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.tower = SiglipVisionModel._from_config(config.vision_config)
        self.connector = PaliGemmaMultiModalProjector(config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return tokens ``[n, tokens, width]`` for normalized pixels ``[n, 3, height, width]``."""
        hidden = self.tower.encoder(inputs_embeds=self.tower.embeddings(pixels)).last_hidden_state
        tokens: torch.Tensor = self.connector(self.tower.post_layernorm(hidden))
        return tokens


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> PaliGemmaProcessor:
    """Return transformers' processor."""
    image_processor.image_seq_length = tokens_per_tile
    return PaliGemmaProcessor(image_processor, tokenizer)


FAMILY = Family(
    tensors=TENSORS,
    vision=PaliGemmaVision,
    image_processor="SiglipImageProcessor",
    processor=processor,
    attention="prefix",
    # llama.cpp's Gemma multiplies all inputs by sqrt(width), transformers' only the embeddings of text.
    embedding_scale=lambda config: config.text_config.hidden_size**-0.5,
    chat_template=CHAT_TEMPLATE,
    usage=usage,
)
