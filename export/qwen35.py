"""Qwen3.5, a hybrid of attention layers and gated delta nets, as llama.cpp computes it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from gguf import GGUFWriter
from transformers import PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export.mrope import check_interleaved, write_mrope
from edgevlm.export.text_settings import check_layer_types, head_size

DELTA_NET, ATTENTION = "linear_attention", "full_attention"
"""Types of the layers."""
EPSILON = 1e-6
"""transformers' epsilon for queries and keys of delta nets; llama.cpp takes that of the norms."""
_EVERY_LAYER = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
_DELTA_NET_LAYER = (
    "linear_attn.in_proj_qkv.weight",
    "linear_attn.in_proj_z.weight",
    "linear_attn.in_proj_a.weight",
    "linear_attn.in_proj_b.weight",
    "linear_attn.out_proj.weight",
    "linear_attn.conv1d.weight",
    "linear_attn.norm.weight",
    "linear_attn.A_log",
    "linear_attn.dt_bias",
)
_ATTENTION_LAYER = (
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
)


def qwen35_layer(text: PretrainedConfig, layer: int) -> tuple[str, ...]:
    """Return the names of the tensors of a layer."""
    delta_net = text.layer_types[layer] == DELTA_NET
    return (*_EVERY_LAYER, *(_DELTA_NET_LAYER if delta_net else _ATTENTION_LAYER))


def qwen35_shapes(text: PretrainedConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes that other language models do not have. Queries have a gate beside them."""
    size, values = text.hidden_size, text.linear_num_value_heads
    inner = values * text.linear_value_head_dim
    channels = inner + 2 * text.linear_num_key_heads * text.linear_key_head_dim
    return {
        "self_attn.q_proj": (2 * text.num_attention_heads * head_size(text), size),
        "in_proj_qkv": (channels, size),
        "in_proj_z": (inner, size),
        "in_proj_a": (values, size),
        "in_proj_b": (values, size),
        "out_proj": (size, inner),
        "conv1d": (channels, 1, text.linear_conv_kernel_dim),
        "linear_attn.norm": (text.linear_value_head_dim,),
        "linear_attn": (values,),
    }


def check_qwen35(text: PretrainedConfig) -> None:
    """Check the values that llama.cpp fixes in code for Qwen3.5.

    Raises:
        ExportError: the configuration has another value.
    """
    check_interleaved(text)
    check_layer_types(text, (DELTA_NET, ATTENTION))
    if text.rms_norm_eps != EPSILON:
        raise ExportError(
            f"rms_norm_eps is {text.rms_norm_eps}, edgevlm exports Qwen3.5 with {EPSILON}"
        )
    keys, values = text.linear_key_head_dim, text.linear_value_head_dim
    if keys != values:
        raise ExportError(
            f"linear_key_head_dim is {keys} and linear_value_head_dim {values}, llama.cpp computes equal ones"
        )
    if text.linear_num_value_heads % text.linear_num_key_heads:
        raise ExportError(
            f"linear_num_value_heads is {text.linear_num_value_heads}, no multiple of linear_num_key_heads "
            f"{text.linear_num_key_heads}"
        )


def write_qwen35(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write M-RoPE's sections, the sizes of the delta nets, and which layers they are."""
    text = config.get_text_config()
    write_mrope(writer, config)
    writer.add_ssm_conv_kernel(text.linear_conv_kernel_dim)
    writer.add_ssm_state_size(text.linear_key_head_dim)
    writer.add_ssm_group_count(text.linear_num_key_heads)
    writer.add_ssm_time_step_rank(text.linear_num_value_heads)
    writer.add_ssm_inner_size(text.linear_num_value_heads * text.linear_value_head_dim)
    recurrent = [kind == DELTA_NET for kind in text.layer_types]
    writer.add_array("qwen35.attention.recurrent_layers", recurrent)


def adapt_qwen35(tensor: torch.Tensor, name: str, text: PretrainedConfig) -> torch.Tensor:
    """Convert a weight of a delta net: the decay, and the order of the value heads.

    In transformers the value heads of one key head follow each other. In llama.cpp the key heads take turns.
    """
    if ".linear_attn." not in name:
        return tensor
    size, part = text.linear_value_head_dim, name.partition(".linear_attn.")[2]
    if part == "A_log":
        return _by_turns(-torch.exp(tensor.float()), text, 1)
    if part == "dt_bias" or part.startswith(("in_proj_a", "in_proj_b")):
        return _by_turns(tensor, text, 1)
    if part.startswith("in_proj_z"):
        return _by_turns(tensor, text, size)
    if part.startswith(("in_proj_qkv", "conv1d")):
        others = 2 * text.linear_num_key_heads * text.linear_key_head_dim
        return torch.cat([tensor[:others], _by_turns(tensor[others:], text, size)])
    if part.startswith("out_proj"):
        return _by_turns(tensor.T, text, size).T.contiguous()
    return tensor


def _by_turns(tensor: torch.Tensor, text: PretrainedConfig, size: int) -> torch.Tensor:
    """Reorder value heads of `size` rows each, ``[heads * size, ...]``."""
    split = tensor.reshape(text.linear_num_key_heads, -1, size, *tensor.shape[1:])
    return split.swapaxes(0, 1).reshape(tensor.shape)
