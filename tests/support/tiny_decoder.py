"""A tiny Llama with random weights as a GGUF file, and how the tests of the decoder runtime use it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import DecoderRuntime

CONTEXT_LENGTH = 1200
EXACT = 2e-5
"""Relative error of logits between two programs that compute in float32."""
ROUNDED = 1e-2
"""The same, if one of them rounds keys and values to 16 bits; 8e-3 was measured."""
END, IMAGE, USER_DEFINED = 256, 257, 258
TOKENS = [*bytes_to_unicode().values(), "<|end|>", "<image>", "<user>", "th", "the", "in"]
MERGES = ["t h", "th e", "i n"]


class ExactDecoder(LlamaCppDecoder):
    """Keys and values are not rounded, as flash attention does, so that logits agree to 1e-5."""

    KV_CACHE_TYPE = "F32"

    def _use_flash_attention(self) -> bool:
        return False


def reference_model() -> LlamaForCausalLM:
    """Random weights, wide enough that logits differ clearly; grouped-query attention, untied."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def permuted(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q and k in the order of llama.cpp's rotary embedding."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_decoder(path: Path, model: LlamaForCausalLM, dtype: type = np.float32) -> Path:
    """`model` as a GGUF file with a byte-level tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    types = [gguf.TokenType.NORMAL] * len(TOKENS)
    types[END] = types[IMAGE] = gguf.TokenType.CONTROL
    types[USER_DEFINED] = gguf.TokenType.USER_DEFINED
    writer.add_token_types(types)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(END)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        weights = tensor.numpy()
        projection = name.split(".")[-2]
        if projection in heads:
            weights = permuted(weights, heads[projection])
        kind = dtype if weights.ndim > 1 else np.float32
        renamed = names.get_name(name, (".weight",))
        assert renamed is not None, name
        writer.add_tensor(renamed, weights.astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def some_tokens(count: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, len(TOKENS), count).tolist()
    return tokens


def positions(start: int, stop: int) -> NDArray[np.int32]:
    return np.arange(start, stop, dtype=np.int32)


def reference_logits(model: LlamaForCausalLM, tokens: list[int]) -> NDArray[np.float32]:
    """``[n, vocabulary]``"""
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


def relative_error(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def bound(decoder: DecoderRuntime) -> float:
    """How far logits may be from transformers'."""
    return EXACT if isinstance(decoder, ExactDecoder) else ROUNDED


def decoded(decoder: DecoderRuntime, tokens: list[int], start: int = 0) -> NDArray[np.float32]:
    """Logits after `tokens` in one call."""
    decoder.decode_tokens(tokens, positions(start, start + len(tokens)), logits=True)
    return decoder.logits()
