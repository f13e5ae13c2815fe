"""The vision part of Ovis2: an AIMv2 whose probabilities of visual tokens choose rows of a table."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PretrainedConfig
from transformers.models.ovis2.modeling_ovis2 import Ovis2VisionModel, Ovis2VisualEmbeddingTable

from edgevlm.errors import ExportError

LEARNED_TOKENS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
"""Tokens whose embeddings are rows of the table, in the order of `FramePacking`."""


class VisualTable(nn.Module):
    """A tower that returns probabilities, and the table of embeddings.

    Raises:
        ExportError: the probabilities are not those of a softmax, or the table has another number of rows
            for the places around tiles.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        vision = config.vision_config
        if vision.tokenize_function != "softmax":
            raise ExportError(
                f"tokenize_function in config.json is {vision.tokenize_function!r}; edgevlm exports Ovis2 "
                f"with 'softmax'"
            )
        if vision.num_visual_indicator_tokens != len(LEARNED_TOKENS):
            raise ExportError(
                f"num_visual_indicator_tokens in config.json is {vision.num_visual_indicator_tokens}; "
                f"edgevlm exports Ovis2 with {len(LEARNED_TOKENS)}"
            )
        self.tower = Ovis2VisionModel._from_config(vision)
        self.connector = Ovis2VisualEmbeddingTable(vision.vocab_size, config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return rows ``[n, rows, width]`` for normalized pixels ``[n, 3, height, width]``."""
        words = self.tower(pixels, return_dict=True).pooler_output
        learned = torch.eye(len(LEARNED_TOKENS)).expand(words.shape[0], -1, -1)
        # One product with the whole table. A part of it would be copied for each image.
        probabilities = torch.cat(
            [pad(words, (0, len(LEARNED_TOKENS))), pad(learned, (words.shape[-1], 0))], dim=1
        )
        rows: torch.Tensor = self.connector(probabilities)
        return rows
