"""LFM2, a hybrid of attention layers and short convolutions, as llama.cpp computes it."""

from __future__ import annotations

from gguf import GGUFWriter
from transformers import PretrainedConfig

from edgevlm.errors import ExportError

CONVOLUTION = "conv"
"""Type of the layers without attention."""
_EVERY_LAYER = (
    "operator_norm",
    "ffn_norm",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
)
_CONVOLUTION_LAYER = ("conv.conv", "conv.in_proj", "conv.out_proj")
_ATTENTION_LAYER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "self_attn.q_layernorm",
    "self_attn.k_layernorm",
)


def lfm2_layer(text: PretrainedConfig, layer: int) -> tuple[str, ...]:
    """Return the names of the weights of a layer."""
    convolution = text.layer_types[layer] == CONVOLUTION
    return (*_EVERY_LAYER, *(_CONVOLUTION_LAYER if convolution else _ATTENTION_LAYER))


def check_lfm2(text: PretrainedConfig) -> None:
    """Check the types of the layers and the length of the convolutions.

    Raises:
        ExportError: llama.cpp does not compute them.
    """
    others = set(text.layer_types) - {CONVOLUTION, "full_attention"}
    if others:
        raise ExportError(
            f"the language model has layers of type {sorted(others)[0]!r}; llama.cpp computes "
            f"{CONVOLUTION} and full_attention"
        )
    for kind in (CONVOLUTION, "full_attention"):
        if kind not in text.layer_types:
            raise ExportError(
                f"the language model has no layer of type {kind!r}, llama.cpp needs one"
            )
    if text.conv_L_cache < 2:
        raise ExportError(f"conv_L_cache is {text.conv_L_cache}, llama.cpp computes 2 or more")


def write_lfm2(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write the length of the convolutions."""
    writer.add_shortconv_l_cache(config.get_text_config().conv_L_cache)
