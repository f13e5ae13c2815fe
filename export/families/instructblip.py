"""InstructBLIP: BLIP-2 whose Q-Former reads the question, too, and a Vicuna as the language model."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import (
    InstructBlipProcessor,
    InstructBlipQFormerModel,
    InstructBlipVisionModel,
    PretrainedConfig,
)
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import CHAT_USAGE, blip_2
from edgevlm.export.qformer import QFormer


class QuestionVision(nn.Module):
    """A ViT, and learned queries that look at its features and at the tokens of the question."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.tower = InstructBlipVisionModel._from_config(config.vision_config)
        self.connector = QFormer(config, InstructBlipQFormerModel)

    def forward(self, pixels: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        """Return embeddings ``[n, queries, width]``.

        Args:
            pixels: normalized, ``[n, 3, height, width]``.
            question: tokens, int64 ``[1, length]``.
        """
        features = self.tower(pixels, return_dict=True).last_hidden_state
        tokens = question.expand(features.shape[0], -1)
        embeddings: torch.Tensor = self.connector(features, input_ids=tokens)
        return embeddings


class Processor(InstructBlipProcessor):
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
    """Return transformers' processor; the tokenizer of the question is put into it later."""
    return Processor(
        image_processor, tokenizer, qformer_tokenizer=tokenizer, num_query_tokens=tokens_per_tile
    )


FAMILY = dataclasses.replace(
    blip_2.FAMILY,
    vision=QuestionVision,
    question_tokens=lambda config: config.qformer_config.max_position_embeddings,
    processor=processor,
    usage=lambda repository: CHAT_USAGE,
)
