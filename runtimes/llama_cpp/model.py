"""A GGUF model in llama.cpp: its weights, its vocabulary and its metadata.

llama.cpp aborts the process when a precondition fails, so this module checks arguments first. The KV cache
and decoding are in `edgevlm.runtimes.llama_cpp.decoder`.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ClosedError, InputError, LoadError
from edgevlm.runtimes.llama_cpp.embedding_table import EmbeddingTable
from edgevlm.runtimes.llama_cpp.gguf_header import GgufHeader
from edgevlm.runtimes.llama_cpp.installation import LLAMA_CPP_PYTHON_VERSION
from edgevlm.runtimes.llama_cpp.library import (
    failure_reason,
    load_llama_cpp,
    out_of_memory,
    recent_errors,
)
from edgevlm.runtimes.text_checks import check_tokens, encode_text
from edgevlm.validation import check_integer

_STACK_PER_BYTE = 1024
"""Bytes of stack per byte of text. For some vocabularies llama.cpp uses `std::regex`, which recurses for
every character: 322 bytes were measured, and 26,000 digits in a row overflowed a main thread's 8 MB."""

_NO_SPLIT = b"superbpe"
"""llama.cpp's name for merges in texts that are split already: all that it splits itself are numbers."""

MAX_SHORT_TEXT_BYTES = 64
"""Longest text, in bytes, that is tokenized in the calling thread: each thread has the stack for it. A new
thread takes longer than such a text."""

_stack_lock = threading.Lock()


