"""A context of llama.cpp: its settings, the checks before it is created, and the computing of a batch.

llama.cpp aborts the process when a precondition fails. So this module checks arguments first and raises
errors. `edgevlm.runtimes.llama_cpp.guard` tries in a child process whether this build of llama.cpp and this
file can be loaded at all.

Not supported: recurrent models and encoder-decoder models, which raise an error at load.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import InferenceError, InputError, LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.forks import check_not_forked, mark_started
from edgevlm.runtimes.llama_cpp.batch import LlamaCppBatch
from edgevlm.runtimes.llama_cpp.guard import check_file, check_gpu, check_library
from edgevlm.runtimes.llama_cpp.installation import LLAMA_CPP_PYTHON_VERSION
from edgevlm.runtimes.llama_cpp.library import (
    failure_reason,
    load_llama_cpp,
    load_strlen,
    no_gpu_reason,
    out_of_memory,
    recent_errors,
)
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel
from edgevlm.runtimes.llama_cpp.thread_limit import Clocks, ThreadLimit
from edgevlm.validation import check_integer

KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
"""Types of the KV cache, with bytes per value. f16 takes half of f32's memory and changes logits by 1e-3."""

BLOCK_SIZES = {"q8_0": 32}
"""Values that share a scale, for the types that are quantized."""


