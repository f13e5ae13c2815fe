"""Settings of a text configuration that several modules read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from edgevlm.errors import ExportError

LARGEST = 2**31 - 1
"""Largest number in the header of a GGUF file; a larger one is a mistake."""


def positive(name: str, value: object) -> int | float:
    """Return a number of the text configuration.

    Raises:
        ExportError: it is not a positive number.
    """
    if not isinstance(value, (int, float)) or not 0 < value <= LARGEST:
        raise ExportError(
            f"the language model's {name} is {value!r} in config.json; it must be a positive number"
        )
    return value


def head_size(text: PretrainedConfig) -> int:
    """Return the width of one attention head."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def rope_parameters(text: PretrainedConfig) -> Mapping[str, Any]:
    """Return the settings of the rotary embeddings; those of the layers that do not slide, if they differ."""
    parameters: Mapping[str, Any] = text.rope_parameters
    full: Mapping[str, Any] = parameters.get("full_attention", parameters)
    return full
