"""Rows of a GGUF file's input embedding table, dequantized on demand.

llama.cpp has no function that reads them. `GgufHeader` finds the table in the file; the package `gguf` knows
the block layouts and dequantizes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import LoadError, MissingDependencyError
from edgevlm.runtimes.llama_cpp.gguf_header import GgufHeader
from edgevlm.runtimes.llama_cpp.installation import INSTALL_LLAMA


class EmbeddingTable:
    """The tensor ``token_embd.weight`` of a GGUF file, memory-mapped.

    Raises:
        LoadError: the file is not a GGUF file, or has no such tensor of a known type.
        MissingDependencyError: the package `gguf` is not installed.
    """

    TENSOR = "token_embd.weight"
    """Name of the tensor."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"reading embeddings needs the package gguf; {INSTALL_LLAMA}"
            ) from error
        self._dequantize = gguf.dequantize
        try:
            contents = np.memmap(path, np.uint8, mode="r")
            self.shape, type_number, offset = GgufHeader(contents.data).tensor(self.TENSOR)
            self.type = gguf.GGMLQuantizationType(type_number)
            block_length, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
            row_bytes = self.shape[1] // block_length * block_bytes
            end = offset + row_bytes * self.shape[0]
            self._rows = contents[offset:end].reshape(self.shape[0], row_bytes)
        except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
            raise LoadError(
                f"{path}: cannot read {self.TENSOR} ({error}); the file is damaged, get it again"
            ) from error

    def rows(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return rows, float32 ``[n, width]``, of ids int32 ``[n]``, which must be within the table."""
        rows: NDArray[np.float32] = self._dequantize(self._rows[ids], self.type)
        return np.ascontiguousarray(rows, np.float32)
