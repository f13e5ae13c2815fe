"""The decoder's pass over rows of tokens with pictures in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import SmolVLMForConditionalGeneration

from training.dialogues import attention
from training.model import TOKENS


def decode(
    model: SmolVLMForConditionalGeneration,
    tokens: Tensor,
    batch: dict[str, Tensor],
    at: Sequence[int],
    hidden: bool = False,
) -> Any:
    """transformers' output of the decoder: its `last_hidden_state` is [rows, length, width].

    `tokens` [rows * len(at), TOKENS, width] are the pictures' tokens; each row's stand at `at`. With
    `hidden`, the output has the layers' inputs as `hidden_states`.
    """
    words = model.model.text_model.embed_tokens(batch["ids"])
    if at:
        pictures = tokens.view(len(words), len(at), TOKENS, -1)
        pieces, start = [], 0
        for i, first in enumerate(at):
            pieces += [words[:, start:first], pictures[:, i]]
            start = first + TOKENS
        words = torch.cat([*pieces, words[:, start:]], dim=1)
    return model.model.text_model(
        inputs_embeds=words,
        attention_mask=attention(batch["owner"]),
        position_ids=batch["positions"],
        use_cache=False,
        output_hidden_states=hidden,
    )
