"""Pixtral: a LLaVA whose images keep their own size, with a token after each line of embeddings.

The ``model_type`` of such a checkpoint is ``llava``, and that of its vision part ``pixtral``.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.export.families import Family
from edgevlm.export.families.llava import TENSORS
from edgevlm.export.pixtral_processor import BREAK, END, IMAGE, LineProcessor
from edgevlm.export.pixtral_tower import PixtralTower
from edgevlm.manifest import LinesPacking


def vision(config: PretrainedConfig) -> PixtralTower:
    """Return tower and projector.

    Raises:
        ExportError: the configuration drops the first patch of an image.
    """
    if config.vision_feature_select_strategy != "full":
        raise ExportError(
            f"vision_feature_select_strategy in config.json is {config.vision_feature_select_strategy!r}, "
            f"which drops the first patch of each image; for Pixtral it must be 'full'"
        )
    return PixtralTower(config, LlavaMultiModalProjector(config))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> LineProcessor:
    """Return the processor, with sizes of the model."""
    return LineProcessor(image_processor, tokenizer, side_of_embedding(config))


def side_of_embedding(config: PretrainedConfig) -> int:
    """Return the side in pixels of the square that one embedding stands for."""
    return int(config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1))


def image_settings(config: PretrainedConfig) -> dict[str, Any]:
    """Return what the processor tells its image processor: the sides of a tile are multiples of this."""
    side = side_of_embedding(config)
    return {"patch_size": {"height": side, "width": side}}


FAMILY = Family(
    tensors=TENSORS,
    vision=vision,
    image_processor="PixtralImageProcessor",
    image_settings=image_settings,
    processor=processor,
    image_template=(
        "{% for line in range(spans) %}{{ image }}"
        f"{{{{ '{END}' if loop.last else '{BREAK}' }}}}{{% endfor %}}"
    ),
    image_token=IMAGE,
    packing=lambda config: LinesPacking(),
)
