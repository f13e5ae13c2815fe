"""Qwen3.5 (dense): the tower of Qwen3-VL without features of inner layers; attention and gated delta nets."""

from __future__ import annotations

import dataclasses

from edgevlm.export.families import qwen3_vl

FAMILY = dataclasses.replace(
    qwen3_vl.FAMILY,
    # Heads that predict further tokens at once.
    tensors={r"(?:model\.)?mtp\.": "unused.", **qwen3_vl.FAMILY.tensors},
)
