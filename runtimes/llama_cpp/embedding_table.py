"""Rows of a GGUF file's input embedding table, dequantized on demand.

llama.cpp has no function that reads them, and `gguf.GGUFReader` creates a Python object for each string of
the vocabulary, which takes seconds for 257,000 tokens. So this module parses the header and skips all but one
tensor; the package `gguf` knows the block layouts and dequantizes.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import LoadError, MissingDependencyError

_SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Size in bytes of GGUF's metadata value types that have a fixed size."""

_UINT32, _STRING, _ARRAY = 4, 8, 9


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
                "reading embeddings needs the package gguf: pip install gguf"
            ) from error
        self._dequantize = gguf.dequantize
        try:
            contents = np.memmap(path, np.uint8, mode="r")
            self.shape, type_number, offset = _Header(contents.data).tensor(self.TENSOR)
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


class _Header:
    """A parser of a GGUF header."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0

    def tensor(self, name: str) -> tuple[tuple[int, int], int, int]:
        """Return shape ``(rows, columns)``, GGML type number and byte offset of a matrix."""
        magic, version = self._read("<4sI")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"not a GGUF file of version 2 or 3: {magic!r}, {version}")
        tensor_count, pair_count = self._read("<QQ")
        alignment = 32
        for _ in range(pair_count):
            key = self._string()
            (kind,) = self._read("<I")
            if key == b"general.alignment" and kind == _UINT32:
                (alignment,) = self._read("<I")
            else:
                self._skip_value(kind)
        found: tuple[tuple[int, ...], int, int] | None = None
        for _ in range(tensor_count):
            tensor_name = self._string()
            (rank,) = self._read("<I")
            dimensions = self._read(f"<{rank}Q")
            type_number, offset = self._read("<IQ")
            if tensor_name == name.encode():
                found = dimensions, type_number, offset
        if found is None:
            raise ValueError("no such tensor")
        dimensions, type_number, offset = found
        if len(dimensions) != 2:
            raise ValueError(f"not a matrix: {dimensions}")
        start = math.ceil(self._offset / alignment) * alignment
        return (dimensions[1], dimensions[0]), type_number, start + offset

    def _read(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._offset)
        self._offset += struct.calcsize(layout)
        return values

    def _string(self) -> bytes:
        (length,) = self._read("<Q")
        start, self._offset = self._offset, self._offset + length
        return bytes(self._data[start : self._offset])

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind != _ARRAY:
            self._offset += _SCALAR_SIZES[kind]
        else:
            item_kind, length = self._read("<IQ")
            if item_kind == _STRING:
                self._skip_strings(length)
            else:
                self._offset += _SCALAR_SIZES[item_kind] * length

    def _skip_strings(self, count: int) -> None:
        unpack, data, offset = struct.Struct("<Q").unpack_from, self._data, self._offset
        for _ in range(count):
            offset += 8 + unpack(data, offset)[0]
        self._offset = offset
