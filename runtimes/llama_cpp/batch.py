"""The batch that llama.cpp reads: entries, positions, sequences, and which entries get logits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes.llama_cpp.library import load_llama_cpp


class LlamaCppBatch:
    """The buffers of all batches of a context. New ones per batch cost as much as a small model's token.

    Args:
        length: most entries.
        mrope: a position of an embedding has several numbers.
    """

    def __init__(self, length: int, *, mrope: bool) -> None:
        self._mrope = mrope
        self._ids = np.empty(length, np.int32)
        self._positions = np.empty(4 * length, np.int32)
        self._output_flags = np.empty(length, np.int8)
        self._sequence_ids = np.empty(length, np.int32)
        self._sequence_counts = (ctypes.c_int32 * length)(*[1] * length)
        first, size = self._sequence_ids.ctypes.data, self._sequence_ids.itemsize
        self._sequences = (ctypes.c_void_p * length)(*range(first, first + length * size, size))
        self._ids_pointer = _int32_pointer(self._ids)
        self.struct: Any = load_llama_cpp().llama_batch(
            pos=_int32_pointer(self._positions),
            n_seq_id=self._sequence_counts,
            seq_id=ctypes.cast(self._sequences, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._output_flags.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        """llama.cpp's ``llama_batch``."""

    def write(
        self,
        entries: NDArray[Any],
        positions: NDArray[np.int32],
        outputs: slice | NDArray[np.bool_],
        sequences: int | Sequence[int] = 0,
    ) -> None:
        """Write a batch. Embeddings are read where they are, so they must stay until they are decoded.

        For embeddings of an M-RoPE model llama.cpp reads four numbers, ``[4, n]``. The last one is for vision
        encoders, and zero. To tokens it gives three equal numbers itself.

        Args:
            entries: token ids int32 ``[n]`` or embeddings float32 ``[n, width]``, C-contiguous.
            positions: int32 ``[n]`` or ``[3, n]``.
            outputs: the entries that get logits.
            sequences: the sequence of all entries or of each.
        """
        size = self.struct.n_tokens = len(entries)
        if entries.ndim == 2:
            rows = entries.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            self.struct.token, self.struct.embd = None, rows
        else:
            self._ids[:size] = entries
            self.struct.token, self.struct.embd = self._ids_pointer, None
        if entries.ndim == 2 and self._mrope:
            grid = self._positions[: 4 * size].reshape(4, size)
            grid[:3], grid[3] = positions, 0
        else:
            self._positions[:size] = positions
        flags = self._output_flags[:size]
        flags[:] = 0
        flags[outputs] = 1
        self._sequence_ids[:size] = sequences


def _int32_pointer(array: NDArray[np.int32]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