class LlamaCppModel:
    """A loaded GGUF file.

    Args:
        path: the file.
        gpu_layers: layers to put on a GPU; -1 all of them, 0 none.
        extra_buffer_types: let llama.cpp use its repacked and AMX kernels.
        vocabulary_only: load no weights; only `tokenize` and `piece` work then.
        splits_text: False: the caller splits text, and `tokenize` merges bytes only, whatever rule the file
            names.

    Raises:
        LoadError: the file cannot be loaded, or is not a causal decoder with a KV cache.
    """

    def __init__(
        self,
        path: Path,
        *,
        gpu_layers: int,
        extra_buffer_types: bool,
        vocabulary_only: bool = False,
        splits_text: bool = True,
    ) -> None:
        self.handle: Any = None
        self._path = path
        self._embedding_table: EmbeddingTable | None = None
        self._llama = llama = load_llama_cpp()
        self._free: Callable[[Any], None] = llama.llama_model_free
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = gpu_layers
        parameters.use_extra_bufts = extra_buffer_types
        parameters.vocab_only = vocabulary_only
        if extra_buffer_types and not gpu_layers:
            # Those kernels work on a copy of the weights; a mapped file would stay in memory beside it.
            parameters.load_mode = llama.LLAMA_LOAD_MODE_NONE
        parameters.kv_overrides = _overrides(llama, splits_text)
        recent_errors.clear()
        self.handle = llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.handle:
            raise LoadError(
                f"llama.cpp cannot load {path}{failure_reason()}; "
                + (
                    "memory is short: use a smaller file, or put fewer layers on the GPU (gpu_layers)"
                    if out_of_memory()
                    else "the file is damaged, get it again, or it is of an architecture that "
                    f"llama-cpp-python {LLAMA_CPP_PYTHON_VERSION} does not support"
                )
            )
        self._vocabulary = llama.llama_model_get_vocab(self.handle)
        self.vocabulary_size: int = llama.llama_vocab_n_tokens(self._vocabulary)
        if not vocabulary_only:
            self.hybrid: bool = llama.llama_model_is_hybrid(self.handle)
            """True if some layers are recurrent. Their state cannot be cut back."""
            self._check_decoder()
            self.width: int = llama.llama_model_n_embd_inp(self.handle)
            """Width of an input embedding. Deepstack models read what they add to each of their first layers
            from the same row, so it is a multiple of the width of the embedding table."""
            self.mrope: bool = llama.llama_model_rope_type(self.handle) in (
                llama.LLAMA_ROPE_TYPE_MROPE,
                llama.LLAMA_ROPE_TYPE_IMROPE,
            )
            """True if a position has three numbers: time, line and column."""
            self.trained_context_length: int = llama.llama_model_n_ctx_train(self.handle)
            """Positions that the model was trained for."""
            self.heads: int = llama.llama_model_n_head(self.handle)

    def _check_decoder(self) -> None:
        """Check that the model is a causal decoder with a KV cache.

        Raises:
            LoadError: it is not; the model is closed then.
        """
        llama = self._llama
        refusals = {
            "is an encoder": llama.llama_model_has_encoder(self.handle),
            "has no decoder": not llama.llama_model_has_decoder(self.handle),
            "is recurrent": llama.llama_model_is_recurrent(self.handle),
            "is a diffusion model": llama.llama_model_is_diffusion(self.handle),
            # llama.cpp aborts at the first batch: in the last layer it keeps entries with logits alone.
            "adds deepstack features to its last layer": llama.llama_model_n_embd_inp(self.handle)
            > llama.llama_model_n_layer(self.handle) * llama.llama_model_n_embd(self.handle),
            "has no vocabulary": llama.llama_vocab_type(self._vocabulary)
            == llama.LLAMA_VOCAB_TYPE_NONE,
        }
        for reason, applies in refusals.items():
            if applies:
                self.close()
                raise LoadError(
                    f"{self._path} {reason}; edgevlm runs causal decoders with a KV cache"
                )

    def head_sizes(self, *, sliding: bool = False) -> tuple[int, int]:
        """Return how many numbers the key and the value of one head have.

        Args:
            sliding: those of the layers with a sliding window.
        """
        prefix = f"{self._metadata('general.architecture')}.attention"
        key, value = (
            int(
                (sliding and self._metadata(f"{prefix}.{name}_length_swa"))
                or self._metadata(f"{prefix}.{name}_length")
                or self._llama.llama_model_n_embd(self.handle) // self.heads
            )
            for name in ("key", "value")
        )
        return key, value

    @property
    def kv_values(self) -> int:
        """Numbers that the KV cache holds for each entry.

        llama.cpp tells the heads of the first layer only. Where layers differ, the header has a list. The
        state of recurrent layers is not counted: it does not grow. The last layers may have no cache of their
        own (Gemma 4).
        """
        prefix = f"{self._metadata('general.architecture')}.attention"
        layers: int = self._llama.llama_model_n_layer(self.handle)
        heads: list[int] = [self._llama.llama_model_n_head_kv(self.handle)] * layers
        slides = [0] * layers
        full, sliding = self.head_sizes(), self.head_sizes(sliding=True)
        key = f"{prefix}.head_count_kv"
        if self.hybrid or full != sliding or not self._metadata(key):  # empty for a list, too
            header = GgufHeader(np.memmap(self._path, np.uint8, mode="r").data)
            if listed := header.integers(key):
                heads = listed
            elif recurrent := header.integers(f"{prefix}.recurrent_layers"):
                heads = [
                    0 if skip else count for count, skip in zip(heads, recurrent, strict=False)
                ]
            slides = header.integers(f"{prefix}.sliding_window_pattern") or slides
        cached = layers - int(self._metadata(f"{prefix}.shared_kv_layers") or 0)
        return sum(
            count * sum(sliding if slide else full)
            for count, slide in zip(heads[:cached], slides, strict=False)
        )

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, in f32, that the recurrent layers keep for a sequence of any length."""
        if not self.hybrid:
            return 0
        architecture = self._metadata("general.architecture")
        header = GgufHeader(np.memmap(self._path, np.uint8, mode="r").data)
        recurrent = header.integers(f"{architecture}.attention.recurrent_layers") or [
            not heads for heads in header.integers(f"{architecture}.attention.head_count_kv")
        ]

        def number(key: str) -> int:
            return int(self._metadata(f"{architecture}.{key}") or 0)

        channels = number("ssm.inner_size")
        size = number("ssm.state_size")
        convolved = channels + 2 * number("ssm.group_count") * size
        width: int = self._llama.llama_model_n_embd(self.handle)
        values = (
            max(0, number("shortconv.l_cache") - 1) * width
            + max(0, number("ssm.conv_kernel") - 1) * convolved
            + size * channels
        )
        return 4 * values * sum(map(bool, recurrent))

    def _metadata(self, key: str) -> str:
        """Return a value of the GGUF metadata as text; empty if there is no such key."""
        buffer = ctypes.create_string_buffer(256)
        length = self._llama.llama_model_meta_val_str(
            self.handle, key.encode(), buffer, len(buffer)
        )
        return buffer.value.decode("utf-8", "replace") if length >= 0 else ""

    def tokenize(self, text: str) -> list[int]:
        """Convert plain text to token ids; neither recognize nor add special tokens.

        llama.cpp still recognizes tokens that the file marks as user-defined.

        Raises:
            InputError: the text is not a string, has lone surrogates, which UTF-8 cannot encode, or is longer
                than `edgevlm.runtimes.text_checks.MAX_TEXT_BYTES`.
            ClosedError: the model is closed.
        """
        self.check_open()
        encoded = encode_text(text)
        ids = (ctypes.c_int32 * (len(encoded) + 16))()
        arguments = (self._vocabulary, encoded, len(encoded), ids, len(ids), False, False)
        if len(encoded) <= MAX_SHORT_TEXT_BYTES:
            count = self._llama.llama_tokenize(*arguments)
        else:
            count = _with_stack(
                _STACK_PER_BYTE * (len(encoded) + 1024),
                lambda: self._llama.llama_tokenize(*arguments),
            )
        if count < 0:
            raise InputError(f"text of {len(encoded)} bytes became more tokens: {-count}")
        return ids[:count]

    def piece(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token, maybe a part of a character; empty for control tokens.

        Raises:
            InputError: the vocabulary has no such token.
            ClosedError: the model is closed.
        """
        self.check_open()
        token = check_integer("token", token, 0, self.vocabulary_size - 1)
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            length = self._llama.llama_token_to_piece(
                self._vocabulary, token, buffer, capacity, 0, False
            )
            if length >= 0:
                return buffer.raw[:length]
            capacity = -length

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return rows float32 ``[n, width]`` of the input embedding table, dequantized, not scaled.

        Where the width is larger than the table's, zeros follow, as llama.cpp pads tokens.

        Raises:
            InputError: the ids have the wrong type or are outside the vocabulary.
            ClosedError: the model is closed.
            LoadError: the file has no embedding table that can be read.
        """
        self.check_open()
        ids = check_tokens(token_ids, self.vocabulary_size)
        if self._embedding_table is None:
            self._embedding_table = EmbeddingTable(self._path)
        rows = self._embedding_table.rows(ids)
        return np.pad(rows, ((0, 0), (0, self.width - rows.shape[1])))

    def close(self) -> None:
        """Free the model. A second call does nothing; every other later call raises ClosedError."""
        if self.handle:
            self._free(self.handle)
        self.handle = None

    def check_open(self) -> None:
        """Check that the model is not closed.

        Raises:
            ClosedError: the model is closed.
        """
        if not self.handle:
            raise ClosedError(f"the decoder of {self._path} is closed; create a new one")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.close()


def _overrides(llama: Any, splits_text: bool) -> Any:
    """Return metadata that llama.cpp takes in place of a file's, as a C array.

    edgevlm itself puts the spaces before a text that the tokenizer of the checkpoint puts there. And
    llama.cpp gives added tokens other rules if the name of a model contains ``phi-3``.

    Args:
        splits_text: as of `LlamaCppModel`.
    """
    overrides = (llama.llama_model_kv_override * 4)()  # the last one, without a key, is the end
    overrides[0].key = b"tokenizer.ggml.add_space_prefix"
    overrides[0].tag = llama.LLAMA_KV_OVERRIDE_TYPE_BOOL
    overrides[0].value.val_bool = False
    overrides[1].key = b"general.name"
    overrides[1].tag = llama.LLAMA_KV_OVERRIDE_TYPE_STR
    overrides[1].value.val_str = b""
    if not splits_text:
        overrides[2].key = b"tokenizer.ggml.pre"
        overrides[2].tag = llama.LLAMA_KV_OVERRIDE_TYPE_STR
        overrides[2].value.val_str = _NO_SPLIT
    return overrides


def _with_stack(size: int, function: Callable[[], int]) -> int:
    """Call a function in a thread with a stack of `size` bytes, and return its result."""
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    with _stack_lock:
        previous = threading.stack_size(-(-size // 4096) * 4096)
        try:
            thread.start()
        finally:
            threading.stack_size(previous)
    thread.join()
    return results[0]
