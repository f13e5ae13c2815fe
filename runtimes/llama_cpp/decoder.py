"""The decoder in llama.cpp, through llama-cpp-python's low-level API.

llama.cpp checks its preconditions by ending the process. So everything that a caller can get wrong is
checked here first and raised as an error: ids, positions, shapes, batch sizes, memory, use after `close`.
Whether this machine's build and this file can be loaded at all is found out by
`edgevlm.runtimes.llama_cpp.guard` in a child process.

Not covered: more than one sequence, M-RoPE positions, recurrent and encoder-decoder models (all refused
at load).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ContextError, InferenceError, InputError, LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.forks import check_not_forked, mark_started
from edgevlm.runtimes.llama_cpp.guard import check_file, check_gpu, check_library
from edgevlm.runtimes.llama_cpp.library import (
    failure_reason,
    lacked_memory,
    library,
    recent_errors,
    why_no_gpu,
)
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel
from edgevlm.runtimes.llama_cpp.sampler import LlamaCppSampler
from edgevlm.runtimes.protocols import Sampling
from edgevlm.validation import check_integer


class LlamaCppDecoder:
    """A GGUF decoder with a KV cache of one sequence; implements `DecoderRuntime`.

    One context has one attention kernel for good. Flash attention prefills faster than the plain one, and
    decodes the first hundreds of positions faster. From 1000 on Intel's CPUs decode faster without it: at
    two thirds of the time at 8000, with AMX at half of it from 500 on (73 against 39-46 tokens per second,
    SmolLM2-135M in q4_0, 2 threads); an AMD EPYC decodes them no slower with it. So it is used except on
    Intel's CPUs with AMX, and there in contexts longer than `FLASH_LENGTH` (`benchmarks/settings.py`,
    `benchmarks/growth.py`).

    Args:
        path: the GGUF file.
        context_length: positions that the KV cache holds; at most what the model was made for.
        threads: CPU threads; None takes one per physical core that this process may use.
        gpu_layers: layers to put on a GPU; -1 all of them, 0 none.
        bidirectional: reserve what `decode_embeddings` needs for ``bidirectional=True``: one batch as long
            as the context, whose attention scores, without flash attention, take
            ``heads * context_length**2 * 4`` bytes.

    Raises:
        InputError: an argument of the wrong type or range.
        LoadError: the file, the build or the GPU cannot be used, memory is short, or this process was
            forked from one that had used a model.
        MissingDependencyError: llama-cpp-python is not installed.
    """

    FLASH_LENGTH = 4096
    """Positions of the longest context that has flash attention on Intel's CPUs."""

    BATCH_LENGTH = 512
    """Entries per llama.cpp batch: prefill speed is flat from here."""

    PLAIN_BATCH_LENGTH = 128
    """The same without flash attention: the scores of larger ones leave a CPU's caches
    (`benchmarks/settings.py`)."""

    MAX_LOGITS = 16
    """Entries of a batch that can have logits: a draft."""

    CACHE_TYPE = "F16"
    """Type of the key-value cache: half of F32's memory, for about 1e-3 in the logits."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context_length: int,
        threads: int | None = None,
        gpu_layers: int = 0,
        bidirectional: bool = False,
    ) -> None:
        check_not_forked()
        self._context: Any = None
        self._length = 0
        self._has_logits = False
        self._logits_address = 0
        self._path = Path(path)
        self.context_length = check_integer("context_length", context_length, 1, 2**31 - 1)
        self.bidirectional = bidirectional
        threads = check_integer(
            "threads", system.physical_cores() if threads is None else threads, 1, 512
        )
        gpu_layers = check_integer("gpu_layers", gpu_layers, -1, 2**31 - 1)
        extra_buffer_types = self._ask_guard()
        self._llama = library()
        if gpu_layers:
            if reason := why_no_gpu():
                raise LoadError(f"gpu_layers={gpu_layers}, but {reason}")
            self._ask_guard_of_gpu()
        self.on_cpu = gpu_layers == 0
        self._flash = not self.on_cpu or self._flash_pays()
        self._batch_length = self.BATCH_LENGTH if self._flash else self.PLAIN_BATCH_LENGTH
        if bidirectional:
            self._batch_length = self.context_length
        self.device = (
            f"gpu ({gpu_layers} layers)" if gpu_layers > 0 else "gpu" if gpu_layers else "cpu"
        )
        self._free_context: Callable[[Any], None] = self._llama.llama_free
        self._model = LlamaCppModel(
            self._path, gpu_layers=gpu_layers, extra_buffer_types=extra_buffer_types
        )
        self.width = self._model.width
        self.vocabulary_size = self._model.vocabulary_size
        try:
            if self.context_length > self._model.trained_length:
                raise InputError(
                    f"context_length {self.context_length} is more than the "
                    f"{self._model.trained_length} positions that {self._path.name} was made for"
                )
            self._check_memory()
            mark_started(self, "_context")
            self._create_context(threads, gpu_layers)
        except BaseException:
            self.close()
            raise

    def _flash_pays(self) -> bool:
        """Whether flash attention is the faster kernel on this CPU."""
        short = self.context_length <= self.FLASH_LENGTH
        return not system.is_intel() or (short and not system.has_amx())

    def _ask_guard(self) -> bool:
        """Whether llama.cpp's extra buffer types (repacked and AMX kernels) may be used."""
        verdict = check_library()
        check_file(self._path)
        return verdict.extra_buffer_types

    def _ask_guard_of_gpu(self) -> None:
        check_gpu()

    def _check_memory(self) -> None:
        """Refuse a context that cannot fit: the allocation would succeed and the process be killed later."""
        positions = -(-self.context_length // 256) * 256
        cache = self._model.cache_size(positions)
        batch = positions if self.bidirectional else self._batch_length
        scores = 0 if self._flash else self._model.heads * positions * batch * 4
        available = system.available_memory()
        if available is not None and cache + scores > available:
            raise LoadError(
                f"context_length {self.context_length} needs {(cache + scores) / 2**30:.1f} GiB of memory "
                f"(key-value cache {cache / 2**30:.1f}, attention {scores / 2**30:.1f}), "
                f"{available / 2**30:.1f} GiB are available; ask for a shorter context"
            )

    def _create_context(self, threads: int, gpu_layers: int) -> None:
        llama = self._llama
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = self.context_length
        parameters.n_batch = parameters.n_ubatch = self._batch_length
        parameters.n_seq_max = 1
        parameters.n_outputs_max = self.MAX_LOGITS  # no [batch, vocabulary] of logits
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.attention_type = llama.LLAMA_ATTENTION_TYPE_CAUSAL
        parameters.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        parameters.flash_attn_type = (
            llama.LLAMA_FLASH_ATTN_TYPE_AUTO
            if self._flash
            else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        parameters.type_k = parameters.type_v = getattr(llama, f"GGML_TYPE_{self.CACHE_TYPE}")
        parameters.offload_kqv = parameters.op_offload = bool(gpu_layers)
        parameters.swa_full = True  # `truncate` works at any position in sliding-window models too
        parameters.no_perf = True
        recent_errors.clear()
        self._context = llama.llama_init_from_model(self._model.handle, parameters)
        if not self._context:
            raise LoadError(
                f"llama.cpp cannot create a context for {self._path}{failure_reason()}"
                + ("; ask for a shorter context" if lacked_memory() else "")
            )
        self._memory = llama.llama_get_memory(self._context)
        if not self._memory:
            raise LoadError(f"{self._path} has no key-value cache; it is not a decoder")
        self._batch_length = llama.llama_n_batch(self._context)
        self._create_batch()

    def _create_batch(self) -> None:
        """Buffers that every batch goes through: to make new ones costs as much as a small model's token."""
        count = self._batch_length
        self._ids, self._positions = np.empty(count, np.int32), np.empty(count, np.int32)
        self._wanted = np.empty(count, np.int8)
        sequence = ctypes.pointer(ctypes.c_int32(0))
        self._sequence_counts = (ctypes.c_int32 * count)(*[1] * count)
        self._sequences = (ctypes.POINTER(ctypes.c_int32) * count)(*[sequence] * count)
        self._ids_pointer = self._ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._batch = self._llama.llama_batch(
            pos=self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._sequence_counts,
            seq_id=ctypes.cast(self._sequences, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def tokenize(self, text: str) -> list[int]:
        """As `LlamaCppModel.tokenize`."""
        return self._model.tokenize(text)

    def piece(self, token: int) -> bytes:
        """As `LlamaCppModel.piece`."""
        return self._model.piece(token)

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """As `LlamaCppModel.embed`."""
        return self._model.embed(token_ids)

    def decode_tokens(
        self, token_ids: Sequence[int], positions: NDArray[np.int32], *, logits: bool
    ) -> None:
        """Put tokens at `positions` (int32 ``[n]``, following what is cached) into the cache.

        Raises:
            InputError: ids or positions of the wrong type, shape or range.
            ContextError: positions outside the context.
            InferenceError: llama.cpp failed; nothing of this call is kept.
        """
        self._open()
        ids = self._model.check_tokens(token_ids)
        self._decode(ids, positions, outputs=int(logits))

    def decode_draft(
        self, token_ids: Sequence[int], positions: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """As `decode_tokens`, for at most `MAX_LOGITS` tokens.

        Returns:
            float32 ``[n, vocabulary]``: llama.cpp's own logits after each token, valid until it decodes
            again.
        """
        self._open()
        ids = self._model.check_tokens(token_ids)
        if len(ids) > self.MAX_LOGITS:
            raise InputError(
                f"a draft may have {self.MAX_LOGITS} tokens, has {len(ids)}; use decode_tokens"
            )
        self._decode(ids, positions, outputs=len(ids))
        pointer = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(len(ids), self.vocabulary_size))

    def decode_embeddings(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int32],
        *,
        logits: bool,
        bidirectional: bool = False,
    ) -> None:
        """Put embeddings float32 ``[n, width]`` at `positions` into the cache; see `decode_tokens`.

        Args:
            bidirectional: each entry of this call sees every other (and all before it).
        """
        self._open()
        if not isinstance(embeddings, np.ndarray) or embeddings.dtype != np.float32:
            kind = (
                embeddings.dtype
                if isinstance(embeddings, np.ndarray)
                else type(embeddings).__name__
            )
            raise InputError(f"embeddings must be a float32 array, are {kind}")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.width or not len(embeddings):
            raise InputError(
                f"embeddings must have shape [n, {self.width}] with n >= 1, have {list(embeddings.shape)}"
            )
        if not np.isfinite(embeddings).all():
            raise InputError(
                "embeddings hold NaN or infinity; the vision graph is damaged or overflowed"
            )
        if bidirectional and not self.bidirectional:
            raise InputError(
                "this decoder was created with bidirectional=False; create it with bidirectional=True"
            )
        rows = np.ascontiguousarray(embeddings)
        self._decode(rows, positions, outputs=int(logits), bidirectional=bidirectional)

    def _decode(
        self,
        entries: NDArray[Any],
        positions: NDArray[np.int32],
        *,
        outputs: int,
        bidirectional: bool = False,
    ) -> None:
        """One llama.cpp batch after another.

        Args:
            entries: token ids int32 ``[n]`` or embeddings float32 ``[n, width]``, C-contiguous.
            outputs: so many of the last entries get logits.
        """
        count = len(entries)
        positions = self._position_array(positions, count)
        start, self._has_logits = self._length, False
        llama = self._llama
        batch = self._batch
        try:
            if bidirectional:
                llama.llama_set_causal_attn(self._context, False)
            for first in range(0, count, self._batch_length):
                last = min(first + self._batch_length, count)
                size = batch.n_tokens = last - first
                self._positions[:size] = positions[first:last]
                self._wanted[:size] = 0
                self._wanted[max(0, count - outputs - first) : size] = 1
                if entries.ndim == 1:
                    self._ids[:size] = entries[first:last]
                    batch.token, batch.embd = self._ids_pointer, None
                else:
                    rows = entries[first:last].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                    batch.token, batch.embd = None, rows
                recent_errors.clear()
                status = llama.llama_decode(self._context, batch)
                if status:
                    raise InferenceError(
                        f"llama.cpp could not decode positions {positions[first]} to "
                        f"{positions[last - 1]} (status {status}){failure_reason()}"
                    )
            self._length = start + count
            self._has_logits = outputs > 0
        except BaseException:
            llama.llama_memory_seq_rm(self._memory, 0, start, -1)
            raise
        finally:
            if bidirectional:
                llama.llama_set_causal_attn(self._context, True)

    def truncate(self, position: int) -> None:
        """Forget every position >= `position`.

        Raises:
            InputError: a negative position.
        """
        self._open()
        position = check_integer("position", position, 0, 2**31 - 1)
        if position >= self._length:
            return
        if not self._llama.llama_memory_seq_rm(self._memory, 0, position, -1):
            raise InferenceError(f"llama.cpp cannot forget positions from {position} of this model")
        self._length = position

    def save(self) -> NDArray[np.uint8]:
        """A copy of the KV cache, uint8 ``[bytes]``, for `restore` of the same decoder.

        Raises:
            InferenceError: llama.cpp failed.
        """
        self._open()
        llama = self._llama
        copy = np.empty(llama.llama_state_seq_get_size(self._context, 0), np.uint8)
        pointer = copy.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if llama.llama_state_seq_get_data(self._context, pointer, copy.nbytes, 0) != copy.nbytes:
            raise InferenceError("llama.cpp could not copy its key-value cache")
        return copy

    def restore(self, copy: NDArray[np.uint8], length: int) -> None:
        """Hold what `save` copied when there were `length` positions, instead of what is held.

        Raises:
            InputError: more positions than the context has.
            InferenceError: llama.cpp cannot read the copy; nothing is held then.
        """
        self._open()
        length = check_integer("length", length, 0, self.context_length)
        llama = self._llama
        llama.llama_memory_seq_rm(self._memory, 0, -1, -1)
        self._length, self._has_logits = 0, False
        pointer = copy.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        recent_errors.clear()
        read = llama.llama_state_seq_set_data(self._context, pointer, copy.nbytes, 0)
        if read != copy.nbytes or llama.llama_memory_seq_pos_max(self._memory, 0) != length - 1:
            llama.llama_memory_seq_rm(self._memory, 0, -1, -1)
            raise InferenceError(
                f"llama.cpp could not restore its key-value cache from {copy.nbytes} bytes"
                f"{failure_reason()}"
            )
        self._length = length

    def logits(self) -> NDArray[np.float32]:
        """A copy ``[vocabulary]`` of the last decoded position's logits.

        Raises:
            InputError: the last decoding did not ask for logits.
        """
        return self._last_logits().copy()

    def _last_logits(self) -> NDArray[np.float32]:
        """llama.cpp's own buffer, valid until the next decoding."""
        self._open()
        if not self._has_logits:
            raise InputError("there are no logits: decode the last position with logits=True first")
        pointer = self._llama.llama_get_logits_ith(self._context, -1)
        address = ctypes.addressof(pointer.contents)
        if address != self._logits_address:  # llama.cpp rarely moves its buffer
            self._logits_address = address
            self._logits = np.ctypeslib.as_array(pointer, shape=(self.vocabulary_size,))
        return self._logits

    def schema_checker(self, end_tokens: Collection[int]) -> Callable[[Mapping[str, Any]], object]:
        """As `DecoderRuntime.schema_checker`."""
        self._open()
        return self._model.json_texts(end_tokens).check

    def sampler(self, sampling: Sampling, end_tokens: Collection[int] = ()) -> LlamaCppSampler:
        """As `DecoderRuntime.sampler`."""
        self._open()
        matcher = None
        if sampling.json_schema is not None:
            matcher = self._model.json_texts(end_tokens).matcher(sampling.json_schema)
        return LlamaCppSampler(
            self._context, self.vocabulary_size, sampling, self._last_logits, matcher
        )

    def close(self) -> None:
        """Free the memory; every later call raises ClosedError. May be called again."""
        if self._context:
            self._free_context(self._context)
        self._context = None
        self._model.close()

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def _open(self) -> None:
        check_not_forked()
        self._model.check_open()

    def _position_array(self, positions: NDArray[np.int32], count: int) -> NDArray[np.int32]:
        """Checked positions: they number one sequence without a gap, after what is cached."""
        array = np.asarray(positions)
        if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"positions must be {count} integers, one per entry, are {array.dtype} "
                f"{list(array.shape)}"
            )
        gaps = count > 1 and (np.diff(array.astype(np.int64)) != 1).any()
        if array[0] != self._length or gaps:
            raise InputError(
                f"positions must count up by one from {self._length}, the cache's length; they go from "
                f"{array[0]} to {array[-1]}"
            )
        if self._length + count > self.context_length:
            raise ContextError(
                f"{count} entries after {self._length} cached positions do not fit into a context of "
                f"{self.context_length}"
            )
        return np.ascontiguousarray(array, np.int32)
