"""The language models that are covered, and how llama.cpp's differ from transformers'."""

from __future__ import annotations

from dataclasses import dataclass

import gguf
from transformers import PretrainedConfig

from edgevlm.errors import ExportError

NORMS = ("input_layernorm", "post_attention_layernorm")
"""What every layer of every architecture has."""


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp's implementation of a language model differs from transformers'."""

    gguf: gguf.MODEL_ARCH
    activation: str
    rope_halves_interleaved: bool
    """llama.cpp rotates neighbours, transformers halves: rows of q and k change places."""
    norm_offset: float
    """Added to norms' weights (Gemma multiplies by one plus the weight)."""
    untied: bool
    """Whether llama.cpp reads an output layer of its own."""
    norms: tuple[str, ...] = NORMS
    """Of each layer."""


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
"""``model_type`` of the text configuration to what llama.cpp makes of it."""


def find_architecture(config: PretrainedConfig) -> Architecture:
    """Raises:
    ExportError: a language model that is not covered, or a variant that llama.cpp computes otherwise.
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
    """What llama.cpp fixes in code for Gemma 2.

    Raises:
        ExportError: another value in the configuration.
    """
    pattern = ["sliding_attention", "full_attention"] * text.num_hidden_layers
    if text.layer_types != pattern[: text.num_hidden_layers]:
        raise ExportError(
            "layer_types of Gemma 2 must alternate sliding and full attention for llama.cpp"
        )
    largest = text.num_hidden_layers == 46  # by which llama.cpp knows the 27B model
    scalar = text.hidden_size // text.num_attention_heads if largest else text.head_dim
    if text.query_pre_attn_scalar != scalar:
        raise ExportError(
            f"query_pre_attn_scalar is {text.query_pre_attn_scalar}, llama.cpp computes with {scalar}"
        )
    if text.final_logit_softcapping is None or text.attn_logit_softcapping is None:
        raise ExportError("this Gemma 2 has no softcapping, llama.cpp always applies it")


def context_length(config: PretrainedConfig, attention: str) -> int:
    """Positions that the checkpoint was made for.

    A prompt whose positions all see each other is cut by llama.cpp at a sliding window, by transformers
    not: there the window is the limit.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if attention == "prefix" and window is not None:
        return min(int(text.max_position_embeddings), int(window))
    return int(text.max_position_embeddings)


def head_size(text: PretrainedConfig) -> int:
    """Width of one attention head."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
