"""Idefics3, and the first generation of SmolVLM, whose ``model_type`` is ``idefics3``, too.

A SigLIP tower over tiles, pixel shuffle and one linear layer, and a Llama. Images are split into a grid.
"""

from __future__ import annotations

import functools

from transformers import Idefics3Processor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.idefics3.modeling_idefics3 import (
    Idefics3Connector,
    Idefics3VisionEmbeddings,
    Idefics3VisionTransformer,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family
from edgevlm.export.vision_parts import BucketedPositions

TENSORS = {
    r"model\.vision_model\.": "tower.",
    r"model\.connector\.": "connector.",
    r"model\.text_model\.": "decoder.",
    r"lm_head\.": "head.",
}
WHOLE = "<fake_token_around_image><global-img>{{ image }}<fake_token_around_image>"
IMAGE_TEMPLATE = (
    f"{{% if tiles == 1 %}}{WHOLE}{{% else %}}"
    "{% for row in range(1, rows + 1) %}{% for column in range(1, columns + 1) %}"
    "<fake_token_around_image><row_{{ row }}_col_{{ column }}>{{ image }}{% endfor %}\n{% endfor %}"
    f"\n{WHOLE}{{% endif %}}"
)
"""``get_image_prompt_string`` of ``processing_idefics3.py``."""


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Idefics3Processor:
    """Return transformers' processor."""
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=tokens_per_tile)


FAMILY = Family(
    tensors=TENSORS,
    vision=functools.partial(
        BucketedPositions,
        tower=Idefics3VisionTransformer,
        embeddings=Idefics3VisionEmbeddings,
        connector=Idefics3Connector,
    ),
    image_processor="Idefics3ImageProcessor",
    processor=processor,
    image_template=IMAGE_TEMPLATE,
)
