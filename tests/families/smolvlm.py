"""SmolVLM2: as Idefics3."""

from __future__ import annotations

from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.families.idefics3 import processor_of
from tests.families.row import Row
from tests.support.checkpoints import smolvlm

# SmolVLM's own processor needs a video processor; Idefics3's writes the same prompt.
ROWS = [
    Row(
        "smolvlm",
        smolvlm,
        "SigLIP over a grid of tiles; Llama",
        "video",
        processor=processor_of(SmolVLMImageProcessorPil),
    )
]
