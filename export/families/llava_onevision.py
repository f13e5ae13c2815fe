"""LLaVA-OneVision: LLaVA-NeXT with SigLIP and Qwen 2, and large grids are shrunk; images only, no video."""

from __future__ import annotations

import re

from torch import nn
from transformers import LlavaOnevisionProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionMultiModalProjector,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.export.families import Family, images_only, llava
from edgevlm.export.vision_parts import FeatureLayers, check_grid
from edgevlm.manifest import UnpadPacking


def vision(config: PretrainedConfig) -> nn.Module:
    """Return tower, projector and the vector that ends a line."""
    return FeatureLayers(config, LlavaOnevisionMultiModalProjector(config), newline=True)


def packing(config: PretrainedConfig) -> UnpadPacking:
    """Return the packing; ``anyres_max_9`` shrinks grids of more than the area of 9 tiles.

    Raises:
        ExportError: ``vision_aspect_ratio`` has another form, for which transformers has no rule.
    """
    found = re.fullmatch(r"anyres_max_([1-9]\d?)", config.vision_aspect_ratio)
    if found is None:
        raise ExportError(
            f"vision_aspect_ratio in config.json is {config.vision_aspect_ratio!r}; edgevlm can export "
            f"anyres_max_N with a number of tiles N, such as anyres_max_9"
        )
    return UnpadPacking(max_tiles=int(found[1]))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> LlavaOnevisionProcessor:
    """Return transformers' processor, with settings that give the tokens of the model."""
    check_grid(image_processor, config, tokens_per_tile)
    return images_only(LlavaOnevisionProcessor)(
        image_processor,
        tokenizer,
        num_image_tokens=tokens_per_tile,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=config.vision_aspect_ratio,
    )


FAMILY = Family(
    tensors=llava.TENSORS,
    vision=vision,
    image_processor="LlavaOnevisionImageProcessor",
    processor=processor,
    packing=packing,
)
