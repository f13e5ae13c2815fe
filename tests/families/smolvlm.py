"""SmolVLM2: as Idefics3, and videos."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.families.idefics3 import processor_of
from tests.families.row import Row
from tests.support import checkpoints


def smolvlm(folder: Path) -> Path:
    """With the settings of videos, which a published checkpoint has in its ``preprocessor_config.json``."""
    checkpoints.smolvlm(folder)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 96}}
    path.write_text(json.dumps({**settings, "video_sampling": sampling}))
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "SmolVLMProcessor", "image_seq_len": 4})
    )
    return folder


# SmolVLM's own processor needs a video processor; Idefics3's writes the same prompt for images.
ROWS = [
    Row(
        "smolvlm",
        smolvlm,
        "SigLIP over a grid of tiles; Llama; videos",
        processor=processor_of(SmolVLMImageProcessorPil),
        videos=True,
    )
]
