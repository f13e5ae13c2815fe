"""Llama 3.2 Vision: a ViT over up to four tiles, and a Llama with layers of cross-attention.

An image is one token of the prompt. What cross-attention looks at are all rows of the ViT. llama.cpp has no
such layers, so the decoder is an ONNX graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import MllamaProcessor

from edgevlm.export.families import Family
from edgevlm.export.mllama_tower import CanvasVision, rows_of_square
from edgevlm.manifest import CrossPacking

TENSORS = {
    r"(?:model\.)?vision_model\.": "tower.",
    r"(?:model\.)?multi_modal_projector\.": "connector.",
    r"(?:language_model\.)?lm_head\.": "head.",
    r"(?:model\.)?language_model\.(?:model\.)?": "decoder.",
}


def image_features(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return what cross-attention looks at: the rows of the tiles that are there."""
    names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
    states = model.vision_model(**{name: inputs[name] for name in names}).last_hidden_state
    rows: torch.Tensor = model.multi_modal_projector(states)[inputs["aspect_ratio_mask"].bool()]
    return rows.flatten(0, 1)


FAMILY = Family(
    tensors=TENSORS,
    vision=CanvasVision,
    image_processor="MllamaImageProcessor",
    processor=lambda image_processor, tokenizer, config, tokens: MllamaProcessor(
        image_processor, tokenizer
    ),
    image_token="<|image|>",
    packing=lambda config: CrossPacking(rows_of_square(config)),
    attention="cross",
    image_features=image_features,
)
