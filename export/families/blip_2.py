"""BLIP-2: a ViT, queries that look at its features (Q-Former), and an OPT as the language model.

llama.cpp has no OPT, so its decoder is an ONNX graph. transformers' processor writes the prompt in code: the
image before the begin token, then the text as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    Blip2Processor,
    Blip2QFormerModel,
    Blip2VisionModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, read_template
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


class QFormer(nn.Module):
    """The connector: learned queries that look at the features of a tile, and a linear layer."""

    def __init__(
        self, config: PretrainedConfig, kind: type[PreTrainedModel] = Blip2QFormerModel
    ) -> None:
        super().__init__()
        width = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, width))
        self.qformer = kind._from_config(config.qformer_config)
        self.language_projection = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor, **question: torch.Tensor) -> torch.Tensor:
        """Return embeddings ``[n, queries, width]``.

        Args:
            features: ``[n, patches + 1, width of the tower]``.
            question: ``input_ids`` of a Q-Former that reads the question, int64 ``[n, length]``.
        """
        queries = self.query_tokens.expand(features.shape[0], -1, -1)
        found = self.qformer(
            query_embeds=queries, encoder_hidden_states=features, return_dict=True, **question
        ).last_hidden_state
        embeddings: torch.Tensor = self.language_projection(found[:, : queries.shape[1]])
        return embeddings


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
