"""Advice about ``model_type``s that cannot be exported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

PAGE = "https://github.com/edgevlm/edgevlm/blob/main/docs/design/add-a-family.md"
"""The page of the documentation about adding a family."""

TRANSFORMERS_FORMAT = "the same models in transformers' format, from a repository that ends in -hf"
TIMM_TOWER = "its tower is part of timm, which needs torchvision, and the export works without both"
ALTERNATIVES: Mapping[str, tuple[str, str]] = {
    "internvl_chat": ("internvl", TRANSFORMERS_FORMAT),
    "llava_qwen": ("llava_onevision", TRANSFORMERS_FORMAT),
    "llava_mistral": ("llava_next", TRANSFORMERS_FORMAT),
    "GOT": ("got_ocr2", TRANSFORMERS_FORMAT),
    "ovis": ("ovis2", TRANSFORMERS_FORMAT),
    "cohere2": ("aya_vision or cohere2_vision", "this one has no vision part"),
    "multi_modality": (
        "deepseek_vl or janus",
        "the same models in transformers' format, from repositories of deepseek-community",
    ),
    "deepseek_vl_hybrid": ("deepseek_vl", "this one has a second tower for images of another size"),
    "gemma3_text": ("gemma3", "this one has no vision part; those of 4B and more have one"),
    "gemma4_text": ("gemma4", "this one has no vision part"),
    "gemma4_unified": ("gemma4", "E2B and E4B; this one has no vision tower"),
    "gemma3n": ("gemma4", TIMM_TOWER),
    "fast_vlm": ("smolvlm", TIMM_TOWER),
    "llava_qwen2": ("smolvlm", "this is FastVLM, whose tower transformers takes from timm"),
    "pixtral": (
        "llava",
        "this is a vision part alone; Pixtral 12B is a llava with this vision part",
    ),
    "minicpmv4_7": (
        "minicpmv4_6",
        "in 4.7 an image, its slices and the tokens between them share one grid of positions, by which "
        "llama.cpp would mask what transformers does not",
    ),
    "minicpmv": (
        "minicpmv4_6",
        "earlier models of MiniCPM-V need code of their own; 4.6 is part of transformers",
    ),
    "minicpmo": (
        "minicpmv4_6",
        "MiniCPM-o needs code of its own; MiniCPM-V 4.6 is part of transformers",
    ),
    "ministral3": ("mistral3", "this one has no vision part"),
}
"""A ``model_type`` that people ask for, to what can be exported in its place and why."""


def find_alternative(model_type: str, known: Sequence[str]) -> str:
    """Return what to export in place of a ``model_type``, and where adding one is described.

    Args:
        known: the ``model_type``s that can be exported.
    """
    if model_type in ALTERNATIVES:
        name, reason = ALTERNATIVES[model_type]
        found = f"take {name} ({reason})"
    else:
        (name,) = difflib.get_close_matches(model_type, known, n=1, cutoff=0.0)
        found = f"the nearest name is {name!r}"
    return f"{found}; edgevlm exports {', '.join(known)}, and {PAGE} says how to add a family"
