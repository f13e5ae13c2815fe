"""SmolVLM2: the design of Idefics3 under its own ``model_type``; images only, no video."""

from __future__ import annotations

import dataclasses
import functools

from transformers.models.smolvlm.modeling_smolvlm import (
    SmolVLMConnector,
    SmolVLMVisionEmbeddings,
    SmolVLMVisionTransformer,
)

from edgevlm.export.families import idefics3
from edgevlm.export.vision_parts import BucketedPositions

# SmolVLMProcessor adds video to Idefics3Processor and needs torchvision. For images both do the same, so the
# reference is Idefics3's.
FAMILY = dataclasses.replace(
    idefics3.FAMILY,
    vision=functools.partial(
        BucketedPositions,
        tower=SmolVLMVisionTransformer,
        embeddings=SmolVLMVisionEmbeddings,
        connector=SmolVLMConnector,
    ),
    image_processor="SmolVLMImageProcessor",
)
