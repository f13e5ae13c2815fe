"""Ovis2 in transformers' format (repositories that end in ``-hf``): an AIMv2, a visual vocabulary, a Qwen 2.

The tower returns probabilities of visual tokens, and an embedding is the mean of a table by them. Five more
rows of the table stand around and between the tiles of an image.
"""

from __future__ import annotations

from transformers import Ovis2Processor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.export.families import Family
from edgevlm.export.ovis2_tower import LEARNED_TOKENS, VisualTable
from edgevlm.manifest import FramePacking


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
