"""Yi-VL as its authors published it: LLaVA 1.5 with layer norms in the projector.

transformers has no such projector, so the reference is its LLaVA with the projector of this module.
"""

from __future__ import annotations

import dataclasses

from torch import nn
from transformers import LlavaForConditionalGeneration, PretrainedConfig

from edgevlm.export.families import llava_llama
from edgevlm.export.vision_parts import FeatureLayers


def projector(config: PretrainedConfig) -> nn.Module:
    """Return two linear layers, each followed by a layer norm."""
    width = config.text_config.hidden_size
    return nn.Sequential(
        nn.Linear(config.vision_config.hidden_size, width),
        nn.LayerNorm(width),
        nn.GELU(),
        nn.Linear(width, width),
        nn.LayerNorm(width),
    )


def model(config: PretrainedConfig) -> LlavaForConditionalGeneration:
    """Return the model of the reference."""
    llava = LlavaForConditionalGeneration(config)
    llava.model.multi_modal_projector = projector(config)
    return llava


FAMILY = dataclasses.replace(
    llava_llama.FAMILY,
    tensors={r"model\.mm_projector\.": "connector.", **llava_llama.TENSORS},
    vision=lambda config: FeatureLayers(config, projector(config)),
    model=model,
)
