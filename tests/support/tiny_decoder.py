"""A tiny Llama with random weights: computed by numpy, and as a GGUF file for the decoder runtime.

`tests/reference/test_tiny_decoder.py` proves that numpy computes what transformers does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import DecoderRuntime, Place


def byte_alphabet() -> list[str]:
    """Return GPT-2's spelling of the bytes: printable ones first, then the others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 256 - len(printable)
    return [*map(chr, printable), *(chr(0x100 + number) for number in range(others))]


CONTEXT_LENGTH = 1200
EXACT = 1e-4
"""Relative error of logits in float32; 4e-5 was measured at position 1199, where rotary angles are large."""
ROUNDED = 1e-2
"""The same, if one of them rounds keys and values to 16 bits; 8e-3 was measured."""
END, IMAGE, USER_DEFINED = 256, 257, 258
TOKENS = [*byte_alphabet(), "<|end|>", "<image>", "<user>", "th", "the", "in"]
MERGES = ["t h", "th e", "i n"]


class ExactDecoder(LlamaCppDecoder):
    """Keys and values are not rounded, as flash attention does, so that logits agree to 1e-5."""

    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        super().__init__(path, **{"kv": "f32", **settings})

    def _use_flash_attention(self) -> bool:
        return False


@dataclass(frozen=True)
class TinyLlama:
    """Llama with grouped-query attention and an untied output, computed in float64."""

    weights: dict[str, NDArray[np.float32]]
    """By the names of transformers' ``LlamaForCausalLM``."""

    WIDTH = 64
    INNER = 128
    LAYERS = 2
    HEADS = 4
    KV_HEADS = 2
    EPSILON = 1e-5
    ROPE_THETA = 10000.0
    MAX_POSITIONS = 2048

    def embed(self, tokens: list[int]) -> NDArray[np.float32]:
        """Return rows of the embedding table: float32 ``[n, width]``."""
        return self.weights["model.embed_tokens.weight"][tokens]

    def logits(
        self, rows: NDArray[np.float32], visible: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Return float32 ``[n, vocabulary]`` after embeddings ``[n, width]``.

        Args:
            visible: bool ``[n, n]``: row i attends to column j; causal if None.
        """
        count = len(rows)
        mask = np.tri(count, dtype=bool) if visible is None else visible
        x = rows.astype(np.float64)
        for layer in range(self.LAYERS):
            x = x + self._attention(self._norm(x, layer, "input_layernorm"), layer, mask)
            x = x + self._feed_forward(self._norm(x, layer, "post_attention_layernorm"), layer)
        x = _rms_norm(x, self.EPSILON) * self.weights["model.norm.weight"]
        logits: NDArray[np.float32] = (x @ self.weights["lm_head.weight"].T).astype(np.float32)
        return logits

    def _project(self, x: NDArray[np.float64], layer: int, name: str) -> NDArray[np.float64]:
        return x @ self.weights[f"model.layers.{layer}.{name}.weight"].T

    def _norm(self, x: NDArray[np.float64], layer: int, name: str) -> NDArray[np.float64]:
        return _rms_norm(x, self.EPSILON) * self.weights[f"model.layers.{layer}.{name}.weight"]

    def _attention(
        self, x: NDArray[np.float64], layer: int, mask: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        count, size = len(x), self.WIDTH // self.HEADS
        q, k, v = (
            self._project(x, layer, f"self_attn.{name}_proj")
            .reshape(count, -1, size)
            .swapaxes(0, 1)
            for name in "qkv"
        )
        group = self.HEADS // self.KV_HEADS
        q, k = _rotate(q, self.ROPE_THETA), _rotate(k, self.ROPE_THETA).repeat(group, axis=0)
        scores = np.where(mask, q @ k.swapaxes(1, 2) / size**0.5, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        joined = (weights @ v.repeat(group, axis=0)).swapaxes(0, 1).reshape(count, -1)
        return self._project(joined, layer, "self_attn.o_proj")

    def _feed_forward(self, x: NDArray[np.float64], layer: int) -> NDArray[np.float64]:
        gate = self._project(x, layer, "mlp.gate_proj")
        inner = gate / (1 + np.exp(-gate)) * self._project(x, layer, "mlp.up_proj")
        return self._project(inner, layer, "mlp.down_proj")


def _rms_norm(x: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    normed: NDArray[np.float64] = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)
    return normed


def _rotate(x: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
    """Apply rotary embeddings to ``[heads, n, size]``; the two sides of a pair are half a head apart."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] / theta ** (np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class WideHeads(TinyLlama):
    """The same with heads of 32 numbers, the block of a quantized KV cache."""

    HEADS = 2
    KV_HEADS = 1


def reference_model(kind: type[TinyLlama] = TinyLlama) -> TinyLlama:
    """Return random weights, wide enough that logits differ clearly."""
    rng = np.random.default_rng(0)

    def random(rows: int, columns: int) -> NDArray[np.float32]:
        return (0.3 * rng.standard_normal((rows, columns))).astype(np.float32)

    width, inner, vocabulary = kind.WIDTH, kind.INNER, len(TOKENS)
    kv_width = width * kind.KV_HEADS // kind.HEADS
    weights = {
        "model.embed_tokens.weight": random(vocabulary, width),
        "model.norm.weight": np.ones(width, np.float32),
        "lm_head.weight": random(vocabulary, width),
    }
    for layer in range(kind.LAYERS):
        shapes = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (kv_width, width),
            "self_attn.v_proj": (kv_width, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
        }
        for name, shape in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = random(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(width, np.float32)
    return kind(weights)


def permuted(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q and k in the order of llama.cpp's rotary embedding."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Write the metadata of the byte-level tokenizer."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    types = [gguf.TokenType.NORMAL] * len(TOKENS)
    types[END] = types[IMAGE] = gguf.TokenType.CONTROL
    types[USER_DEFINED] = gguf.TokenType.USER_DEFINED
    writer.add_token_types(types)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(END)


def write_decoder(path: Path, model: TinyLlama, dtype: type = np.float32) -> Path:
    """Write `model` as a GGUF file with a byte-level tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(model.MAX_POSITIONS)
    writer.add_embedding_length(model.WIDTH)
    writer.add_block_count(model.LAYERS)
    writer.add_feed_forward_length(model.INNER)
    writer.add_head_count(model.HEADS)
    writer.add_head_count_kv(model.KV_HEADS)
    writer.add_layer_norm_rms_eps(model.EPSILON)
    writer.add_rope_freq_base(model.ROPE_THETA)
    writer.add_rope_dimension_count(model.WIDTH // model.HEADS)
    writer.add_vocab_size(len(TOKENS))
    write_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.LAYERS)
    heads = {"q_proj": model.HEADS, "k_proj": model.KV_HEADS}
    for name, weights in model.weights.items():
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


def place(entries: int) -> Place:
    """Return the place after so many entries with sequential positions."""
    return Place(entries, entries)


def reference_logits(model: TinyLlama, tokens: list[int]) -> NDArray[np.float32]:
    """Return float32 ``[n, vocabulary]``."""
    return model.logits(model.embed(tokens))


def penalize(logits: NDArray[np.float32], tokens: list[int], penalty: float) -> NDArray[np.float32]:
    """Return logits ``[vocabulary]`` with the repetition penalty of the tokens; as transformers does."""
    penalized, seen = logits.copy(), sorted(set(tokens))
    penalized[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
    return penalized


def relative_error(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def bound(decoder: DecoderRuntime) -> float:
    """Return how far logits may be from the reference's."""
    return ROUNDED if type(decoder) is LlamaCppDecoder else EXACT


def decoded(decoder: DecoderRuntime, tokens: list[int], start: int = 0) -> NDArray[np.float32]:
    """Logits after `tokens` in one call."""
    decoder.decode_tokens(tokens, positions(start, start + len(tokens)), logits=True)
    return decoder.logits()
