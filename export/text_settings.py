"""Settings of a text configuration that several modules read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


def rotary_size(text: PretrainedConfig) -> int:
    """Return how many dimensions of a head are rotated: all of them, or the first ones."""
    return int(head_size(text) * (rope_parameters(text).get("partial_rotary_factor") or 1.0))


def check_layer_types(text: PretrainedConfig, kinds: Collection[str]) -> None:
    """Check the layers of a hybrid.

    Raises:
        ExportError: there are others than these, or none of one of them.
    """
    if others := sorted({*text.layer_types} - {*kinds}):
        raise ExportError(
            f"the language model has layers of type {others[0]!r}; llama.cpp computes {' and '.join(kinds)}"
        )
    for kind in kinds:
        if kind not in text.layer_types:
            raise ExportError(
                f"the language model has no layer of type {kind!r}, llama.cpp's {text.model_type} has some"
            )


def inner_size(text: PretrainedConfig) -> int:
    """Return the width of the feed-forward networks."""
    size = int(text.intermediate_size)
    if not getattr(text, "block_auto_adjust_ff_dim", False):
        return size
    size = int(2 * size / 3)  # LFM2
    if text.block_ffn_dim_multiplier is None:
        return size
    size = int(text.block_ffn_dim_multiplier * size)
    return -(-size // text.block_multiple_of) * text.block_multiple_of


def kv_heads(text: PretrainedConfig) -> int | list[int]:
    """Return the number of heads of keys and values; of each layer, if some layers have no attention."""
    heads = int(text.num_key_value_heads)
    kinds = getattr(text, "layer_types", None) or []
    if all(kind.endswith("attention") for kind in kinds):
        return heads
    return [heads if kind.endswith("attention") else 0 for kind in kinds]


def norm_epsilon(text: PretrainedConfig) -> int | float:
    """Return the epsilon of the norms."""
    name = next(
        name for name in ("rms_norm_eps", "norm_eps", "layer_norm_eps") if hasattr(text, name)
    )
    return positive(name, getattr(text, name))


def rope_parameters(text: PretrainedConfig) -> Mapping[str, Any]:
    """Return the settings of the rotary embeddings; those of the layers that do not slide, if they differ."""
    parameters: Mapping[str, Any] = text.rope_parameters
    full: Mapping[str, Any] = parameters.get("full_attention", parameters)
    return full
