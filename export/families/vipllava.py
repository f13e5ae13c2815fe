"""ViP-LLaVA: LLaVA 1.5 with features of several layers and a layer norm before the projector."""

from __future__ import annotations

import dataclasses

from torch import nn
from transformers import PretrainedConfig
from transformers.models.vipllava.modeling_vipllava import VipLlavaMultiModalProjector

from edgevlm.export.families import llava
from edgevlm.export.vision_parts import FeatureLayers


def vision(config: PretrainedConfig) -> nn.Module:
    """Return tower and projector; the class token is never used."""
    return FeatureLayers(config, VipLlavaMultiModalProjector(config), drop_class=True)


FAMILY = dataclasses.replace(llava.FAMILY, vision=vision)