class LlamaCppContext:
    """A GGUF file and a context of llama.cpp for it; computes batches.

    A context of llama.cpp has one attention kernel. Flash attention prefills faster, but Intel's CPUs decode
    long contexts faster without it. So it is off on Intel's CPUs with AMX, and on Intel's other CPUs in
    contexts longer than `MAX_FLASH_CONTEXT` (`benchmarks/settings.py`, `benchmarks/growth.py`).

    Args:
        path: the GGUF file.
        context_length: entries that the KV cache holds; at most the positions that the model was trained for.
        threads: CPU threads; None takes one per physical core that this process may use. A request with a
            deadline may get fewer; see `ThreadLimit`.
        gpu_layers: layers to put on a GPU; -1 all of them, 0 none.
        bidirectional: entries of the longest `decode_embeddings` with ``bidirectional=True``; 0 for none.
            Such a call is one batch. Without flash attention its scores take
            ``heads * context_length * bidirectional * 4`` bytes.
        kv: type of keys and values in the KV cache, a key of `KV_BYTES`. ``q8_0`` takes about half of the
            memory of ``f16``, and needs flash attention and heads whose size is a multiple of 32.
        splits_text: as of `LlamaCppModel`.
        try_file: try in a child process first whether llama.cpp crashes on the file. False suits files that
            this process wrote.

    Raises:
        InputError: an argument has the wrong type or is outside its range.
        LoadError: the file, the build of llama.cpp or the GPU cannot be used, or memory is short.
        ClosedError: this process was forked from one that had used a model.
        MissingDependencyError: llama-cpp-python is not installed.
    """

    MAX_FLASH_CONTEXT = 4096
    """Longest context with flash attention on Intel's CPUs, in positions."""

    BATCH_SIZE = 512
    """Entries per llama.cpp batch. Larger batches prefill no faster."""

    BATCH_SIZE_WITHOUT_FLASH = 128
    """Entries per batch without flash attention. The scores of larger batches do not fit a CPU's caches
    (`benchmarks/settings.py`)."""

    max_logits = 16
    """Most entries of a batch that can have logits, and so the longest draft."""

    MAX_BRANCHES = 16
    """Most branches. llama.cpp's memory for logits has a row for each sequence at least. A batch of 16 tokens
    costs a decoder of SmolVLM-256M's shape in q8_0 as much as one of 8 (AMD EPYC)."""

    MAX_STATE_BYTES = 16 * 2**20
    """Limit of the states of all branches. Recurrent layers keep a state for each sequence, used or not."""

    _eval_callback: Any = None
    """llama.cpp calls this C function for each node of its graph; set by `RecordingDecoder`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context_length: int,
        threads: int | None = None,
        gpu_layers: int = 0,
        bidirectional: int = 0,
        kv: str = "f16",
        splits_text: bool = True,
        try_file: bool = True,
    ) -> None:
        check_not_forked()
        self._try_file = try_file
        self._context: Any = None
        self._path = Path(path)
        self.context_length = check_integer("context_length", context_length, 1, 2**31 - 1)
        self.bidirectional = check_integer("bidirectional", bidirectional, 0, context_length)
        self._threads = threads = check_integer(
            "threads", system.physical_cores() if threads is None else threads, 1, 512
        )
        gpu_layers = check_integer("gpu_layers", gpu_layers, -1, 2**31 - 1)
        if kv not in KV_BYTES:
            raise InputError(f"kv must be one of {', '.join(KV_BYTES)}, is {kv!r}")
        self.kv = kv
        extra_buffer_types = self._check_build()
        self._llama = load_llama_cpp()
        if gpu_layers:
            if reason := no_gpu_reason():
                raise LoadError(f"gpu_layers={gpu_layers}, but {reason}")
            self._check_gpu()
        self.on_cpu = gpu_layers == 0
        self._threads = self._threads_now = threads
        self._thread_limit = ThreadLimit(threads)
        # llama.cpp multiplies by quantized values in flash attention only.
        self._flash = not self.on_cpu or kv in BLOCK_SIZES or self._use_flash_attention()
        self.copy_format = (
            f"llama-cpp-python {LLAMA_CPP_PYTHON_VERSION}, kv {kv}, context {context_length}, "
            f"flash attention {'on' if self._flash else 'off'}"
        )
        self.batch_length = self.BATCH_SIZE if self._flash else self.BATCH_SIZE_WITHOUT_FLASH
        self.batch_length = max(self.batch_length, self.bidirectional)
        self.device = (
            f"gpu ({gpu_layers} layers)" if gpu_layers > 0 else "gpu" if gpu_layers else "cpu"
        )
        self._free_context: Callable[[Any], None] = self._llama.llama_free
        self._model = LlamaCppModel(
            self._path,
            gpu_layers=gpu_layers,
            extra_buffer_types=extra_buffer_types,
            splits_text=splits_text,
        )
        self.width = self._model.width
        self.vocabulary_size = self._model.vocabulary_size
        try:
            if self.context_length > self._model.trained_context_length:
                raise InputError(
                    f"context_length {self.context_length} is more than the "
                    f"{self._model.trained_context_length} positions that {self._path.name} was trained for"
                )
            self._check_head_size()
            self.max_branches = self._count_branches()
            # Sequences beside the held one and its branches: the entries of dropped branches, and spare ones.
            self._dropped, *self._spare = range(self.max_branches + 1, self.max_branches + 4)
            self._check_memory()
            self.grid_positions = self._model.mrope
            self.max_removable = 0 if self._model.hybrid else self.context_length
            self._slides = self._llama.llama_model_n_swa(self._model.handle) > 0
            self.independent_branches = not (self._model.hybrid or self._slides)
            mark_started(self, "_context")
            self._create_context(threads, gpu_layers)
            plain = self.independent_branches and not self.grid_positions
            self.can_shift = plain and bool(self._llama.llama_memory_can_shift(self._memory))
        except BaseException:
            self.close()
            raise

    def _use_flash_attention(self) -> bool:
        """Return True if flash attention is the faster kernel on this CPU."""
        short = self.context_length <= self.MAX_FLASH_CONTEXT
        return not system.is_intel() or (short and not system.has_amx())

    def _check_build(self) -> bool:
        """Check this build of llama.cpp and the file.

        Returns:
            True if llama.cpp's extra buffer types (repacked and AMX kernels) can be used.
        """
        result = check_library()
        if self._try_file:
            check_file(self._path)
        return result.extra_buffer_types

    def _check_gpu(self) -> None:
        check_gpu()

    def _check_head_size(self) -> None:
        """Check that keys and values of a head are whole blocks of the type of the KV cache.

        Raises:
            InputError: they are not.
        """
        block = BLOCK_SIZES.get(self.kv, 1)
        for size in (*self._model.head_sizes(), *self._model.head_sizes(sliding=True)):
            if size % block:
                raise InputError(
                    f"a KV cache in {self.kv} needs heads whose size is a multiple of {block}, those of "
                    f"{self._path.name} have {size}; use kv='f16'"
                )

    def _count_branches(self) -> int:
        """Return how many branches can be open: at least one, and more if their states are small."""
        if not self._model.hybrid:
            return self.MAX_BRANCHES
        state = self._model.state_bytes or self.MAX_STATE_BYTES  # not known: one branch
        return min(max(1, self.MAX_STATE_BYTES // state), self.MAX_BRANCHES)

    def _check_memory(self) -> None:
        """Check that the context fits into memory. Else the system would kill the process later.

        Raises:
            LoadError: the KV cache and the attention scores need more memory than is available.
        """
        states = self._model.state_bytes * (1 + self.max_branches)
        positions = -(-self.context_length // 256) * 256
        cache = int(self._model.kv_values * KV_BYTES[self.kv] * positions) + states
        batch = (
            min(positions, -(-self.batch_length // 256) * 256)
            if self.bidirectional
            else self.batch_length
        )
        scores = 0 if self._flash else self._model.heads * positions * batch * 4
        available = system.available_memory()
        if available is not None and cache + scores > available:
            raise LoadError(
                f"context_length {self.context_length} needs {(cache + scores) / 2**30:.1f} GiB of memory "
                f"(KV cache {cache / 2**30:.1f}, attention {scores / 2**30:.1f}), "
                f"{available / 2**30:.1f} GiB are available; use a shorter context"
            )

    def _create_context(self, threads: int, gpu_layers: int) -> None:
        llama = self._llama
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = self.context_length
        parameters.n_batch = parameters.n_ubatch = self.batch_length
        more = 1 + len(self._spare) if self.independent_branches else 0
        parameters.n_seq_max = 1 + self.max_branches + more
        parameters.kv_unified = True
        parameters.n_outputs_max = max(
            self.max_logits, parameters.n_seq_max
        )  # no [batch, vocabulary] of logits
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.attention_type = llama.LLAMA_ATTENTION_TYPE_CAUSAL
        parameters.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        parameters.flash_attn_type = (
            llama.LLAMA_FLASH_ATTN_TYPE_AUTO
            if self._flash
            else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        parameters.type_k = parameters.type_v = getattr(llama, f"GGML_TYPE_{self.kv.upper()}")
        parameters.offload_kqv = parameters.op_offload = bool(gpu_layers)
        parameters.swa_full = True  # so that sliding-window models can `truncate` at any position
        parameters.no_perf = True
        self._abort_reason = ctypes.create_string_buffer(2)
        """A C string; llama.cpp stops computing on the CPU when it is not empty."""
        parameters.abort_callback = load_strlen()
        parameters.abort_callback_data = ctypes.addressof(self._abort_reason)
        if self._eval_callback is not None:
            parameters.cb_eval = self._eval_callback
        recent_errors.clear()
        self._context = llama.llama_init_from_model(self._model.handle, parameters)
        if not self._context:
            raise LoadError(
                f"llama.cpp cannot create a context for {self._path}{failure_reason()}"
                + ("; use a shorter context" if out_of_memory() else "")
            )
        self._memory = llama.llama_get_memory(self._context)
        if not self._memory:
            raise LoadError(f"{self._path} has no KV cache; it is not a decoder")
        self.batch_length = llama.llama_n_batch(self._context)
        self._batch = LlamaCppBatch(self.batch_length, mrope=self._model.mrope)

    @contextlib.contextmanager
    def _interruptible(self, cancel: CancelSignal | None) -> Iterator[CancelSignal]:
        """Let a signal abort what llama.cpp computes in the block; None: nothing does."""
        signal = cancel or CancelSignal()
        self._abort_reason.value = b""
        with signal.interrupting(self._abort):
            yield signal

    def _abort(self) -> None:
        self._abort_reason.value = b"!"

    def _decode_batch(self, times: NDArray[np.int32], cancel: CancelSignal) -> None:
        """Decode the batch that was written, unless `cancel` stops it; `times` are its positions."""
        cancel.check()
        recent_errors.clear()
        threads = self._choose_threads(cancel)
        start = Clocks.now()
        status = self._llama.llama_decode(self._context, self._batch.struct)
        self._thread_limit.add(threads, start)
        if status:
            cancel.check()
            raise InferenceError(
                f"llama.cpp could not decode positions {times.min()} to {times.max()} "
                f"(status {status}){failure_reason()}"
            )

    def _choose_threads(self, cancel: CancelSignal) -> int:
        """Set the threads of a batch, and return their number.

        A request with a deadline gets no more than have a core. Others always get all, because single tokens
        after a long prompt are rounded in another way with fewer.
        """
        threads = self._threads
        if cancel.has_deadline and self.on_cpu:
            threads = min(threads, self._thread_limit.limit)
        if threads != self._threads_now:
            self._llama.llama_set_n_threads(self._context, threads, threads)
            self._threads_now = threads
        return threads

    def close(self) -> None:
        """Free context and model. A second call does nothing; every other later call raises ClosedError."""
        if self._context:
            self._free_context(self._context)
        self._context = None
        self._model.close()

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

    def _check_open(self) -> None:
        check_not_forked()
        self._model.check_open()
