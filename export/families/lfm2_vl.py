"""LFM2-VL: images of their own size, large ones in a grid; a SigLIP 2 and an LFM2 with short convolutions."""

from __future__ import annotations

from transformers import AutoModel, Lfm2VlProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.lfm2_vl.modeling_lfm2_vl import Lfm2VlMultiModalProjector
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, llava
from edgevlm.export.siglip2_tower import Siglip2Tower

IMAGE_TEMPLATE = (
    "<|image_start|>{% for row in range(rows) %}{% for column in range(columns) %}"
    "<|img_row_{{ row + 1 }}_col_{{ column + 1 }}|>{{ image }}{% endfor %}{% endfor %}"
    "{% if tiles > rows * columns %}{{ '<|img_thumbnail|>' if rows }}{{ image }}{% endif %}<|image_end|>"
)


def vision(config: PretrainedConfig) -> Siglip2Tower:
    """Return tower and projector."""
    return Siglip2Tower(
        AutoModel.from_config(config.vision_config), Lfm2VlMultiModalProjector(config)
    )


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Lfm2VlProcessor:
    """Return transformers' processor."""
    return Lfm2VlProcessor(image_processor, tokenizer)


FAMILY = Family(
    tensors={r"(?:model\.)?vision_tower\.(?:vision_model\.)?head\.": "unused.", **llava.TENSORS},
    vision=vision,
    image_processor="Lfm2VlImageProcessor",
    processor=processor,
    image_template=IMAGE_TEMPLATE,
)
