"""Mistral Small 3.1, 3.2 and Ministral 3: Pixtral's tower and a learned layer that merges patches."""

from __future__ import annotations

import dataclasses

from transformers import PretrainedConfig
from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector

from edgevlm.export.families import pixtral
from edgevlm.export.pixtral_tower import MergingPixtralTower


def vision(config: PretrainedConfig) -> MergingPixtralTower:
    """Return tower and projector."""
    return MergingPixtralTower(config, Mistral3MultiModalProjector(config))


FAMILY = dataclasses.replace(pixtral.FAMILY, vision=vision)
