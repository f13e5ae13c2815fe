"""LFM2, a hybrid of attention layers and short convolutions, as llama.cpp computes it."""

from __future__ import annotations

from collections.abc import Mapping

from gguf import GGUFWriter
from transformers import PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export.text_settings import check_layer_types, head_size, inner_size

CONVOLUTION, ATTENTION = "conv", "full_attention"
"""Types of the layers."""
_EVERY_LAYER = (
    "operator_norm.weight",
    "ffn_norm.weight",
    "feed_forward.w1.weight",
    "feed_forward.w2.weight",
    "feed_forward.w3.weight",
)
_CONVOLUTION_LAYER = ("conv.conv.weight", "conv.in_proj.weight", "conv.out_proj.weight")
_ATTENTION_LAYER = (
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.out_proj.weight",
    "self_attn.q_layernorm.weight",
    "self_attn.k_layernorm.weight",
)


def lfm2_layer(text: PretrainedConfig, layer: int) -> tuple[str, ...]:
    """Return the names of the tensors of a layer."""
    convolution = text.layer_types[layer] == CONVOLUTION
    return (*_EVERY_LAYER, *(_CONVOLUTION_LAYER if convolution else _ATTENTION_LAYER))


def lfm2_shapes(text: PretrainedConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes that other language models do not have."""
    size, inner, head = text.hidden_size, inner_size(text), head_size(text)
    return {
        "q_layernorm": (head,),
        "k_layernorm": (head,),
        "w1": (inner, size),
        "w2": (size, inner),
        "w3": (inner, size),
        "in_proj": (3 * size, size),
        "out_proj": (size, size),
        "conv": (size, 1, text.conv_L_cache),
    }


def check_lfm2(text: PretrainedConfig) -> None:
    """Check the types of the layers and the length of the convolutions.

    Raises:
        ExportError: llama.cpp does not compute them.
    """
    check_layer_types(text, (CONVOLUTION, ATTENTION))
    if text.conv_L_cache < 2:
        raise ExportError(f"conv_L_cache is {text.conv_L_cache}, llama.cpp computes 2 or more")


def write_lfm2(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write the length of the convolutions."""
    writer.add_shortconv_l_cache(config.get_text_config().conv_L_cache)
