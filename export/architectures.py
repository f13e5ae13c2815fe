"""The supported language models, and how llama.cpp's, if it has them, differ from transformers'.

`ARCHITECTURES` has one short definition for each ``model_type`` of a text configuration. Values that
llama.cpp fixes in code are checked: a checkpoint with another value cannot be exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter
from transformers import PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export.gemma4 import (
    GEMMA4_TABLES,
    check_gemma4,
    gemma4_layer,
    gemma4_shapes,
    gemma4_unused,
    write_gemma4,
)
from edgevlm.export.lfm2 import check_lfm2, lfm2_layer, lfm2_shapes, write_lfm2
from edgevlm.export.ministral3 import check_ministral3, write_ministral3
from edgevlm.export.mrope import check_interleaved, write_mrope, write_qwen3vl
from edgevlm.export.qwen35 import (
    adapt_qwen35,
    check_qwen35,
    qwen35_layer,
    qwen35_shapes,
    write_qwen35,
)
from edgevlm.export.text_settings import head_size, positive

NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA2_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
"""Norms of the queries and keys of each head."""
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = (*QKV, "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
BIAS_SETTINGS = ("attention_bias", "mlp_bias", "conv_bias")
"""Settings of text configurations that add biases."""


@dataclass(frozen=True)
class Architecture:
    """Differences between the implementations of a language model in llama.cpp and transformers."""

    gguf: MODEL_ARCH | None
    """None: llama.cpp has no such language model, and only ONNX graphs can be written."""
    converted: MODEL_ARCH | None = None
    """Architecture that llama.cpp's converter writes for the same weights, if it is another one."""
    activation: str = "silu"
    rope_halves_interleaved: bool = False
    """True if llama.cpp rotates neighbouring rows where transformers rotates halves; rows of q and k move."""
    rope_types: tuple[str, ...] = ("default", "linear")
    """Rotary scalings that llama.cpp computes as transformers does."""
    layer_norms: bool = False
    """True if norms subtract the mean; else they are RMS norms."""
    norm_offset: float = 0.0
    """Offset of the weights of norms. Gemma multiplies by one plus the weight."""
    unanswered_tokens: int = 0
    """Rows of the embedding table that the output layer lacks: tokens that stand in prompts only."""
    untied: bool = True
    """True if llama.cpp reads a separate output layer."""
    norms: tuple[str, ...] = NORMS
    """Norms of each layer."""
    matrices: tuple[str, ...] = (*ATTENTION, *FEED_FORWARD)
    """Matrices of each layer."""
    layer: Callable[[PretrainedConfig, int], tuple[str, ...]] | None = None
    """Returns the names of the tensors of one layer, by its number, where layers differ."""
    unused: Callable[[PretrainedConfig, int], tuple[str, ...]] | None = None
    """Returns the names of tensors of one layer that checkpoints may have, and that nothing reads."""
    tables: tuple[str, ...] = ()
    """Tensors beside the layers, the embeddings, the final norm and the output layer."""
    shapes: Callable[[PretrainedConfig], Mapping[str, tuple[int, ...]]] | None = None
    """Returns the shapes of modules that only this language model has, or has in another shape."""
    adapt: Callable[[torch.Tensor, str, PretrainedConfig], torch.Tensor] | None = None
    """Converts a weight that only this language model has; gets its name in the checkpoint."""
    partial_rotation: bool = False
    """True if llama.cpp can rotate the first dimensions of a head alone."""
    final_norm: str = "norm"
    """Norm before the output layer."""
    biased: tuple[str, ...] = ()
    """Matrices that always have a bias."""
    optional_biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Setting of `BIAS_SETTINGS` to the matrices to which it adds biases, if llama.cpp reads those."""
    free_head_size: bool = True
    """True if llama.cpp accepts heads whose sizes do not add up to the width."""
    window: Callable[[PretrainedConfig], int | None] | None = None
    """Returns the sliding window of the text configuration in positions; None if no layer slides."""
    llama_cpp_slides: bool = False
    """True if llama.cpp computes sliding layers. Else the context is at most as long as the window."""
    check: Callable[[PretrainedConfig], None] | None = None
    """Raises ExportError for a value of the text configuration that llama.cpp fixes in code."""
    write: Callable[[GGUFWriter, PretrainedConfig], None] | None = None
    """Writes the settings that only this language model has; gets the whole configuration."""

    @property
    def gguf_name(self) -> str:
        """llama.cpp's name of the language model; only if it has it."""
        assert self.gguf is not None
        return MODEL_ARCH_NAMES[self.gguf]


