"""Gemma 3: a SigLIP tower, an average over blocks of patches, and a Gemma 3.

An image attends to itself both ways. Text goes into llama.cpp as tokens alone, since it scales only those.
"""

from __future__ import annotations

from transformers import AutoModel, Gemma3Processor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family
from edgevlm.export.families.llava import TENSORS
from edgevlm.export.vision_parts import LastFeatures

IMAGE = "\n\n<start_of_image>{{ image }}<end_of_image>\n\n"
IMAGE_TEMPLATE = (
    f"{{% if tiles == 1 %}}{IMAGE}{{% else %}}"
    f"Here is the original image {IMAGE} and here are some crops to help you see better "
    f"{{% for crop in range(tiles - 1) %}}{{{{ ' ' if not loop.first }}}}{IMAGE}{{% endfor %}}{{% endif %}}"
)
"""``replace_image_token`` of ``processing_gemma3.py``; more tiles than one come from pan and scan."""


def vision(config: PretrainedConfig) -> LastFeatures:
    """Return tower and projector."""
    return LastFeatures(
        AutoModel.from_config(config.vision_config), Gemma3MultiModalProjector(config)
    )


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Gemma3Processor:
    """Return transformers' processor, which does as the image processor's settings say.

    By itself it would turn off pan and scan unless each call asks for it.
    """
    made = Gemma3Processor(image_processor, tokenizer, image_seq_length=tokens_per_tile)
    made.images_kwargs = {}
    return made


FAMILY = Family(
    tensors=TENSORS,
    vision=vision,
    image_processor="Gemma3ImageProcessor",
    processor=processor,
    image_template=IMAGE_TEMPLATE,
    image_token="<image_soft_token>",
    image_placeholder="<start_of_image>",
    attention="images",
    text_embedding_scale=None,
)
