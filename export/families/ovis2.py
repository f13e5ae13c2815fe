"""Ovis2 in transformers' format (repositories that end in ``-hf``): an AIMv2, a visual vocabulary, a Qwen 2.

The tower returns probabilities of visual tokens, and an embedding is the mean of a table by them. Five more
rows of the table stand around and between the tiles of an image.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import Ovis2Processor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.ovis2.modeling_ovis2 import Ovis2VisionModel, Ovis2VisualEmbeddingTable
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.export.families import Family
from edgevlm.manifest import FramePacking

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


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Ovis2Processor:
    """Return transformers' processor.

    Raises:
        ExportError: the tokens have other ids than the configuration says.
    """
    ids = tokenizer.convert_tokens_to_ids(list(LEARNED_TOKENS))
    if ids != list(config.visual_indicator_token_ids):
        raise ExportError(
            f"visual_indicator_token_ids in config.json is {list(config.visual_indicator_token_ids)}, in "
            f"tokenizer.json {', '.join(LEARNED_TOKENS)} are {ids}; they are not of one checkpoint"
        )
    return Ovis2Processor(image_processor, tokenizer, image_seq_length=tokens_per_tile)


FAMILY = Family(
    tensors={
        r"model\.vision_tower\.": "tower.",
        r"model\.visual_embeddings_table\.": "connector.",
        r"model\.language_model\.": "decoder.",
        r"lm_head\.": "head.",
    },
    vision=VisualTable,
    image_processor="Ovis2ImageProcessor",
    processor=processor,
    image_token="<IMG_ATOM>",
    image_placeholder="<image>",
    packing=lambda config: FramePacking(),
    learned_tokens=LEARNED_TOKENS,
)
