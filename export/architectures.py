"""The supported language models, and how llama.cpp's differ from transformers'."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
from transformers import PretrainedConfig

from edgevlm.errors import ExportError

NORMS = ("input_layernorm", "post_attention_layernorm")
"""Norms of each layer, in every architecture."""


@dataclass(frozen=True)
class Architecture:
    """Differences between the implementations of a language model in llama.cpp and transformers."""

    gguf: gguf.MODEL_ARCH
    activation: str
    rope_halves_interleaved: bool
    """True if llama.cpp rotates neighbouring rows where transformers rotates halves; rows of q and k move."""
    norm_offset: float
    """Offset of the weights of norms. Gemma multiplies by one plus the weight."""
    untied: bool
    """True if llama.cpp reads a separate output layer."""
    norms: tuple[str, ...] = NORMS
    """Norms of each layer."""


ARCHITECTURES = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, "silu", True, 0.0, True),
    "gemma": Architecture(gguf.MODEL_ARCH.GEMMA, "gelu_pytorch_tanh", False, 1.0, False),
    "gemma2": Architecture(
        gguf.MODEL_ARCH.GEMMA2,
        "gelu_pytorch_tanh",
        False,
        1.0,
        False,
        (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}
"""``model_type`` of the text configuration to its architecture."""


def find_architecture(config: PretrainedConfig) -> Architecture:
    """Return the architecture of the language model.

    Raises:
        ExportError: the language model is not supported, or llama.cpp computes this variant differently.
    """
    text = config.get_text_config()
    if text.model_type not in ARCHITECTURES:
        raise ExportError(
            f"language models of type {text.model_type!r} cannot be exported; edgevlm exports "
            f"{', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[text.model_type]
    activation = getattr(text, "hidden_activation", None) or text.hidden_act
    if activation != architecture.activation:
        raise ExportError(
            f"the language model's activation is {activation!r}, llama.cpp computes "
            f"{architecture.activation!r}"
        )
    if text.model_type == "gemma2":
        check_gemma2(text)
    return architecture


def check_gemma2(text: PretrainedConfig) -> None:
    """Check the values that llama.cpp fixes in code for Gemma 2.

    Raises:
        ExportError: the configuration has another value.
    """
    pattern = ["sliding_attention", "full_attention"] * text.num_hidden_layers
    if text.layer_types != pattern[: text.num_hidden_layers]:
        raise ExportError(
            "layer_types of Gemma 2 must alternate sliding and full attention for llama.cpp"
        )
    largest = text.num_hidden_layers == 46  # llama.cpp recognizes the 27B model by this
    scalar = text.hidden_size // text.num_attention_heads if largest else text.head_dim
    if text.query_pre_attn_scalar != scalar:
        raise ExportError(
            f"query_pre_attn_scalar is {text.query_pre_attn_scalar}, llama.cpp computes with {scalar}"
        )
    if text.final_logit_softcapping is None or text.attn_logit_softcapping is None:
        raise ExportError("this Gemma 2 has no softcapping, llama.cpp always applies it")


def context_length(config: PretrainedConfig, attention: str) -> int:
    """Return the context length that the checkpoint was trained for.

    For attention over a whole prompt, llama.cpp applies the sliding window and transformers does not, so the
    window is the limit.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if attention == "prefix" and window is not None:
        return min(int(text.max_position_embeddings), int(window))
    return int(text.max_position_embeddings)


def head_size(text: PretrainedConfig) -> int:
    """Return the width of one attention head."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
