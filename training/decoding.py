"""Forward pass of the decoder over rows of tokens with images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import SmolVLMForConditionalGeneration

from training.dialogues import attention_mask
from training.model import TOKENS


def decode(
    model: SmolVLMForConditionalGeneration,
    tokens: Tensor,
    batch: dict[str, Tensor],
    at: Sequence[int],
    hidden: bool = False,
) -> Any:
    """Return transformers' output of the decoder; `last_hidden_state` is [rows, length, width].

    Args:
        model: the model.
        tokens: the images' tokens, [rows * len(at), TOKENS, width].
        batch: `ids`, `positions` and `owner` of the rows.
        at: the position at which each image starts in every row.
        hidden: also return the layers' inputs as `hidden_states`.
    """
    words = model.model.text_model.embed_tokens(batch["ids"])
    if at:
        images = tokens.view(len(words), len(at), TOKENS, -1)
        pieces, start = [], 0
        for i, first in enumerate(at):
            pieces += [words[:, start:first], images[:, i]]
            start = first + TOKENS
        words = torch.cat([*pieces, words[:, start:]], dim=1)
    return model.model.text_model(
        inputs_embeds=words,
        attention_mask=attention_mask(batch["owner"]),
        position_ids=batch["positions"],
        use_cache=False,
        output_hidden_states=hidden,
    )
