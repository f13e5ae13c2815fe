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


def settings_of(text: PretrainedConfig, kind: str) -> PretrainedConfig:
    """Return the settings of the layers of one kind, such as ``full_attention``.

    Raises:
        ExportError: there are no such layers, or they differ (``per_layer_config``).
    """
    if not text.is_heterogeneous:
        return text
    try:
        found: PretrainedConfig = text.per_layer_config[kind]
    except ValueError as error:
        raise ExportError(
            f"the layers of the language model differ in config.json (per_layer_config), edgevlm exports "
            f"models whose {kind} layers are alike: {error}"
        ) from error
    return found


def head_size(text: PretrainedConfig) -> int:
    """Return the width of one attention head; of the layers that do not slide, if they differ."""
    text = settings_of(text, "full_attention")
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def rotary_size(text: PretrainedConfig) -> int:
    """Return how many dimensions of a head are rotated: all of them, or the first ones.

    The rotary type ``proportional`` rotates all of them, some by the angle 0.
    """
    rope = rope_parameters(text)
    if rope["rope_type"] == "proportional":
        return head_size(text)
    return int(head_size(text) * (rope.get("partial_rotary_factor") or 1.0))


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


def first_sharing_layer(text: PretrainedConfig) -> int:
    """Return the number of the first layer that takes keys and values of an earlier one (Gemma 4).

    It and all after it do; the number of layers if none does.
    """
    return int(text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", None) or 0))


def inner_size(text: PretrainedConfig, layer: int = 0) -> int:
    """Return the width of the feed-forward network of a layer."""
    size = int(text.intermediate_size)
    if getattr(text, "use_double_wide_mlp", False) and layer >= first_sharing_layer(text):
        size *= 2
    if not getattr(text, "block_auto_adjust_ff_dim", False):
        return size
    size = int(2 * size / 3)  # LFM2
    if text.block_ffn_dim_multiplier is None:
        return size
    size = int(text.block_ffn_dim_multiplier * size)
    return -(-size // text.block_multiple_of) * text.block_multiple_of


def kv_heads(text: PretrainedConfig) -> int | list[int]:
    """Return the number of heads of keys and values; of each layer, if layers differ."""
    heads = [int(layer.num_key_value_heads) for layer in text.per_layer_config]
    kinds = getattr(text, "layer_types", None)
    if kinds:
        heads = [
            count if kind.endswith("attention") else 0
            for count, kind in zip(heads, kinds, strict=True)
        ]
    return heads[0] if len(set(heads)) == 1 else heads


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
