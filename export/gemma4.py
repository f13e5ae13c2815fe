"""Gemma 4 E2B and E4B, whose layers each have an embedding of the token, as llama.cpp computes them.

The last layers take the keys and values of the last sliding and the last full layer before them.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguf import GGUFWriter
from transformers import PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export.text_settings import (
    check_layer_types,
    first_sharing_layer,
    head_size,
    positive,
    settings_of,
)

SLIDING, FULL = "sliding_attention", "full_attention"
"""Types of the layers."""
PADDING = 0
"""Token whose embeddings of the layers llama.cpp takes for images. transformers takes ``pad_token_id``."""
GEMMA4_TABLES = (
    "embed_tokens_per_layer.weight",
    "per_layer_model_projection.weight",
    "per_layer_projection_norm.weight",
)
"""Tensors of the embeddings of all layers."""
_KEYS_AND_VALUES = (
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.k_norm.weight",
)
_EVERY_LAYER = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "pre_feedforward_layernorm.weight",
    "post_feedforward_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.q_norm.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "per_layer_input_gate.weight",
    "per_layer_projection.weight",
    "post_per_layer_input_norm.weight",
    "layer_scalar",
)


def gemma4_layer(text: PretrainedConfig, layer: int) -> tuple[str, ...]:
    """Return the names of the tensors of a layer."""
    return (
        _EVERY_LAYER if layer >= first_sharing_layer(text) else (*_EVERY_LAYER, *_KEYS_AND_VALUES)
    )


def gemma4_unused(text: PretrainedConfig, layer: int) -> tuple[str, ...]:
    """Return the names of tensors of a layer that published files have, although nothing reads them."""
    return _KEYS_AND_VALUES if layer >= first_sharing_layer(text) else ()


def gemma4_shapes(text: PretrainedConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes that other language models do not have."""
    size, inner, layers = (
        text.hidden_size,
        text.hidden_size_per_layer_input,
        text.num_hidden_layers,
    )
    return {
        "embed_tokens_per_layer": (text.vocab_size, layers * inner),
        "per_layer_model_projection": (layers * inner, size),
        "per_layer_projection_norm": (inner,),
        "per_layer_input_gate": (inner, size),
        "per_layer_projection": (size, inner),
        "layer_scalar": (1,),
    }


def check_gemma4(text: PretrainedConfig) -> None:
    """Check that this is an E2B or an E4B, and the values that llama.cpp fixes in code.

    Raises:
        ExportError: the configuration has another value.
    """
    check_layer_types(text, (SLIDING, FULL))
    for name, wanted, reason in (
        ("enable_moe_block", False, "without experts"),
        ("use_bidirectional_attention", False, "whose images are causal"),
        ("attention_k_eq_v", False, "whose keys and values have weights of their own"),
        ("hidden_size_per_layer_input", True, "with embeddings for each layer"),
    ):
        if bool(getattr(text, name)) != wanted:
            raise ExportError(
                f"{name} is {getattr(text, name)!r}, edgevlm exports the sizes of Gemma 4 {reason} (E2B, E4B)"
            )
    for name, value in (
        ("vocab_size_per_layer_input", text.vocab_size),
        ("pad_token_id", PADDING),
    ):
        if getattr(text, name) != value:
            raise ExportError(f"{name} is {getattr(text, name)}, llama.cpp computes with {value}")
    rope = text.rope_parameters[SLIDING]["rope_type"]
    if rope != "default":
        raise ExportError(
            f"the sliding layers have rotary scaling of type {rope!r}, llama.cpp computes 'default'"
        )
    first = first_sharing_layer(text)
    shared = text.layer_types[max(first - 2, 0) : first]
    if first < text.num_hidden_layers and shared != [SLIDING, FULL]:
        raise ExportError(
            f"num_kv_shared_layers is {text.num_kv_shared_layers}, so layers of the types {shared} are the "
            f"last with keys and values of their own; llama.cpp computes {[SLIDING, FULL]}"
        )


def write_gemma4(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write the sliding layers, the layers that share keys and values, and the embeddings of the layers."""
    text = config.get_text_config()
    head = head_size(settings_of(text, SLIDING))
    writer.add_sliding_window(int(positive("sliding_window", text.sliding_window)))
    writer.add_sliding_window_pattern([kind == SLIDING for kind in text.layer_types])
    writer.add_key_length_swa(head)
    writer.add_value_length_swa(head)
    writer.add_rope_dimension_count_swa(head)
    theta = text.rope_parameters[SLIDING].get("rope_theta")
    writer.add_rope_freq_base_swa(positive("rope_theta of sliding layers", theta))
    writer.add_shared_kv_layers(text.num_hidden_layers - first_sharing_layer(text))
    writer.add_embedding_length_per_layer_input(text.hidden_size_per_layer_input)
    if text.final_logit_softcapping is not None:
        cap = positive("final_logit_softcapping", text.final_logit_softcapping)
        writer.add_final_logit_softcapping(cap)