def window_of_all_layers(text: PretrainedConfig) -> int | None:
    """Return the sliding window of a model whose layers are all alike; None if they do not slide."""
    if text.sliding_window is None:
        return None
    return int(positive("sliding_window", text.sliding_window))


def window_of_some_layers(text: PretrainedConfig) -> int | None:
    """Return the sliding window of a model that lists the types of its layers.

    Raises:
        ExportError: a layer is of a type that llama.cpp does not compute.
    """
    others = set(text.layer_types) - {"full_attention", "sliding_attention"}
    if others:
        raise ExportError(
            f"the language model has layers of type {sorted(others)[0]!r}; llama.cpp computes "
            f"full_attention and sliding_attention"
        )
    if "sliding_attention" not in text.layer_types:
        return None
    return int(positive("sliding_window", text.sliding_window))


def write_sliding_layers(writer: GGUFWriter, text: PretrainedConfig) -> None:
    """Write the sliding window and which layers slide; nothing if none does."""
    window = window_of_some_layers(text)
    if window is not None:
        writer.add_sliding_window(window)
        slides = [kind == "sliding_attention" for kind in text.layer_types]
        writer.add_sliding_window_pattern(slides)


def check_query_scale(text: PretrainedConfig, largest: int) -> None:
    """Check Gemma's factor of queries, which llama.cpp derives from the sizes.

    Args:
        largest: layers of the 27B model, by which llama.cpp recognizes it.

    Raises:
        ExportError: the configuration has another value.
    """
    is_largest = text.num_hidden_layers == largest
    scalar = text.hidden_size // text.num_attention_heads if is_largest else text.head_dim
    if text.query_pre_attn_scalar != scalar:
        raise ExportError(
            f"query_pre_attn_scalar is {text.query_pre_attn_scalar}, llama.cpp computes with {scalar}"
        )


def check_gemma2(text: PretrainedConfig) -> None:
    """Check the values that llama.cpp fixes in code for Gemma 2."""
    check_query_scale(text, largest=46)
    if text.final_logit_softcapping is None or text.attn_logit_softcapping is None:
        raise ExportError("this Gemma 2 has no softcapping, llama.cpp always applies it")
    if window_of_some_layers(text) is None:
        raise ExportError("this Gemma 2 has no layer with a sliding window, llama.cpp needs one")


