"""SmolVLM2: Idefics3's design under its own ``model_type``, still pictures only."""

from __future__ import annotations

import dataclasses
import functools

from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.modeling_smolvlm import (
    SmolVLMConnector,
    SmolVLMVisionEmbeddings,
    SmolVLMVisionTransformer,
)

from edgevlm.export.families import idefics3

# SmolVLMProcessor adds video to Idefics3Processor, and cannot be built without torchvision; for pictures
# both write and compute the same, so Idefics3's stays the one to compare with.
FAMILY = dataclasses.replace(
    idefics3.FAMILY,
    vision=functools.partial(
        idefics3.Idefics3Vision,
        tower=SmolVLMVisionTransformer,
        embeddings=SmolVLMVisionEmbeddings,
        connector=SmolVLMConnector,
    ),
    image_processor=SmolVLMImageProcessorPil,
)