def write_gemma2(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write the softcaps and the sliding layers."""
    text = config.get_text_config()
    writer.add_attn_logit_softcapping(text.attn_logit_softcapping)
    writer.add_final_logit_softcapping(text.final_logit_softcapping)
    write_sliding_layers(writer, text)


def check_gemma3(text: PretrainedConfig) -> None:
    """Check the values that llama.cpp fixes in code for Gemma 3."""
    check_query_scale(text, largest=62)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (value := getattr(text, name)) is not None:
            # Gemma3ForConditionalGeneration ignores both, Gemma3ForCausalLM only the first
            raise ExportError(f"{name} is {value}, edgevlm exports Gemma 3 without softcapping")
    if text.use_bidirectional_attention:
        raise ExportError(
            "use_bidirectional_attention is true: this Gemma 3 is an encoder, edgevlm exports decoders"
        )
    local = text.rope_parameters["sliding_attention"]["rope_type"]
    if local != "default":
        raise ExportError(
            f"the sliding layers have rotary scaling of type {local!r}, llama.cpp computes 'default'"
        )


def write_gemma3(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write the sliding layers and the base of their rotary frequencies."""
    text = config.get_text_config()
    write_sliding_layers(writer, text)
    theta = text.rope_parameters["sliding_attention"].get("rope_theta")
    writer.add_rope_freq_base_swa(positive("rope_theta of sliding layers", theta))


def write_granite(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write Granite's four factors. llama.cpp reads zero as "none", transformers as zero.

    ``GraniteForCausalLM`` divides its logits by ``logits_scaling``. The vision-language models of
    transformers that have a Granite, such as ``LlavaNextForConditionalGeneration``, do not.
    """
    text = config.get_text_config()
    scaling = positive("logits_scaling", text.logits_scaling)
    writer.add_logit_scale(scaling if text is config else 1.0)
    writer.add_embedding_scale(positive("embedding_multiplier", text.embedding_multiplier))
    writer.add_attention_scale(positive("attention_multiplier", text.attention_multiplier))
    writer.add_residual_scale(positive("residual_multiplier", text.residual_multiplier))
    writer.add_rope_scaling_finetuned(True)  # false would mean no rotary embeddings


def check_cohere2(text: PretrainedConfig) -> None:
    """Check that a layer slides; the others have no rotary embeddings."""
    if window_of_some_layers(text) is None:
        raise ExportError("this Cohere 2 has no layer with a sliding window, llama.cpp needs one")


def write_cohere2(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write the factor of the logits and the sliding layers. llama.cpp reads zero as "none".

    ``Cohere2ForCausalLM`` multiplies its logits by ``logit_scale``. The vision-language models of
    transformers that have a Cohere 2, such as ``AyaVisionForConditionalGeneration``, do not.
    """
    text = config.get_text_config()
    scale = positive("logit_scale", text.logit_scale)
    writer.add_logit_scale(scale if text is config else 1.0)
    write_sliding_layers(writer, text)


def write_phi3(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Write the sliding window as llama.cpp's converter does, although llama.cpp ignores it."""
    writer.add_sliding_window(config.get_text_config().sliding_window or 0)


def check_opt(text: PretrainedConfig) -> None:
    """Check that embeddings of images fit between those of texts."""
    if text.word_embed_proj_dim != text.hidden_size:
        raise ExportError(
            f"this OPT has embeddings of width {text.word_embed_proj_dim} (word_embed_proj_dim) and a hidden "
            f"state of width {text.hidden_size}; BLIP-2 puts embeddings of that width between them, so they "
            f"must be equal"
        )


LLAMA = Architecture(
    MODEL_ARCH.LLAMA,
    rope_halves_interleaved=True,
    rope_types=("default", "linear", "llama3"),
    optional_biases={"attention_bias": ATTENTION, "mlp_bias": FEED_FORWARD},
)
# This llama.cpp's QWEN2VL does not read the epsilon of the norms and computes with zero. With an epsilon of
# 1e-6 and embeddings of 0.02 logits differ by 3e-3. PADDLEOCR is the same graph, and reads the epsilon.
QWEN2_VL = Architecture(
    MODEL_ARCH.PADDLEOCR,
    converted=MODEL_ARCH.QWEN2VL,
    biased=QKV,
    free_head_size=False,
    window=window_of_some_layers,
    write=write_mrope,
)
GEMMA = Architecture(
    MODEL_ARCH.GEMMA, activation="gelu_pytorch_tanh", norm_offset=1.0, untied=False
)
ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": Architecture(
        MODEL_ARCH.LLAMA,
        rope_halves_interleaved=True,
        rope_types=LLAMA.rope_types,
        window=window_of_all_layers,
    ),
    "ministral3": Architecture(
        MODEL_ARCH.MISTRAL3,
        rope_halves_interleaved=True,
        rope_types=("yarn",),
        window=window_of_all_layers,
        check=check_ministral3,
        write=write_ministral3,
    ),
    "granite": Architecture(
        MODEL_ARCH.GRANITE,
        rope_halves_interleaved=True,
        rope_types=LLAMA.rope_types,
        optional_biases=LLAMA.optional_biases,
        write=write_granite,
    ),
    "qwen2": Architecture(
        MODEL_ARCH.QWEN2, biased=QKV, free_head_size=False, window=window_of_some_layers
    ),
    "qwen3": Architecture(
        MODEL_ARCH.QWEN3, norms=(*NORMS, *HEAD_NORMS), window=window_of_some_layers
    ),
    "paddleocr_vl_text": Architecture(MODEL_ARCH.PADDLEOCR, write=write_mrope),
    "qwen2_vl_text": QWEN2_VL,
    "qwen2_5_vl_text": QWEN2_VL,
    "qwen3_vl_text": Architecture(
        MODEL_ARCH.QWEN3VL,
        norms=(*NORMS, *HEAD_NORMS),
        check=check_interleaved,
        write=write_qwen3vl,
    ),
    "qwen3_5_text": Architecture(
        MODEL_ARCH.QWEN35,
        norm_offset=1.0,
        layer=qwen35_layer,
        shapes=qwen35_shapes,
        adapt=adapt_qwen35,
        partial_rotation=True,
        check=check_qwen35,
        write=write_qwen35,
    ),
    "lfm2": Architecture(
        MODEL_ARCH.LFM2,
        free_head_size=False,
        layer=lfm2_layer,
        shapes=lfm2_shapes,
        final_norm="embedding_norm",
        check=check_lfm2,
        write=write_lfm2,
    ),
    "cohere2": Architecture(
        MODEL_ARCH.COHERE2,
        layer_norms=True,
        untied=False,
        norms=("input_layernorm",),
        free_head_size=False,
        window=window_of_some_layers,
        llama_cpp_slides=True,
        check=check_cohere2,
        write=write_cohere2,
    ),
    "gemma": GEMMA,
    "gemma2": replace(
        GEMMA,
        gguf=MODEL_ARCH.GEMMA2,
        norms=GEMMA2_NORMS,
        window=window_of_some_layers,
        llama_cpp_slides=True,
        check=check_gemma2,
        write=write_gemma2,
    ),
    "gemma3_text": replace(
        GEMMA,
        gguf=MODEL_ARCH.GEMMA3,
        untied=True,
        norms=(*GEMMA2_NORMS, *HEAD_NORMS),
        window=window_of_some_layers,
        llama_cpp_slides=True,
        check=check_gemma3,
        write=write_gemma3,
    ),
    "gemma4_text": Architecture(
        MODEL_ARCH.GEMMA4,
        activation="gelu_pytorch_tanh",
        rope_types=("proportional",),
        layer=gemma4_layer,
        unused=gemma4_unused,
        tables=GEMMA4_TABLES,
        shapes=gemma4_shapes,
        window=window_of_some_layers,
        llama_cpp_slides=True,
        check=check_gemma4,
        write=write_gemma4,
    ),
    "phi3": Architecture(
        MODEL_ARCH.PHI3,
        rope_types=("default",),
        matrices=("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        free_head_size=False,
        window=window_of_all_layers,
        write=write_phi3,
    ),
    "opt": Architecture(None, check=check_opt),
    "mllama_text_model": Architecture(None, unanswered_tokens=8),
}
"""``model_type`` of the text configuration to its architecture."""


def find_architecture(config: PretrainedConfig) -> Architecture:
    """Return the architecture of the language model.

    Raises:
        ExportError: the language model is not supported, or llama.cpp computes this variant differently.
    """
    text = config.get_text_config()
    if text.is_encoder_decoder:
        raise ExportError(
            f"the language model is of type {text.model_type!r}, an encoder that reads the prompt and a "
            f"decoder that looks at its result; edgevlm runs decoders that read the prompt themselves: take "
            f"a checkpoint of this family with one of {', '.join(ARCHITECTURES)}"
        )
    if text.model_type not in ARCHITECTURES:
        raise ExportError(
            f"language models of type {text.model_type!r} cannot be exported; edgevlm exports "
            f"{', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[text.model_type]
    activation = getattr(text, "hidden_activation", None)
    activation = activation or getattr(text, "hidden_act", architecture.activation)
    if activation != architecture.activation:
        raise ExportError(
            f"the language model's activation is {activation!r}, llama.cpp computes "
            f"{architecture.activation!r}"
        )
    for setting in BIAS_SETTINGS:
        if getattr(text, setting, False) and setting not in architecture.optional_biases:
            raise ExportError(
                f"{setting} is true, llama.cpp's {text.model_type} does not have these biases"
            )
    heads = text.num_attention_heads
    if not architecture.free_head_size and head_size(text) * heads != text.hidden_size:
        raise ExportError(
            f"the language model has {heads} heads of {head_size(text)}, llama.cpp's {text.model_type} "
            f"computes heads that add up to hidden_size {text.hidden_size}"
        )
    if architecture.window is not None:
        architecture.window(text)
    if architecture.check is not None:
        architecture.check(text)
    return architecture


def check_llama_cpp(config: PretrainedConfig) -> None:
    """Check that llama.cpp has the language model.

    Raises:
        ExportError: it does not, or as of `find_architecture`.
    """
    if find_architecture(config).gguf is None:
        raise ExportError(
            f"llama.cpp has no language model of type {config.get_text_config().model_type!r}: it can be "
            f"exported as ONNX graphs only, with types such as --decoder int8"
        )


def context_length(config: PretrainedConfig, attention: str) -> int:
    """Return the longest context in which llama.cpp computes as transformers does, in positions.

    Beyond a sliding window they differ if llama.cpp's layers do not slide. They also differ if a prompt
    attends to itself both ways (``prefix``): llama.cpp then applies the window and transformers does not.
    """
    text = config.get_text_config()
    architecture = ARCHITECTURES[text.model_type]
    trained = int(text.max_position_embeddings)
    window = None if architecture.window is None else architecture.window(text)
    if window is None or (architecture.llama_cpp_slides and attention != "prefix"):
        return trained
    return min(trained, window)
